"""linear_kd_loss is kd_loss of the head's logits: value, gradients, contract and errors."""

import dataclasses

import pytest
import torch
from budget import assert_within_budget
from linear_input import LABELS, TEACHERS, D, N, V, head_teacher, normal, student, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from mkd_fast import LossSpec, TeacherHead, kd_loss, linear_kd_loss
from mkd_fast.losses import linear_chunks

PATHS = ["eager", None]  # None: chunks through the fused ops where those are built
FIELDS = {"labels": LABELS, "temperature": 2.0, "ce_weight": 0.5}
NAMES = ("loss", "kd", "ce", "hidden", "weight", "bias")
SMALL = 13 * V * 4 * 3  # bytes of a chunk of 13 float32 tokens with a TeacherHead


def chunked(dtype, teacher, incoming=1.0, **fields):
    hidden, weight, bias = student(dtype)
    fields = {"max_chunk_bytes": SMALL} | fields
    out = linear_kd_loss(hidden, weight, teacher, student_bias=bias, **fields)
    (out.loss * incoming).sum().backward()
    return [out.loss.detach(), out.kd, out.ce, hidden.grad, weight.grad, bias.grad]


def assert_all_within_budget(actual, exact, plain):
    for name, *values in zip(NAMES, actual, exact, plain, strict=True):
        assert_within_budget(*values, name)


class TestIsTheLossOfAllLogits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("kind", TEACHERS)
    def test_within_its_budget(self, kind, reduction, dtype):
        fields = FIELDS | {"reduction": reduction}
        incoming = normal(N, seed=8).float() if reduction == "none" else 3.0
        teacher, exact_teacher = TEACHERS[kind](dtype), TEACHERS[kind](torch.float64)
        if kind == "head":
            parts = (teacher.hidden, teacher.weight, teacher.bias)
            exact_teacher = TeacherHead(*(part.double() for part in parts))
        elif kind == "dense":
            exact_teacher = teacher.double()
        elif kind in ("sparse", "sampled"):
            name = "logits" if kind == "sparse" else "weights"
            values = getattr(teacher, name).double()
            exact_teacher = dataclasses.replace(teacher, **{name: values})
        actual = chunked(dtype, teacher, incoming, **fields)
        plain = whole(dtype, teacher, incoming, **fields)
        hidden, weight, bias = (part.detach().double().requires_grad_() for part in student(dtype))
        logits = functional.linear(hidden, weight, bias)
        out = kd_loss(logits, exact_teacher, impl="eager", **fields)
        (out.loss * incoming).sum().backward()
        exact = [out.loss.detach(), out.kd, out.ce, hidden.grad, weight.grad, bias.grad]
        assert_all_within_budget(actual, exact, plain)

    @pytest.mark.parametrize("divergence", ["reverse_kl", "jsd", "tvd", "logit_mse"])
    def test_for_every_divergence_the_op_has(self, divergence):
        fields = FIELDS | {"divergence": divergence}
        exact, plain = (whole(d, head_teacher(d), 1.0, **fields) for d in (F64, torch.float32))
        assert_all_within_budget(
            chunked(torch.float32, head_teacher(torch.float32), **fields), exact, plain
        )

    @pytest.mark.parametrize("kind", TEACHERS)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_eager_in_float64(self, reduction, kind):
        fields = FIELDS | {"reduction": reduction}
        expected = whole(F64, TEACHERS[kind](F64), 2.0, **fields)
        found = chunked(F64, TEACHERS[kind](F64), 2.0, **fields, impl="eager")
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


F64 = torch.float64


@pytest.mark.parametrize("impl", PATHS)
class TestContract:
    def test_the_chunk_size_changes_nothing(self, impl):
        teacher = head_teacher(torch.float32)
        exact, plain = (whole(d, head_teacher(d), 1.0, **FIELDS) for d in (F64, torch.float32))
        for max_chunk_bytes in (1, 2 * SMALL, None):
            fields = FIELDS | {"max_chunk_bytes": max_chunk_bytes, "impl": impl}
            assert_all_within_budget(chunked(torch.float32, teacher, **fields), exact, plain)

    def test_what_ignored_tokens_hold_does_not_matter(self, impl):
        def run(value):
            hidden, weight, bias = student(torch.float32)
            hidden = hidden.detach().masked_fill((LABELS == -100)[:, None], value).requires_grad_()
            out = linear_kd_loss(
                hidden, weight, head_teacher(torch.float32), LABELS, bias, impl=impl
            )
            out.loss.backward()
            return out.loss.detach(), hidden.grad, weight.grad, bias.grad

        for one, other in zip(run(torch.nan), run(0.0), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_nothing_counts(self, impl, reduction):
        fields = {"labels": torch.full((N,), -100), "ce_weight": 0.5, "reduction": reduction}
        results = chunked(torch.float32, head_teacher(torch.float32), impl=impl, **fields)
        assert all(result.count_nonzero() == 0 for result in results)

    def test_no_tokens_at_all(self, impl):
        hidden, weight = torch.zeros(0, D, requires_grad=True), torch.ones(V, D, requires_grad=True)
        skip_below = None if impl == "eager" else 1e-3
        out = linear_kd_loss(hidden, weight, torch.zeros(0, V), impl=impl, skip_below=skip_below)
        out.loss.backward()
        assert out.loss.item() == 0
        assert weight.grad.count_nonzero() == 0

    def test_a_tied_head_sums_both_gradients(self, impl):
        embedding = normal(V, D, seed=1).float().requires_grad_()
        tokens = torch.arange(N) % V

        def gradient(loss):
            embedding.grad = None
            loss(functional.embedding(tokens, embedding) * 2.0).loss.backward()
            return embedding.grad

        teacher = torch.zeros(N, V)
        found = gradient(lambda h: linear_kd_loss(h, embedding, teacher, impl=impl))
        expected = gradient(lambda h: kd_loss(h @ embedding.T, teacher, impl="eager"))
        torch.testing.assert_close(found, expected)

    def test_padding_gets_no_probability_and_no_gradient(self, impl):
        hidden, weight, bias = student(torch.float32)
        teacher = head_teacher(torch.float32)  # 50 columns, of which 40 are real
        wide = TeacherHead(teacher.hidden, teacher.weight[:45])
        fields = {"vocab_size": 40, "impl": impl, "max_chunk_bytes": SMALL}
        labels = LABELS.clamp(max=39)
        out = linear_kd_loss(hidden, weight, wide, labels, bias, **fields)
        out.loss.backward()
        narrow = TeacherHead(teacher.hidden, teacher.weight[:40])
        expected = linear_kd_loss(hidden, weight[:40], narrow, labels, bias[:40], impl=impl)
        torch.testing.assert_close(out.loss, expected.loss)
        assert weight.grad[40:].count_nonzero() == bias.grad[40:].count_nonzero() == 0
        assert weight.grad[:40].count_nonzero() > 0

    def test_matched_layers_num_tokens_and_leading_shape(self, impl):
        spec = LossSpec(ce_weight=0.5, hidden_weight=0.3)
        hidden = normal(2, 5, D, seed=0).float()
        weight, labels = normal(V, D, seed=1).float(), torch.arange(10).view(2, 5)
        teacher, ours, theirs = (normal(2, 5, w, seed=w).float() for w in (V, 7, 8))
        matrix = normal(7, 8, seed=3).float()

        def run(loss, *args, **names):
            layer, projection = ours.clone().requires_grad_(), matrix.clone().requires_grad_()
            out = loss(
                *args, teacher, labels, spec=spec, num_tokens=4.0, impl=impl,
                hidden_mask=labels > 2, hidden_projection=projection,
                **{names["ours"]: layer, names["theirs"]: theirs},
            )  # fmt: skip
            out.loss.backward()
            return out.loss.detach(), out.hidden, layer.grad, projection.grad

        found = run(linear_kd_loss, hidden, weight, ours="student_layers", theirs="teacher_layers")
        expected = run(kd_loss, hidden @ weight.T, ours="student_hidden", theirs="teacher_hidden")
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_only_what_needs_a_gradient_gets_one(self, impl):
        for needed in range(3):
            parts = [part.detach() for part in student(torch.float32)]
            parts[needed].requires_grad_()
            out = linear_kd_loss(*parts[:2], torch.zeros(N, V), None, parts[2], impl=impl)
            out.loss.backward()
            assert [part.grad is not None for part in parts] == [i == needed for i in range(3)]
        with torch.no_grad():
            assert not linear_kd_loss(*parts[:2], torch.zeros(N, V)).loss.requires_grad

    def test_autocast_takes_its_dtype(self, impl):
        head = nn.Linear(D, V)
        hidden, teacher = normal(N, D, seed=0).float(), head_teacher(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            found = linear_kd_loss(hidden, head.weight, teacher, None, head.bias, impl=impl)
        found.loss.backward()
        assert head.weight.grad.dtype == torch.float32
        rounded = [
            t.detach().bfloat16()
            for t in (hidden, head.weight, head.bias, teacher.hidden, teacher.weight, teacher.bias)
        ]
        expected = linear_kd_loss(*rounded[:2], TeacherHead(*rounded[3:]), None, rounded[2])
        torch.testing.assert_close(found.loss, expected.loss)


# Dynamo itself does that.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(reduction):
    fields = FIELDS | {"reduction": reduction, "max_chunk_bytes": SMALL}
    teacher = head_teacher(torch.float32)

    def loss(hidden, weight, bias):
        return linear_kd_loss(hidden, weight, teacher, student_bias=bias, **fields).loss

    leaves = student(torch.float32)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    value.sum().backward()
    expected = chunked(torch.float32, teacher, **fields)
    assert torch.equal(value, expected[0])
    for leaf, gradient in zip(leaves, expected[3:], strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_skip_below_is_refused_while_compiling():
    def loss(hidden, weight):
        return linear_kd_loss(hidden, weight, T, skip_below=1e-3).loss

    with pytest.raises(torch._dynamo.exc.Unsupported, match="skip_below must be None under torch"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(H, W)


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group(
        "gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("argument", ["student_hidden", "student_weight", "student_bias"])
def test_a_sharded_parameter_is_refused(mesh, argument):
    arguments = {"student_hidden": H, "student_weight": W, "student_bias": torch.zeros(7)}
    arguments[argument] = distribute_tensor(arguments[argument], mesh, [Shard(0)])
    with pytest.raises(TypeError) as error:
        linear_kd_loss(teacher=T, **arguments)
    words = f"linear_kd_loss: {argument} must be a plain tensor, got a DTensor. Pass full_tensor()"
    assert words in str(error.value)


def test_a_sharded_teacher_is_refused(mesh):
    teacher = TeacherHead(H, distribute_tensor(W, mesh, [Shard(0)]))
    with pytest.raises(TypeError, match=r"TeacherHead\.weight must be a plain tensor"):
        linear_kd_loss(H, W, teacher)


def test_hands_out_its_gradients_once():
    hidden, weight, _ = student(torch.float32)
    out = linear_kd_loss(hidden, weight, torch.zeros(N, V))
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Call linear_kd_loss again, or pass impl='eager'"):
        out.loss.backward()
    out = linear_kd_loss(hidden, weight, torch.zeros(N, V))
    with pytest.raises(RuntimeError, match="linear_kd_loss: the fused loss has no second"):
        torch.autograd.grad(out.loss, hidden, create_graph=True)


def test_eager_has_a_second_derivative():
    hidden = normal(4, 3, seed=0).requires_grad_()
    weight = normal(6, 3, seed=1).requires_grad_()
    teacher = normal(4, 6, seed=2)

    def loss(hidden, weight):
        return linear_kd_loss(hidden, weight, teacher, max_chunk_bytes=100).loss

    assert torch.autograd.gradgradcheck(loss, (hidden, weight))


class TestSkippedColumns:
    skip_below = 2.0**-8

    def gradients(self, skip_below, kind, max_chunk_bytes):
        weight = normal(V, D, seed=1, size=0.1)
        weight[:: V // 5] *= 40.0  # a student that is sure of few tokens
        hidden, weight = normal(N, D, seed=0).requires_grad_(), weight.requires_grad_()
        hidden, weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
        teacher = TEACHERS[kind](torch.float32)
        out = linear_kd_loss(
            hidden, weight, teacher, skip_below=skip_below, max_chunk_bytes=max_chunk_bytes
        )
        out.loss.backward()
        return hidden, weight

    @pytest.mark.parametrize("kind", ["head", "dense", "sparse"])
    @pytest.mark.parametrize("max_chunk_bytes", [1, None])
    def test_error_is_within_its_bound(self, kind, max_chunk_bytes):
        hidden, weight = self.gradients(self.skip_below, kind, max_chunk_bytes)
        exact_hidden, exact_weight = self.gradients(None, kind, max_chunk_bytes)
        rounding = 1e-6
        of_hidden = (hidden.grad - exact_hidden.grad).abs()
        of_weight = (weight.grad - exact_weight.grad).abs()
        assert (of_hidden <= self.skip_below / N * weight.abs().sum(0) + rounding).all()
        assert (of_weight <= self.skip_below / N * hidden.abs().sum(0) + rounding).all()
        if max_chunk_bytes == 1:
            assert of_weight.max() > 0, "something was skipped"


def test_chunks_fill_the_budget_evenly():
    teacher = head_teacher(torch.float32)
    row = linear_chunks.row_bytes(teacher, V, torch.float32, needs_grad=True)
    assert row == 3 * 4 * V
    assert linear_chunks.row_bytes(torch.zeros(1, V), V, torch.bfloat16, needs_grad=False) == 2 * V
    cpu = torch.device("cpu")
    assert linear_chunks.bounds(10, row, 4 * row, cpu) == [(0, 3), (3, 6), (6, 10)]
    assert linear_chunks.bounds(2, row, 1, cpu) == [(0, 1), (1, 2)]
    assert linear_chunks.bounds(0, row, None, cpu) == [(0, 0)]


H, W = torch.zeros(2, 3, 4), torch.zeros(7, 4)
T = torch.zeros(2, 3, 7)
BAD_INPUT = {
    "weight": (
        ValueError,
        "linear_kd_loss: student_weight must be [V, 4], as wide as student_hidden, got (4, 7). "
        "Pass the weight",
        (H, W.T, T),
        {},
    ),
    "bias": (ValueError, "student_bias must be [V]", (H, W, T, None, torch.zeros(6)), {}),
    "mixed": (
        TypeError,
        "student_weight must have the dtype of student_hidden, torch.float32",
        (H, W.double(), T),
        {},
    ),
    "teacher's head": (
        ValueError,
        "TeacherHead.weight must be [V, 4]",
        (H, W, TeacherHead(H, W.T)),
        {},
    ),
    "teacher's columns": (
        ValueError,
        "linear_kd_loss: teacher_logits must have the student's vocabulary, 7 columns, got 9",
        (H, W, TeacherHead(H, torch.zeros(9, 4))),
        {},
    ),
    "teacher's gradient": (
        ValueError,
        "TeacherHead.weight must not require a gradient",
        (H, W, TeacherHead(H, W.clone().requires_grad_())),
        {},
    ),
    "labels": (
        ValueError,
        "linear_kd_loss: labels must have the student's leading shape, (2, 3)",
        (H, W, T, torch.zeros(6, dtype=torch.int64)),
        {},
    ),
    "layers": (
        ValueError,
        "linear_kd_loss: student_layers and teacher_layers go together",
        (H, W, T),
        {"student_layers": H},
    ),
    "chunk": (ValueError, "max_chunk_bytes must be positive", (H, W, T), {"max_chunk_bytes": 0}),
    "skip": (ValueError, "skip_below must be zero or positive", (H, W, T), {"skip_below": -1.0}),
    "skip on a device": (
        ValueError,
        "skip_below must be None where the host would have to wait",
        (H.to("meta"), W.to("meta"), T),
        {"skip_below": 1.0},
    ),
    "skip, eager": (
        ValueError,
        "skip_below must be None where the loss is eager, which would not heed it, "
        "got impl='eager'. Leave it out: the eager loss is exact.",
        (H, W, T),
        {"skip_below": 1.0, "impl": "eager"},
    ),
    "skip, no kernel": (
        ValueError,
        "which would not heed it, got torch.float64 has no fused kernel",
        (H.double(), W.double(), T),
        {"skip_below": 1.0},
    ),
    "shard": (
        ValueError,
        "process_group, vocab_start and vocab_size go together",
        (H, W, T),
        {"vocab_start": 3},
    ),
    "field": (TypeError, "linear_kd_loss: keywords must be fields", (H, W, T), {"temp": 1.0}),
    "not fused": (
        RuntimeError,
        "linear_kd_loss: impl='fused' needs a fused kernel for this input, got torch.float64",
        (H.double(), W.double(), T),
        {"impl": "fused"},
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    kind, words, args, kwargs = BAD_INPUT[case]
    with pytest.raises(kind) as error:
        linear_kd_loss(*args, **kwargs)
    assert words in str(error.value)
