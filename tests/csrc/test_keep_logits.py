"""mkd_fast::keep_logits under every instruction set of this machine, against float64.

A process chooses its instruction set once, so this module runs itself as a script, which writes
what the op returns for all cases.
"""

import sys
from dataclasses import asdict, dataclass

import pytest
import torch
from budget import assert_within_budget
from instruction_sets import available_capabilities, results_of
from torch import Tensor

from mkd_fast.losses import ops
from mkd_fast.teacher import keep_logits as kept_by
from mkd_fast.teacher.keep_logits import Asked, Kept, keep_logits, keep_logits_in_torch

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INF = torch.inf


@dataclass(frozen=True)
class Case:
    """Logits, which of their rows are kept, and what of them."""

    logits: Tensor
    asked: Asked
    num_draws: int = 50

    @property
    def rows(self) -> Tensor:
        """All but the second, backwards."""
        return torch.tensor([n for n in range(len(self.logits)) if n != 1][::-1])

    @property
    def uniforms(self) -> Tensor:
        """For each row that is kept."""
        shape = len(self.rows), self.num_draws
        numbers = torch.rand(shape, dtype=torch.float64, generator=torch.manual_seed(1))
        return numbers.sort(-1).values

    def arguments(self) -> tuple[Tensor, Tensor, Asked, Tensor]:
        """Of ``keep_logits``."""
        return self.logits, self.rows, self.asked, self.uniforms


def case(
    num_columns: int,
    num_top: int,
    dtype: torch.dtype = F32,
    *,
    scale: float = 3.0,
    padding: int = 0,
    num_rows: int = 5,
    num_draws: int = 50,
    temperatures: tuple[float, ...] = (1.0, 2.0),
    draw_temperature: float = 1.0,
    proposal_exponent: float = 1.0,
) -> Case:
    """Random logits."""
    shape = num_rows, num_columns + padding
    logits = scale * torch.randn(shape, generator=torch.manual_seed(num_columns))
    asked = Asked(num_columns, num_top, temperatures, draw_temperature, proposal_exponent)
    return Case(logits.to(dtype), asked, num_draws)


def masked(num_finite: int, num_columns: int, num_top: int) -> Case:
    """All columns but some are -inf."""
    made = case(num_columns, num_top)
    finite = torch.randperm(num_columns, generator=torch.manual_seed(0))[:num_finite]
    hidden = torch.ones(num_columns, dtype=torch.bool)
    hidden[finite] = False
    return Case(made.logits.masked_fill(hidden, -INF), made.asked)


def with_logits(logits: Tensor, num_top: int) -> Case:
    """These logits, of a row three times."""
    return Case(logits.repeat(3, 1), Asked(len(logits), num_top, (1.0,)))


CASES = {
    "one column": case(1, 1),
    "fewer columns than a register": case(3, 2),
    "a label set": case(60, 60),
    "a group and a column": case(65, 4),
    "a block": case(1024, 64),
    "a block and a column": case(1025, 64),
    "bfloat16, many ties": case(32_000, 64, BF16),
    "float16, odd": case(2_049, 17, F16),
    "250,002 columns": case(250_002, 64, num_rows=3),
    "250,037 columns, bfloat16": case(250_037, 128, BF16, num_rows=3),
    "padding past the vocabulary": case(2_001, 16, padding=47),
    "all columns kept": case(3_000, 3_000),
    "logits of a thousand": case(5_000, 8, scale=1e3),
    "nearly flat": case(5_000, 8, scale=1e-3),
    "all equal": with_logits(torch.zeros(3_000), 64),
    "rising": with_logits(torch.arange(20_000.0) / 1000, 64),
    "falling": with_logits(-torch.arange(20_000.0) / 1000, 64),
    "-inf columns": masked(1_500, 3_000, 64),
    "fewer finite columns than kept": masked(5, 3_000, 64),
    "one finite column": masked(1, 9_000, 3),
    "draws at another temperature": case(4_000, 8, draw_temperature=2.0),
    "draws at a temperature of their own": case(4_000, 0, temperatures=(), draw_temperature=0.7),
    "a flatter proposal": case(4_000, 8, proposal_exponent=0.5),
    "a steeper proposal": case(4_000, 8, BF16, draw_temperature=1.5, proposal_exponent=1.3),
    "no draws": case(4_000, 64, num_draws=0),
    "log_z alone": case(4_000, 0, num_draws=0),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each instruction set returns for every case."""
    return results_of(__file__, tmp_path_factory.mktemp("results"))


@pytest.fixture(params=available_capabilities())
def found(request, results):
    """What one instruction set returns for every case."""
    return {name: Kept(**kept) for name, kept in results(request.param).items()}


def real(of: Case) -> Tensor:
    """The rows that are kept, float64, without padding."""
    return of.logits[of.rows, : of.asked.num_columns].double()


@pytest.mark.parametrize("name", CASES)
def test_the_largest_are_exact_and_of_equals_the_lowest_id_comes_first(found, name):
    of, kept = CASES[name], found[name]
    expected = real(of).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(kept.top_ids.long(), expected.indices[:, : of.asked.num_top])
    assert torch.equal(kept.top_logits.double(), expected.values[:, : of.asked.num_top])
    assert torch.equal(kept.top_logits, keep_logits_in_torch(*of.arguments()).top_logits)


@pytest.mark.parametrize("name", CASES)
def test_log_z(found, name):
    of = CASES[name]
    exact = [(real(of) / t).logsumexp(-1) for t in of.asked.temperatures]
    if exact:
        plain = keep_logits_in_torch(*of.arguments()).log_z
        assert_within_budget(found[name].log_z, torch.stack(exact, -1), plain)


def placed(of: Case, drawn: Tensor) -> Tensor:
    """Where each uniform number would lie if it had drawn its id exactly: the nearest such one."""
    tau, temperature = of.asked.proposal_exponent, of.asked.draw_temperature
    upto = (tau * real(of) / temperature).softmax(-1).cumsum(-1)
    upto /= upto[:, -1:].clone()
    high = upto.gather(-1, drawn.long())
    low = torch.where(drawn > 0, upto.gather(-1, (drawn.long() - 1).clamp(min=0)), 0.0)
    return of.uniforms.clamp(low, high).float()


@pytest.mark.parametrize("name", [name for name, of in CASES.items() if of.num_draws])
def test_draws(found, name):
    of, kept = CASES[name], found[name]
    plain = keep_logits_in_torch(*of.arguments())
    assert_within_budget(placed(of, kept.drawn), of.uniforms, placed(of, plain.drawn))
    assert real(of).gather(-1, kept.drawn.long()).isfinite().all(), "-inf is never drawn"
    assert (kept.drawn.diff(dim=-1) >= 0).all(), "rising numbers draw rising ids"
    if of.asked.needs_ratios:
        p = (real(of) / of.asked.draw_temperature).softmax(-1)
        r = (of.asked.proposal_exponent * real(of) / of.asked.draw_temperature).softmax(-1)
        exact = (p / r).gather(-1, kept.drawn.long())
        same = kept.drawn == plain.drawn
        assert same.double().mean() > 0.9
        assert_within_budget(
            kept.ratios[same].float(), exact[same], plain.ratios[same].float(), "ratios"
        )


def test_draws_follow_the_proposal(found):
    """Pearson's statistic of many draws, within 4.5 standard deviations of its mean."""
    kept, of = found["many draws"], MANY_DRAWS
    expected = of.num_draws * real(of)[0].softmax(-1)
    counts = torch.bincount(kept.drawn[0], minlength=of.asked.num_columns)
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = of.asked.num_columns - 1
    assert abs(statistic - freedom) <= 4.5 * (2 * freedom) ** 0.5


MANY_DRAWS = case(300, 0, scale=1.5, num_rows=1, num_draws=200_000)


@pytest.mark.parametrize("value", [torch.nan, INF])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_a_broken_logit_breaks_its_row_alone(value, exponent):
    of = case(3_000, 16, proposal_exponent=exponent)
    clean = keep_logits(*of.arguments())
    of.logits[of.rows[2], 1_234] = value
    broken = keep_logits(*of.arguments())
    assert broken.log_z.isfinite().all(-1).tolist() == [True, True, False, True]
    assert broken.total.isfinite().all(-1).tolist() == [True, True, False, True]
    assert ((broken.drawn >= 0) & (broken.drawn < 3_000)).all()
    whole = torch.tensor([0, 1, 3])
    for name, rows in vars(clean).items():
        assert torch.equal(rows[whole], getattr(broken, name)[whole]), name


@pytest.mark.parametrize("value", [torch.nan, -INF])
def test_a_row_of_nothing_else_is_not_finite(value):
    of = with_logits(torch.full((700,), value), 20)
    kept = keep_logits(*of.arguments())
    assert not kept.log_z.isfinite().any()
    assert not kept.total.isfinite().any()
    assert ((kept.drawn >= 0) & (kept.drawn < 700)).all()
    assert ((kept.top_ids >= 0) & (kept.top_ids < 700)).all()


def test_a_row_depends_on_itself_alone():
    of = case(5_000, 64, BF16, num_rows=9)
    together = keep_logits(*of.arguments())
    for n, row in enumerate(of.rows.tolist()):
        alone = keep_logits(
            of.logits[row : row + 1].clone(), torch.tensor([0]), of.asked, of.uniforms[n : n + 1]
        )
        for name, rows in vars(together).items():
            assert torch.equal(rows[n : n + 1], getattr(alone, name)), name


def test_logits_that_are_not_contiguous():
    of = case(3_000, 16)
    strided = Case(of.logits.t().contiguous().t(), of.asked)
    for name, rows in vars(keep_logits(*of.arguments())).items():
        assert torch.equal(rows, getattr(keep_logits(*strided.arguments()), name)), name


@pytest.mark.parametrize("dtype", [torch.float64])
def test_other_dtypes_are_kept_by_torch(dtype):
    of = case(500, 16)
    assert kept_by.rounds_as(of.logits).startswith("C++ ")
    assert kept_by.rounds_as(of.logits.to(dtype)) == "torch"
    kept = keep_logits(of.logits.to(dtype), of.rows, of.asked, of.uniforms)
    assert torch.equal(kept.top_logits, keep_logits(*of.arguments()).top_logits)


def test_opcheck():
    for exponent in (1.0, 0.5):
        of = case(200, 5, proposal_exponent=exponent)
        arguments = (of.logits, of.rows, of.uniforms)
        torch.library.opcheck(torch.ops.mkd_fast.keep_logits, arguments, asdict(of.asked))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_columns": 61}, r"logits must be \[M, V\] with at least num_columns columns, 61"),
        ({"num_columns": 0}, "with at least num_columns columns, 0"),
        ({"num_top": 61}, r"num_top must lie in \[0, num_columns\], got 61"),
        ({"rows": torch.tensor([5])}, r"rows must lie in \[0, 5\), got 5"),
        ({"rows": torch.tensor([-1])}, r"rows must lie in \[0, 5\), got -1"),
        ({"rows": torch.tensor([0], dtype=torch.int32)}, r"rows must be contiguous int64 \[N\]"),
        ({"uniforms": torch.rand(1, 2)}, "uniforms must be contiguous float64"),
        ({"uniforms": torch.rand(2, 2).double()}, "uniforms must be contiguous float64"),
    ],
)
def test_what_would_read_foreign_memory_is_refused(changes, message):
    of = case(60, 5)
    given = {"rows": torch.tensor([0]), "uniforms": torch.rand(1, 2).double(), **asdict(of.asked)}
    given |= changes
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.keep_logits(of.logits, given.pop("rows"), given.pop("uniforms"), **given)


if __name__ == "__main__":
    every = CASES | {"many draws": MANY_DRAWS}
    torch.save(
        {name: vars(keep_logits(*of.arguments())) for name, of in every.items()}, sys.argv[1]
    )
