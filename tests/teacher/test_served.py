"""Log-probabilities of a served teacher: every layout, the right token, a cache like any other."""

import json
import math
import re
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast import kd_loss
from mkd_fast.checks.wording import is_ours
from mkd_fast.losses.targets import SparseTeacher
from mkd_fast.teacher.cache import Fingerprints, TeacherCache, token_hashes, verify
from mkd_fast.teacher.capture import capture
from mkd_fast.teacher.row_files import count_rows, read_rows
from mkd_fast.teacher.served import import_logprobs

VOCAB_SIZE = 61
K = 5


@dataclass
class Logprob:
    """As vLLM's engine returns them."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def served(model, batches):
    """What a server that returns K log-probabilities says about every sample."""
    for batch in batches:
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        top = logits.log_softmax(-1).topk(K)
        for row, mask in enumerate(batch.attention_mask.bool()):
            pairs = zip(top.indices[row, mask], top.values[row, mask], strict=True)
            known = [dict(zip(ids.tolist(), values.tolist(), strict=True)) for ids, values in pairs]
            tokens = batch.input_ids[row, mask].tolist()
            yield int(batch.sample_ids[row]), tokens, [None, *known[:-1]]


def as_vllm(known, token_id):
    """The prompt's own token comes first, and is one more where it is not among the K."""
    own = {token_id: Logprob(min(known.values()) - 1, K + 1, "own")}
    own |= {number: Logprob(value, rank + 1) for rank, (number, value) in enumerate(known.items())}
    return own


def as_vllm_json(known, token_id):
    found = as_vllm(known, token_id)
    return json.loads(json.dumps({number: vars(value) for number, value in found.items()}))


def as_sglang(known, token_id):
    return [[value, number, None] for number, value in known.items()]


def as_completions(known, token_id):
    return {f"token_id:{number}": value for number, value in reversed(known.items())}


def as_chat(known, token_id):
    return [{"token": f"token_id:{n}", "logprob": v, "bytes": [1]} for n, v in known.items()]


def as_structs(known, token_id):
    return [{"id": number, "logprob": value} for number, value in known.items()]


def rows_of(samples, layout, tokens="token_ids", logprobs="logprobs"):
    return [
        {
            "sample_id": sample_id,
            tokens: ids,
            logprobs: [
                None if known is None else layout(known, token_id)
                for known, token_id in zip(entries, ids, strict=True)
            ],
        }
        for sample_id, ids, entries in samples
    ]


@pytest.fixture(scope="module")
def samples(causal, make_batches):
    return list(served(causal, make_batches(8, 4)))


OPTIONS = {"top_k": K, "vocab_size": VOCAB_SIZE}


@pytest.mark.parametrize(
    ("layout", "tokens", "logprobs"),
    [
        (as_vllm, "prompt_token_ids", "prompt_logprobs"),
        (as_vllm_json, "prompt_token_ids", "prompt_logprobs"),
        (as_sglang, "input_ids", "input_top_logprobs"),
        (as_completions, "token_ids", "top_logprobs"),
        (as_chat, "token_ids", "top_logprobs"),
        (as_structs, "token_ids", "logprobs"),
    ],
)
def test_every_layout_trains_as_our_own_capture(
    tmp_path, causal, make_batches, samples, layout, tokens, logprobs
):
    batches = make_batches(8, 4)
    rows = rows_of(samples, layout, tokens, logprobs)
    imported = import_logprobs(rows, tmp_path / "imported", **OPTIONS)
    assert imported.manifest.plan.keep == (f"topk:{K}",)
    assert verify(imported.path) == ()
    for batch in batches:
        imported.batch(batch.sample_ids, token_hashes(batch.input_ids, batch.attention_mask))
    captured = capture(causal, batches, tmp_path / "captured", keep=(f"topk:{K}", "logits"))
    ids = captured.sample_ids
    theirs, ours = imported.batch(ids).teacher, captured.batch(ids, keep=f"topk:{K}").teacher
    dense = captured.batch(ids, keep="logits")
    # every token but the last, whose successor no server was asked about
    mask = dense.hidden_mask.clone()
    mask[torch.arange(len(mask)), mask.sum(1) - 1] = False
    assert torch.equal(theirs.ids[mask], ours.ids[mask])
    assert (theirs.ids[~mask] == -1).all()
    exact = dense.teacher.double().log_softmax(-1).gather(-1, ours.ids.clamp(min=0).long())
    exact = SparseTeacher(ours.ids, exact, torch.zeros(mask.shape, dtype=torch.float64))
    student = torch.randn(*mask.shape, VOCAB_SIZE, generator=torch.manual_seed(0))
    found = [
        evaluated(student.to(dtype), teacher, mask)
        for teacher, dtype in (
            (theirs, torch.float32),
            (exact, torch.float64),
            (ours, torch.float32),
        )
    ]
    for what, *values in zip(("loss", "gradient"), *found, strict=True):
        assert_within_budget(*values, what)


def evaluated(student, teacher, mask):
    student.requires_grad_()
    loss = kd_loss(student, teacher, mask=mask, reduction="none", impl="eager").loss
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def test_unknown_tokens_change_nothing(tmp_path, samples):
    cache = import_logprobs(rows_of(samples, as_sglang), tmp_path / "cache", **OPTIONS)
    target = cache.batch(cache.sample_ids[:4])
    student = torch.randn(*target.hidden_mask.shape, VOCAB_SIZE, requires_grad=True)
    is_empty = (target.teacher.ids == -1).all(-1)
    out = kd_loss(student, target.teacher, mask=is_empty & target.hidden_mask)
    out.loss.backward()
    assert_within_budget(out.loss.detach(), torch.zeros((), dtype=torch.float64), torch.zeros(()))
    assert not student.grad.any()


def test_other_temperatures_are_refused(tmp_path, samples):
    cache = import_logprobs(rows_of(samples, as_sglang), tmp_path / "cache", **OPTIONS)
    with pytest.raises(ValueError, match=r"has log_z for, \[1.0\], got 2.0"):
        cache.batch(cache.sample_ids[:4], temperature=2.0)


def test_a_short_list_belongs_to_the_last_tokens(tmp_path):
    answer = {"sample_id": 3, "token_ids": [7, 8, 9, 10], "logprobs": [{9: -0.5}, {10: -0.25}]}
    prompt = {
        "sample_id": 4,
        "input_ids": [7, 8, 9],
        "input_top_logprobs": [None, [[-1.0, 9, "x"]]],
    }
    cache = import_logprobs([answer, prompt], tmp_path / "cache", top_k=2, vocab_size=11)
    teacher = cache.batch([3, 4]).teacher
    assert teacher.ids[0].tolist() == [[-1, -1], [9, -1], [10, -1], [-1, -1]]
    assert teacher.logits[0, 1:3, 0].tolist() == [-0.5, -0.25]
    assert teacher.ids[1, :3].tolist() == [[-1, -1], [9, -1], [-1, -1]]
    assert teacher.log_z.tolist() == [[0.0] * 4] * 2


def test_ids_by_falling_probability_and_minus_infinity(tmp_path):
    entry = [[-2.0, 5, None], [-0.5, 1, None], [-2.0, 3, None], [-math.inf, 4, None]]
    row = {"sample_id": 0, "token_ids": [1, 2], "logprobs": [None, entry]}
    cache = import_logprobs([row], tmp_path / "cache", top_k=5, vocab_size=6)
    teacher = cache.batch([0]).teacher
    assert teacher.ids[0, 0].tolist() == [1, 3, 5, 4, -1]
    assert teacher.logits[0, 0].tolist() == [-0.5, -2.0, -2.0, -math.inf, 0.0]
    fewer = import_logprobs([row], tmp_path / "fewer", top_k=2, vocab_size=6)
    assert fewer.batch([0]).teacher.ids[0, 0].tolist() == [1, 3]


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


ROW = {"sample_id": 7, "token_ids": [1, 2, 3], "logprobs": [None, {1: -1.0}, {2: -1.0}]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (without(ROW, "sample_id"), "a row must have sample_id"),
        (without(ROW, "token_ids"), "one of token_ids, prompt_token_ids, input_ids"),
        (without(ROW, "logprobs"), "top_logprobs, a list"),
        (ROW | {"prompt_logprobs": []}, "one of logprobs, prompt_logprobs, input_top_logprobs"),
        ([ROW], "a row must have sample_id"),
        (ROW | {"sample_id": 2**70}, "sample_id, a whole number"),
        (ROW | {"sample_id": "seven"}, "sample_id, a whole number"),
        (ROW | {"token_ids": [1.5]}, "whole numbers"),
        (ROW | {"token_ids": [2**70, 1, 2]}, "whole numbers"),
        (ROW | {"token_ids": [1, 2]}, "sample 7 must have at most an entry for each of its 2"),
        (ROW | {"logprobs": [{1: -1.0}] * 3}, "entry 0 of sample 7 must be None"),
        (ROW | {"logprobs": [None, {"the": -1.0}]}, "return_tokens_as_token_ids"),
        (ROW | {"logprobs": [None, {"12": -1.0}]}, "return_tokens_as_token_ids"),
        (ROW | {"logprobs": [None, 5]}, "entries of sample 7 must be ids with their"),
        (ROW | {"logprobs": [None, {1: {"rank": 1}}]}, "entries of sample 7 must be ids with"),
        (ROW | {"logprobs": [None, [[-1.0]]]}, "entries of sample 7 must be ids with"),
        (ROW | {"logprobs": [None, {9: -1.0}]}, "ids of sample 7 must be from 0 to 8"),
        (ROW | {"logprobs": [None, {-1: -1.0}]}, "ids of sample 7 must be from 0 to 8"),
        (ROW | {"logprobs": [None, {1: 3.5, 2: 1.0}]}, "sum to at most 1, got 35.8 of"),
        (ROW | {"logprobs": [None, {1: -0.1, 2: -0.1}]}, "sum to at most 1, got 1.81"),
        (ROW | {"logprobs": [None, {1: math.nan}]}, "sum to at most 1, got nan"),
        (ROW | {"logprobs": [None, {1: -math.inf}]}, "sum to at most 1, got 0 of"),
        (ROW | {"logprobs": [None, {1: 1e9}]}, "entries of sample 7 must be ids with"),
    ],
)
def test_rows_that_are_not_right_are_named(tmp_path, row, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        import_logprobs([row], tmp_path / "cache", top_k=2, vocab_size=9)


def test_arguments_that_are_not_right(tmp_path):
    with pytest.raises(ValueError, match="must not select more than the 9 columns"):
        import_logprobs([ROW], tmp_path / "cache", top_k=10, vocab_size=9)
    for top_k in (0, -1):
        with pytest.raises(ValueError, match="keep must be one or several of"):
            import_logprobs([ROW], tmp_path / "cache", top_k=top_k, vocab_size=9)
    with pytest.raises(ValueError, match="vocab_size must be positive"):
        import_logprobs([ROW], tmp_path / "cache", top_k=1, vocab_size=0)
    with pytest.raises(ValueError, match="sample ids must differ, got 7 twice"):
        import_logprobs([ROW, ROW], tmp_path / "cache", top_k=1, vocab_size=9)


@pytest.mark.parametrize("stopped_at", [0, 63, 64, 130, 255])
def test_stopped_at_any_row_it_ends_the_same(tmp_path, stopped_at):
    rows = [ROW | {"sample_id": number} for number in range(256)]
    options = {"top_k": 2, "vocab_size": 9, "shard_bytes": 2000}
    origin = Fingerprints(teacher="served")
    import_logprobs(rows, tmp_path / "whole", **options, fingerprints=origin)

    def until_stopped():
        yield from rows[:stopped_at]
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        import_logprobs(until_stopped(), folder, **options, fingerprints=origin)
    seen = []
    import_logprobs(rows, folder, **options, fingerprints=origin, progress=seen.append)
    assert seen[-1].num_samples == 256
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sum(name.startswith("shard") for name in files) > 2
    # once more only opens it, and as another teacher's it is refused
    assert len(import_logprobs([], folder, **options, fingerprints=origin)) == 256
    with pytest.raises(ValueError, match=r"must be of teacher 'other', got teacher 'served'"):
        import_logprobs(rows, folder, **options, fingerprints=Fingerprints(teacher="other"))


def test_files(tmp_path, samples):
    rows = rows_of(samples, as_structs)
    table = pyarrow.Table.from_pylist(rows[:20])
    pyarrow.parquet.write_table(table, tmp_path / "one.parquet", row_group_size=7)
    lines = [json.dumps(row) + "\n" for row in rows_of(samples, as_vllm_json)[20:]]
    (tmp_path / "two.jsonl").write_text("".join(lines), encoding="utf-8")
    paths = [tmp_path / "one.parquet", str(tmp_path / "two.jsonl")]
    assert count_rows(paths) == len(rows)
    from_files = import_logprobs(read_rows(paths), tmp_path / "files", **OPTIONS)
    import_logprobs(rows, tmp_path / "rows", **OPTIONS)
    again = TeacherCache.open(tmp_path / "rows")
    ids = again.sample_ids
    for one, two in zip(
        vars(from_files.batch(ids).teacher).values(),
        vars(again.batch(ids).teacher).values(),
        strict=True,
    ):
        assert one == two if isinstance(one, str) else torch.equal(one, two)


def test_files_that_are_not_right(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl must have JSON on every line, got line 2"):
        list(read_rows([broken]))
    broken.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match=r"JSON on every line, got line 1"):
        list(read_rows([broken]))
    with pytest.raises(ValueError, match=r"must end in .jsonl or .parquet, got rows.csv"):
        list(read_rows(["rows.csv"]))
    with pytest.raises(FileNotFoundError, match=r"a path must lead to a file, got .*absent.jsonl"):
        list(read_rows([tmp_path / "absent.jsonl"]))
    for content in (b"PAR1 and no more", b""):
        (tmp_path / "broken.parquet").write_bytes(content)
        for read in (count_rows, lambda paths: list(read_rows(paths))):
            with pytest.raises(ValueError, match=r"broken.parquet must be a Parquet file that"):
                read([tmp_path / "broken.parquet"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(entries=JSON, tokens=JSON)
def test_whatever_a_server_returns_is_read_or_refused_in_words(tmp_path_factory, entries, tokens):
    row = {"sample_id": 1, "token_ids": tokens, "logprobs": entries}
    folder = tmp_path_factory.mktemp("fuzzed")
    try:
        cache = import_logprobs([row], folder / "cache", top_k=2, vocab_size=9)
    except ValueError as error:
        assert is_ours(error)  # noqa: PT017 - either is right
        return
    teacher = cache.batch([1]).teacher
    mass = torch.where(teacher.ids >= 0, teacher.logits.exp(), 0).sum(-1)
    assert (mass <= 1.01).all()
