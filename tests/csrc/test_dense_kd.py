"""mkd_fast::dense_kd and scale_ on the CPU, each instruction set against float64.

The cases run in one process per instruction set, since a process chooses its own once: this file
run as a script writes what the fused path returns for every case.
"""

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import assert_within_budget

from mkd_fast import kd_loss
from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GRADIENTS = ("student_logits", "student_hidden")


def normal(*shape: int, seed: int, dtype: torch.dtype = F32, size: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * size).to(dtype)


def case(
    num_rows: int,
    num_columns: int,
    *,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    size: float = 3.0,
    labels: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Arguments of kd_loss: random logits of either side, labels with every fifth one ignored."""
    fields.setdefault("reduction", "none")
    fields["student_logits"] = normal(num_rows, num_columns, seed=0, dtype=dtypes[0], size=size)
    fields["teacher"] = normal(num_rows, num_columns, seed=1, dtype=dtypes[1], size=size)
    if labels:
        limit = fields.get("vocab_size", num_columns)
        generator = torch.Generator().manual_seed(2)
        fields["labels"] = torch.randint(limit, (num_rows,), generator=generator)
        fields["labels"][4::5] = -100
        fields.setdefault("ce_weight", 0.5)
    return fields


def with_hidden(*shape: int, dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32), **fields: Any):
    """Two matched layers of hidden states beside small logits."""
    arguments = case(shape[0], 7, hidden_weight=0.3, **fields)
    arguments["student_hidden"] = [normal(*shape, seed=s, dtype=dtypes[0]) for s in (3, 4)]
    arguments["teacher_hidden"] = [normal(*shape, seed=s, dtype=dtypes[1]) for s in (5, 6)]
    return arguments


def padded_rows() -> dict[str, Any]:
    fields = case(6, 90)
    return (
        fields
        | {name: fields[name][:, :77] for name in ("student_logits", "teacher")}
        | {"labels": fields["labels"] % 77}
    )


def transposed() -> dict[str, Any]:
    fields = case(33, 33)
    return fields | {name: fields[name].T for name in ("student_logits", "teacher")}


def expanded_teacher() -> dict[str, Any]:
    fields = case(5, 40)
    return fields | {"teacher": fields["teacher"][:1].expand(5, 40)}


def without_some_columns(divergence: str, num_columns: int = 1500) -> dict[str, Any]:
    fields = case(6, num_columns, divergence=divergence, labels=False)
    fields["teacher"][:, 3::2] = -torch.inf
    fields["teacher"][:, 1024:] = -torch.inf  # nothing at all in a whole block
    if divergence in ("reverse_kl", "jeffreys"):  # elsewhere they may have more than the teacher
        fields["student_logits"].masked_fill_(fields["teacher"] == -torch.inf, -torch.inf)
    return fields


def rising_maximum(divergence: str) -> dict[str, Any]:
    fields = case(4, 5000, divergence=divergence, ce_weight=0.5, temperature=3.0)
    fields["student_logits"] += torch.linspace(0, 60, 5000)
    fields["teacher"] += torch.linspace(80, 0, 5000)
    return fields


def one_hot_teacher(**fields: Any) -> dict[str, Any]:
    arguments = case(6, 300, **fields)
    arguments["teacher"] = torch.zeros(6, 300)
    arguments["teacher"][torch.arange(6), torch.arange(6) * 50] = 1000.0
    return arguments


def equal_sides(divergence: str) -> dict[str, Any]:
    fields = case(6, 700, divergence=divergence, labels=False)
    return fields | {"teacher": fields["student_logits"].clone()}


DIVERGENCES = {
    "forward_kl": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jeffreys": {"divergence": "jeffreys"},
    "jsd": {"divergence": "jsd", "beta": 0.3},
}
MASK = torch.tensor([True, False, True, True, False, True])
HIDDEN_MASK = torch.arange(12).remainder(3).view(4, 3).bool()

# A case is named after the reason it exists.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} at temperature {t}": case(6, 60, temperature=t, **fields)
        for name, fields in DIVERGENCES.items()
        for t in (0.1, 1.0, 2.0, 7.3)
    },
    **{f"{name} over several blocks": case(5, 2777, **f) for name, f in DIVERGENCES.items()},
    **{f"{name} of equal sides": equal_sides(name) for name in DIVERGENCES},
    **{f"{name}, maximum rises": rising_maximum(name) for name in DIVERGENCES},
    **{f"{name}, -inf columns": without_some_columns(name) for name in DIVERGENCES},
    **{
        f"{student} student, {teacher} teacher": case(6, 1055, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
    },
    "jsd at beta 0": case(6, 60, divergence="jsd", beta=0.0),
    "jsd at beta 1": case(6, 60, divergence="jsd", beta=1.0),
    "jsd close to beta 0": case(6, 60, divergence="jsd", beta=1e-3),
    "one column": case(6, 1),
    "fewer columns than a register": case(6, 3),
    "odd number of columns": case(6, 1031),
    "exactly one block": case(6, 1024),
    "one row": case(1, 500),
    "more short rows than go together": case(70, 60),
    "widest rows that go together": case(40, 64),
    "narrowest rows that go alone": case(40, 65),
    **{
        f"short rows, {student} student, {teacher} teacher": case(20, 37, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
    },
    **{
        f"{name} of short rows, -inf columns": without_some_columns(name, 50)
        for name in DIVERGENCES
    },
    "short rows, huge logits": case(20, 50, size=1e4, temperature=0.1),
    "short rows, logit scales": case(
        20, 50, temperature=2.0, logit_scale=0.3, teacher_logit_scale=-1.7
    ),
    "short rows, padded vocabulary": case(20, 80, vocab_size=50, dtypes=(BF16, F32)),
    "short rows, no labels": case(20, 50, labels=False),
    "short rows, labels only mark tokens": case(20, 50, ce_weight=0.0, temperature=3.0),
    "short rows, no kd weight": case(20, 50, kd_weight=0.0),
    "short rows, mask": case(6, 50, mask=MASK),
    "250,002 columns": case(2, 250_002, dtypes=(BF16, BF16)),
    "250,002 columns in float32": case(2, 250_002, ce_weight=0.5),
    "gradient past the caches, unaligned": case(9, 131_075, dtypes=(F32, BF16)),
    "strided rows": padded_rows(),
    "strided columns": transposed(),
    "teacher rows that are one row": expanded_teacher(),
    "huge logits": case(6, 999, size=1e4),
    "huge logits, low temperature": case(6, 999, size=1e4, temperature=0.1),
    "one-hot teacher": one_hot_teacher(),
    "one-hot teacher, low temperature": one_hot_teacher(temperature=0.1),
    "one-hot teacher, jsd": one_hot_teacher(divergence="jsd"),
    "teacher's own temperature": case(6, 77, temperature=2.0, teacher_temperature=0.7),
    "no T squared": case(6, 77, temperature=3.0, temperature_squared=False),
    "logit scales": case(6, 77, temperature=2.0, logit_scale=0.3, teacher_logit_scale=-1.7),
    "padded vocabulary": case(6, 80, vocab_size=70),
    "no labels": case(6, 77, labels=False),
    "labels only mark tokens": case(6, 77, ce_weight=0.0, temperature=3.0),
    "no kd weight": case(6, 77, kd_weight=0.0),
    "mean": case(40, 77, reduction="mean"),
    "sum": case(40, 77, reduction="sum"),
    "mean over other tokens": case(6, 77, reduction="mean", num_tokens=100.0),
    "mask": case(6, 77, mask=MASK),
    "mean over a mask": case(6, 77, mask=MASK, labels=False, reduction="mean"),
    "nothing counts": case(6, 77, mask=torch.zeros(6, dtype=torch.bool), reduction="mean"),
    "no rows": case(0, 77, reduction="mean"),
    "hidden states": with_hidden(6, 33),
    "wide hidden states": with_hidden(6, 2500, reduction="mean"),
    "hidden states of mixed dtypes": with_hidden(6, 64, dtypes=(BF16, F16)),
    "hidden states of positions": with_hidden(4, 3, 33),
    "hidden states of masked positions": with_hidden(4, 3, 33, hidden_mask=HIDDEN_MASK),
    "hidden states without weight": with_hidden(6, 33) | {"hidden_weight": 0.0},
    "hidden states, masked tokens": with_hidden(6, 33, mask=MASK),
}


def evaluate(
    arguments: dict[str, Any], dtype: torch.dtype | None, impl: str
) -> dict[str, torch.Tensor]:
    """Values and gradients of a case, its numbers converted to dtype unless that is None."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point() and dtype is not None:
            return value.to(dtype)
        return value

    converted = {name: convert(value) for name, value in arguments.items()}
    leaves = {}
    for name in GRADIENTS:
        for i, tensor in enumerate(_as_list(converted.get(name))):
            leaves[f"gradient of {name}[{i}]"] = tensor.detach().requires_grad_()
    converted["student_logits"] = leaves["gradient of student_logits[0]"]
    if "student_hidden" in converted:
        converted["student_hidden"] = list(leaves.values())[1:]
    out = kd_loss(**converted, impl=impl)
    out.loss.sum().backward()
    values = {"loss": out.loss.detach(), "kd": out.kd, "ce": out.ce, "hidden": out.hidden}
    zero = torch.zeros
    return values | {n: zero(t.shape) if t.grad is None else t.grad for n, t in leaves.items()}


def _as_list(value: Any) -> list[torch.Tensor]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def available_capabilities() -> list[str]:
    best = torch.ops.mkd_fast.cpu_capability() if not ops.missing_kernels("cpu") else "plain"
    known = ["plain", "avx2", "avx512"]
    return known[: known.index(best) + 1]


def run_with(capability: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parents[1])  # where this file imports from, run as a script
    environment = os.environ | {"MKD_FAST_CPU_CAPABILITY": capability, "PYTHONPATH": tests}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    """What each instruction set returns for every case."""

    @functools.cache
    def of(capability: str) -> dict[str, dict[str, torch.Tensor]]:
        path = tmp_path_factory.mktemp("results") / f"{capability}.pt"
        finished = run_with(capability, str(path))
        assert finished.returncode == 0, finished.stderr
        return torch.load(path)

    return of


@functools.cache
def exact_and_plain(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return evaluate(CASES[name], torch.float64, "eager"), evaluate(CASES[name], F32, "eager")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("capability", available_capabilities())
def test_within_the_error_budget(results, capability, name):
    exact, plain = exact_and_plain(name)
    for what, actual in results(capability)[name].items():
        assert_within_budget(actual, exact[what].double(), plain[what].to(actual.dtype), what)


@pytest.mark.parametrize("capability", available_capabilities())
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_rows_sum_to_zero(results, capability, divergence):
    name, what = f"{divergence} over several blocks", "gradient of student_logits[0]"
    grad, plain = results(capability)[name][what].double(), exact_and_plain(name)[1][what].double()
    rounding = torch.finfo(F32).eps * grad.abs().sum(-1).max()
    assert grad.sum(-1).abs().max() <= 2 * plain.sum(-1).abs().max() + rounding


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["student_logits", "teacher"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("num_columns", [60, 2500])
def test_a_broken_logit_breaks_its_token_alone(num_columns, divergence, side, value):
    arguments = case(4, num_columns, labels=False, divergence=divergence)
    arguments[side][2, num_columns // 2] = value
    out = evaluate(arguments, None, "fused")
    is_broken = torch.tensor([False, False, True, False])
    assert torch.equal(out["loss"].isnan(), is_broken)
    assert torch.equal(out["gradient of student_logits[0]"].isnan().any(-1), is_broken)


def test_a_term_without_weight_cannot_break_the_loss():
    arguments = case(4, 60, kd_weight=0.0)
    clean = evaluate(arguments, None, "fused")
    arguments["teacher"][1] = torch.nan
    broken = evaluate(arguments, None, "fused")
    assert broken["kd"].isnan().tolist() == [False, True, False, False]
    for what in ("loss", "gradient of student_logits[0]"):
        assert torch.equal(broken[what], clean[what])


def test_no_weight_at_all():
    arguments = case(4, 60, kd_weight=0.0, ce_weight=0.0)
    arguments["student_logits"][1, 7] = torch.nan
    out = evaluate(arguments, None, "fused")
    assert not out["loss"].any()
    assert not out["gradient of student_logits[0]"].any()
    assert out["kd"].all()


def test_rows_further_apart_than_32_bits_count():
    columns = 60
    storage = torch.empty(2**31 + columns, dtype=F16)  # of which two rows are ever touched
    rows = storage.as_strided((2, columns), (2**31, 1))
    rows.copy_(normal(2, columns, seed=0))
    arguments = {"student_logits": rows, "teacher": normal(2, columns, seed=1)}
    far = evaluate(arguments, None, "fused")
    near = evaluate(arguments | {"student_logits": rows.contiguous()}, None, "fused")
    for what, value in near.items():
        assert torch.equal(far[what], value)


def test_the_number_of_threads_changes_nothing():
    before = torch.get_num_threads()
    outputs = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        outputs.append(evaluate(CASES["mean"], None, "fused"))
    torch.set_num_threads(before)
    for what, value in outputs[0].items():
        assert torch.equal(value, outputs[1][what])


@pytest.mark.parametrize("label", [73, 60, -1])
def test_label_out_of_range(label):
    positional, keywords = op_arguments()  # the op itself: kd_loss finds such labels before it
    positional[2][3] = label
    with pytest.raises(
        RuntimeError,
        match=rf"kd_loss: labels must lie in \[0, 60\) or be ignore_index=-100, got {label} at "
        r"token 3\. Set labels of tokens that do not count to ignore_index\.",
    ):
        torch.ops.mkd_fast.dense_kd(*positional, **keywords)


def test_unknown_capability_is_refused():
    finished = run_with("avx9000")
    assert finished.returncode != 0
    assert "MKD_FAST_CPU_CAPABILITY must be one that this machine has" in finished.stderr
    assert "got avx9000. Unset it for the best one." in finished.stderr


def op_arguments(**changes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden = [normal(4, 3, 8, seed=3)]
    labels = torch.tensor([0, -100, 2, 3])
    positional = (
        normal(4, 60, seed=0), normal(4, 60, seed=1), labels, None, None, hidden,
        [normal(4, 3, 8, seed=4)], None,
    )  # fmt: skip
    keywords = {
        "divergence": "forward_kl", "beta": 0.5, "temperature": 1.0, "teacher_temperature": 1.0,
        "logit_scale": 1.0, "teacher_logit_scale": 1.0, "kd_scale": 1.0, "kd_weight": 1.0,
        "ce_weight": 0.5, "hidden_weight": 0.1, "vocab_size": 60, "ignore_index": -100,
        "reduction": "mean", "needs_grad_student": True, "needs_grad_hidden": True,
    }  # fmt: skip
    return positional, keywords | changes


@pytest.mark.parametrize(
    "changes",
    [{}, {"reduction": "none"}, {"needs_grad_student": False, "needs_grad_hidden": False}],
    ids=["mean", "none", "no gradients"],
)
def test_opcheck_dense_kd(changes):
    positional, keywords = op_arguments(**changes)
    torch.library.opcheck(torch.ops.mkd_fast.dense_kd, positional, keywords)


def test_opcheck_scale():
    torch.library.opcheck(torch.ops.mkd_fast.scale_, (normal(4, 6, seed=0), torch.tensor(2.0)))


def test_unknown_divergence_is_refused():
    positional, keywords = op_arguments(divergence="tvd")
    with pytest.raises(RuntimeError, match=r"dense_kd: divergence must be forward_kl, .* got tvd"):
        torch.ops.mkd_fast.dense_kd(*positional, **keywords)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, torch.zeros(3, 60), "student and teacher must be"),
        (1, torch.zeros(4, 59), r"vocab_size must lie in \[1, 59\], got 60"),
        (1, torch.zeros(4, 60, dtype=torch.float64), "teacher must be float32, bfloat16 or"),
        (2, torch.zeros(3, dtype=torch.int64), "labels must be int64"),
        (2, torch.zeros(4, dtype=torch.int32), "labels must be int64"),
        (3, torch.zeros(5, dtype=torch.bool), "mask bool"),
        (4, torch.tensor(4), "num_tokens must be float32"),
        (5, [], "must match layer by layer"),
        (6, [torch.zeros(4, 3, 9)], "hidden states must be .* alike on both sides; layer 0"),
        (7, torch.zeros(4, 2, dtype=torch.bool), "hidden_mask must be bool"),
    ],
)
def test_the_op_reads_no_foreign_memory(position, value, message):
    positional, keywords = op_arguments()
    changed = (*positional[:position], value, *positional[position + 1 :])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.dense_kd(*changed, **keywords)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [(5, 1031), (5, 3, 7), (0, 4), (5, 0)])
def test_scale_multiplies_rows(shape, dtype):
    grad = normal(*shape, seed=0, dtype=dtype)
    factors = torch.tensor([1.0, 0.0, -2.5, 1e-3, 3.0])[: shape[0]]
    expected = (grad.float() * factors.view(-1, *[1] * (grad.dim() - 1))).to(dtype)
    torch.ops.mkd_fast.scale_(grad, factors)
    assert torch.equal(grad, expected)


def test_scale_by_one_touches_nothing():
    grad = torch.full((3, 4), torch.nan)
    bits = grad.view(torch.int32).clone()
    torch.ops.mkd_fast.scale_(grad, torch.tensor(1.0))
    assert torch.equal(grad.view(torch.int32), bits)


@pytest.mark.parametrize(
    ("grad", "scale", "message"),
    [
        (torch.ones(3, 4), torch.ones(2), "scale must have one entry or one for each of the 3"),
        (torch.ones(3, 4), torch.ones((), dtype=torch.float64), "scale must be float32"),
        (torch.ones(4, 3).T, torch.ones(()), "grad must be contiguous within a row"),
        (torch.ones(3, 4, dtype=torch.float64), torch.ones(()), "must be float32, bfloat16 or"),
    ],
    ids=["rows", "scale dtype", "strides", "grad dtype"],
)
def test_scale_refuses(grad, scale, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.scale_(grad, scale)


def test_capability_fits_the_machine():
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    assert torch.ops.mkd_fast.cpu_capability() in (
        ("plain", "avx2", "avx512") if is_x86 else ("plain",)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(torch.ops.mkd_fast.cpu_capability())  # noqa: T201
    if len(sys.argv) > 1:
        fused = {name: evaluate(arguments, None, "fused") for name, arguments in CASES.items()}
        torch.save(fused, Path(sys.argv[1]))
