"""hidden_loss: closed forms, what a token is, and that it is the hidden term of kd_loss."""

import pytest
import torch
from budget import assert_within_budget
from dense_kd_input import BF16, F16, F32, normal
from torch.nn import functional

from mkd_fast import Int8Hidden, hidden_loss, kd_loss
from mkd_fast.losses.spec import DIVERGENCES

PATHS = ["eager", None]  # None: fused where it is built
DISTANCES = ["mse", "cosine"]
MASK = torch.tensor([[True, True, False], [True, False, False]])


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return normal(*shape, seed=seed, dtype=torch.float64, size=1.0)


def gradient(loss: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, inputs)[0]


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("distance", DISTANCES)
class TestTokens:
    def test_every_vector_is_a_token(self, impl, distance):
        student, teacher = normal(2, 3, 8, seed=0), normal(2, 3, 8, seed=1)
        each = hidden_loss(student, teacher, distance=distance, reduction="none", impl=impl)
        assert each.shape == (2, 3)
        counted = hidden_loss(student, teacher, distance=distance, mask=MASK, impl=impl)
        torch.testing.assert_close(counted, each[MASK].mean())

    def test_with_a_hidden_mask_sequences_are_tokens(self, impl, distance):
        student, teacher = normal(2, 3, 8, seed=0), normal(2, 3, 8, seed=1)
        each = hidden_loss(student, teacher, distance=distance, reduction="none", impl=impl)
        of_sequences = hidden_loss(
            student, teacher, distance=distance, hidden_mask=MASK, reduction="none", impl=impl
        )
        torch.testing.assert_close(of_sequences, torch.stack([each[0, :2].mean(), each[1, 0]]))
        second = hidden_loss(
            student, teacher, distance=distance, hidden_mask=MASK, impl=impl,
            mask=torch.tensor([False, True]),
        )  # fmt: skip
        torch.testing.assert_close(second, each[1, 0])

    def test_layers_of_any_width_are_averaged(self, impl, distance):
        pairs = [(normal(5, d, seed=d), normal(5, d, seed=d + 1)) for d in (8, 33)]
        ours, theirs = map(list, zip(*pairs, strict=True))
        both = hidden_loss(ours, theirs, distance=distance, impl=impl)
        one, other = (hidden_loss(*pair, distance=distance, impl=impl) for pair in pairs)
        torch.testing.assert_close(both, (one + other) / 2)

    def test_one_vector(self, impl, distance):
        student, teacher = normal(8, seed=0), normal(8, seed=1)
        value = hidden_loss(student, teacher, distance=distance, impl=impl)
        whole = hidden_loss(student[None], teacher[None], distance=distance, impl=impl)
        assert value.shape == ()
        assert torch.equal(value, whole)

    def test_nothing_counts(self, impl, distance):
        student = normal(4, 8, seed=0).requires_grad_()
        nothing = torch.zeros(4, dtype=torch.bool)
        loss = hidden_loss(
            student, normal(4, 8, seed=1), distance=distance, mask=nothing, impl=impl
        )
        assert loss.item() == 0
        assert not gradient(loss, student).any()

    def test_num_tokens_is_the_denominator_of_mean(self, impl, distance):
        student, teacher = normal(4, 8, seed=0), normal(4, 8, seed=1)
        total = hidden_loss(student, teacher, distance=distance, reduction="sum", impl=impl)
        part = hidden_loss(student, teacher, distance=distance, num_tokens=10, impl=impl)
        torch.testing.assert_close(part, total / 10)

    def test_is_the_hidden_term_of_kd_loss(self, impl, distance):
        student, teacher = normal(4, 8, seed=0).requires_grad_(), normal(4, 8, seed=1)
        loss = hidden_loss(student, teacher, distance=distance, impl=impl)
        out = kd_loss(
            normal(4, 7, seed=2), normal(4, 7, seed=3), student_hidden=student,
            teacher_hidden=teacher, kd_weight=0.0, hidden_weight=1.0, hidden_distance=distance,
            impl=impl,
        )  # fmt: skip
        assert torch.equal(loss, out.loss)
        assert torch.equal(gradient(loss, student), gradient(out.loss, student))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("student_dtype", [F32, BF16, F16])
@pytest.mark.parametrize("teacher_dtype", [F32, BF16, F16])
def test_any_mix_of_dtypes_is_within_the_budget(student_dtype, teacher_dtype, distance):
    student = normal(20, 70, seed=0, dtype=student_dtype)
    teacher = normal(20, 70, seed=1, dtype=teacher_dtype)
    results = []
    for dtype, impl in ((student_dtype, None), (torch.float64, "eager"), (F32, "eager")):
        leaf = student.to(dtype).requires_grad_()
        target = teacher.to(torch.float64) if dtype == torch.float64 else teacher
        loss = hidden_loss(leaf, target, distance=distance, impl=impl)
        results.append((loss.detach(), gradient(loss, leaf)))
    (value, grad), (exact, exact_grad), (plain, plain_grad) = results
    assert value.dtype == F32
    assert_within_budget(value, exact, plain)
    assert_within_budget(grad, exact_grad, plain_grad.to(grad.dtype), "gradient")


def test_mse_is_torch_s():
    student, teacher = doubles(4, 8), doubles(4, 8, seed=1)
    loss = hidden_loss(student, teacher)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, functional.mse_loss(student, teacher))


def test_cosine_is_torch_s():
    student, teacher = doubles(4, 8), doubles(4, 8, seed=1)
    expected = 1 - functional.cosine_similarity(student, teacher)
    loss = hidden_loss(student, teacher, distance="cosine", reduction="none")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize(("factor", "value"), [(1.0, 0.0), (0.01, 0.0), (-1.0, 2.0), (-7.0, 2.0)])
def test_cosine_of_parallel_states(factor, value, impl):
    student = normal(6, 33, seed=0).requires_grad_()
    teacher = factor * student.detach()
    loss = hidden_loss(student, teacher, distance="cosine", reduction="none", impl=impl)
    rounding = 33 * torch.finfo(F32).eps
    assert (loss - value).abs().max() <= rounding
    assert gradient(loss.sum(), student).abs().max() <= rounding


@pytest.mark.parametrize("impl", PATHS)
def test_cosine_knows_no_length(impl):
    student, teacher = normal(6, 33, seed=0), normal(6, 33, seed=1)
    loss = hidden_loss(student, teacher, distance="cosine", impl=impl)
    scaled = hidden_loss(4.0 * student, 0.25 * teacher, distance="cosine", impl=impl)
    torch.testing.assert_close(scaled, loss, rtol=0, atol=4 * torch.finfo(F32).eps)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("zero", [["student"], ["teacher"], ["student", "teacher"]])
def test_cosine_of_no_direction_is_one_with_a_finite_gradient(zero, impl):
    student, teacher = normal(3, 8, seed=0), normal(3, 8, seed=1)
    for name in zero:
        {"student": student, "teacher": teacher}[name][1] = 0.0
    student.requires_grad_()
    loss = hidden_loss(student, teacher, distance="cosine", reduction="none", impl=impl)
    assert loss[1] == 1
    grad = gradient(loss.sum(), student)
    assert grad.isfinite().all()
    if "teacher" in zero:
        assert not grad[1].any()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("length", [1.0, 1e-9])  # below 1e-8 it is held there
def test_gradcheck(distance, length):
    student, projection = doubles(2, 3, 4), doubles(4, 5, seed=2)
    teacher = doubles(2, 3, 5, seed=1)

    def loss(student, projection):
        states = length * student
        return hidden_loss(
            states, teacher, distance=distance, hidden_mask=MASK, projection=projection
        )

    inputs = (student.requires_grad_(), projection.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_projection_is_the_product_done_by_hand(distance, impl):
    student, weight = normal(6, 8, seed=0).requires_grad_(), normal(8, 5, seed=1).requires_grad_()
    teacher = normal(6, 5, seed=2)
    loss = hidden_loss(student, teacher, projection=weight, distance=distance, impl=impl)
    by_hand = hidden_loss(student @ weight, teacher, distance=distance, impl=impl)
    assert torch.equal(loss, by_hand)
    ours, theirs = (torch.autograd.grad(value, (student, weight)) for value in (loss, by_hand))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_int8_states_are_what_they_decode_to(distance, impl):
    values = torch.randint(-127, 128, (2, 3, 40), dtype=torch.int8)
    packed = Int8Hidden(values, normal(2, 3, seed=1).abs())
    student = normal(2, 3, 40, seed=0).requires_grad_()
    both = [
        hidden_loss(student, teacher, distance=distance, hidden_mask=MASK, impl=impl)
        for teacher in (packed, packed.dequantised())
    ]
    assert torch.equal(*both)
    assert torch.equal(*(gradient(loss, student) for loss in both))


@pytest.mark.parametrize("impl", PATHS)
def test_without_weight_broken_states_break_nothing(impl):
    student, logits = normal(3, 8, seed=0), normal(3, 7, seed=1).requires_grad_()
    student[1] = torch.nan
    student.requires_grad_()
    out = kd_loss(
        logits, normal(3, 7, seed=2), student_hidden=student, teacher_hidden=normal(3, 8, seed=3),
        impl=impl,
    )  # fmt: skip
    out.loss.backward()
    assert out.hidden.isnan()
    assert out.loss.isfinite()
    assert logits.grad.isfinite().all()
    assert student.grad is None


# Dynamo itself does that.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_compiles_whole():
    student, teacher = normal(4, 8, seed=0), normal(4, 8, seed=1)
    compiled = torch.compile(hidden_loss, fullgraph=True, backend="aot_eager")
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    value, expected = compiled(ours, teacher), hidden_loss(theirs, teacher)
    assert torch.equal(value, expected)
    assert torch.equal(gradient(value, ours), gradient(expected, theirs))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_empty_vocabulary_has_no_divergence(divergence):
    fields = {"alpha_beta": (0.2, 0.7)} if divergence == "alpha_beta" else {}
    nothing = torch.empty(3, 0)
    out = kd_loss(nothing, nothing, divergence=divergence, impl="eager", **fields)
    assert [out.loss.item(), out.kd.item(), out.ce.item()] == [0, 0, 0]


H, T = normal(2, 3, 4, seed=0), normal(2, 3, 4, seed=1)
BAD_INPUT = {
    "no layers": (ValueError, "student_hidden and teacher_hidden go together", ([], []), {}),
    "no states": (TypeError, "student_hidden[0] must be a floating-point", ([[1.0]], [T]), {}),
    "mask shape": (
        ValueError,
        "hidden_loss: mask must have the student's leading shape, (2, 3), got (2,).",
        (H, T),
        {"mask": torch.ones(2).bool()},
    ),
    "hidden mask shape": (
        ValueError,
        "hidden_loss: hidden_mask must have the student's leading shape, (2, 3), got (2,).",
        (H, T),
        {"hidden_mask": torch.ones(2).bool()},
    ),
    "mask beside a hidden mask": (
        ValueError,
        "mask must have the student's leading shape, (2,)",
        (H, T),
        {"hidden_mask": MASK, "mask": MASK},
    ),
    "other leading shape": (
        ValueError,
        "student_hidden[1] must be [..., D] or [..., S, D] with the student's leading shape, "
        "(2, 3), got (6, 4)",
        ([H, H.view(6, 4)], [T, T.view(6, 4)]),
        {},
    ),
    "distance": (ValueError, "hidden_distance must be a known name", (H, T), {"distance": "l2"}),
    "float64 fused": (
        RuntimeError,
        "hidden_loss: impl='fused'",
        (H.double(), T),
        {"impl": "fused"},
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    kind, words, args, kwargs = BAD_INPUT[case]
    with pytest.raises(kind) as error:
        hidden_loss(*args, **kwargs)
    assert words in str(error.value)
