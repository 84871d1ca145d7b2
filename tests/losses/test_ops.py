"""The op boundary: autograd, torch.compile, autocast, and what happens where there is no kernel."""

import pytest
import torch
from budget import assert_within_budget
from dense_kd_input import normal
from torch import nn

from mkd_fast import LossSpec, kd_loss
from mkd_fast.losses import ops
from mkd_fast.losses.spec import DIVERGENCES

SPEC = LossSpec(temperature=2.0, ce_weight=0.5, hidden_weight=0.3)


@pytest.fixture(autouse=True)
def _needs_kernels():
    assert ops.missing_kernels("cpu") is None, "these tests are about the C++ kernels"


def make_input(dtype=torch.float32, num_tokens=6, width=40):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, width, (num_tokens,), generator=generator)
    labels[1] = -100
    hidden = [draw(num_tokens, 16), draw(num_tokens, 8)]
    return (
        draw(num_tokens, width),
        draw(num_tokens, width),
        labels,
        hidden,
        [h * 0.9 for h in hidden],
    )


def loss_and_gradients(impl, inputs, spec=SPEC):
    student, teacher, labels, hidden, teacher_hidden = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (student, *hidden)]
    out = kd_loss(
        leaves[0],
        teacher,
        labels,
        student_hidden=leaves[1:],
        teacher_hidden=teacher_hidden,
        spec=spec,
        impl=impl,
    )
    out.loss.backward()
    return [out.loss.detach(), out.kd, out.ce, out.hidden, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fused_is_within_the_budget_of_eager(divergence, dtype):
    alpha_beta = (0.3, 0.6) if divergence == "alpha_beta" else None
    spec = LossSpec(
        divergence=divergence, alpha_beta=alpha_beta, temperature=2.0, softcap=20.0,
        ce_weight=0.5, hidden_weight=0.3,
    )  # fmt: skip
    inputs = make_input(dtype)
    double = [[t.double() for t in part] if isinstance(part, list) else part for part in inputs]
    double[:2] = [tensor.double() for tensor in double[:2]]
    fused, eager = (
        loss_and_gradients("fused", inputs, spec),
        loss_and_gradients("eager", inputs, spec),
    )
    exact = loss_and_gradients("eager", double, spec)
    for name, actual, truth, plain in zip(
        ("loss", "kd", "ce", "hidden", "student", "hidden 0", "hidden 1"),
        fused, exact, eager, strict=True,
    ):  # fmt: skip
        assert_within_budget(actual, truth, plain, name)


# Dynamo itself does that.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_compiles_whole():
    inputs = make_input()
    student, teacher, labels, hidden, teacher_hidden = inputs

    def loss(student, h0, h1):
        hidden = {"student_hidden": [h0, h1], "teacher_hidden": teacher_hidden}
        return kd_loss(student, teacher, labels, spec=SPEC, **hidden).loss

    leaves = [tensor.clone().requires_grad_() for tensor in (student, *hidden)]
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    value.backward()
    expected = loss_and_gradients("fused", inputs)
    assert torch.equal(value, expected[0])
    for leaf, gradient in zip(leaves, expected[4:], strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_hands_out_its_gradient_once():
    student = torch.randn(3, 5, requires_grad=True)
    out = kd_loss(student, torch.randn(3, 5), impl="fused")
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Call kd_loss again, or pass impl='eager'"):
        out.loss.backward()


@pytest.mark.parametrize("shape", [(3, 5), (1, 3, 5)], ids=["rows", "sequences"])
def test_what_the_op_wrote_becomes_the_gradient_without_a_copy(shape, monkeypatch):
    written = []
    run = ops.run

    def watched_run(*args, **kwargs):
        results = run(*args, **kwargs)
        written.append(results[4].data_ptr())
        return results

    monkeypatch.setattr(ops, "run", watched_run)
    student = torch.randn(shape, requires_grad=True)
    kd_loss(student, torch.randn(shape), impl="fused").loss.backward()
    assert [student.grad.data_ptr()] == written


def test_has_no_second_derivative():
    student = torch.randn(3, 5, requires_grad=True)
    out = kd_loss(student, torch.randn(3, 5), impl="fused")
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(out.loss, student, create_graph=True)


def test_runs_under_autocast_on_what_autocast_makes():
    head = nn.Linear(8, 20)
    hidden, teacher = torch.randn(4, 8), torch.randn(4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden)
        out = kd_loss(logits, teacher, impl="fused")
    assert logits.dtype == torch.bfloat16
    out.loss.backward()
    outside = kd_loss(logits.detach(), teacher, impl="fused")
    assert torch.equal(out.loss, outside.loss)
    assert head.weight.grad.isfinite().all()


def test_only_those_hidden_states_that_need_a_gradient_get_one():
    frozen, trained = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    out = kd_loss(
        torch.randn(3, 5), torch.randn(3, 5), student_hidden=[frozen, trained],
        teacher_hidden=[torch.randn(3, 4)] * 2, hidden_weight=1.0, impl="fused",
    )  # fmt: skip
    out.loss.backward()
    assert frozen.grad is None
    assert trained.grad.abs().sum() > 0


@pytest.mark.parametrize("view", ["transposed", "expanded", "strided rows"])
def test_takes_any_strides(view):
    base = normal(60, 60, seed=0)  # many rows: the largest error of a few may be small by chance
    student = {
        "transposed": base.T,
        "expanded": base[:1].expand(60, 60),
        "strided rows": base[::2],
    }[view]
    teacher = normal(*student.shape, seed=1)
    fused, eager = (
        kd_loss(student, teacher, impl=impl, reduction="none") for impl in ("fused", "eager")
    )
    exact = kd_loss(student.double(), teacher.double(), reduction="none")
    assert_within_budget(fused.loss, exact.loss, eager.loss)


def test_without_a_library_it_runs_eager_and_fused_says_why(monkeypatch):
    monkeypatch.setitem(ops._MISSING_KERNELS, "cpu", "no compiler")
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(kd_loss(student, teacher).loss, kd_loss(student, teacher, impl="eager").loss)
    with pytest.raises(RuntimeError, match="no compiler"):
        kd_loss(student, teacher, impl="fused")


def test_other_device_types_have_no_kernels():
    assert "meta" in ops.missing_kernels("meta")
