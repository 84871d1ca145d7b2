"""What other distillation losses have got wrong, each held against its definition in float64."""

import pytest
import torch
from budget import assert_within_budget
from dense_kd_input import normal
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy, linear

from mkd_fast import SparseTeacher, kd_loss, linear_kd_loss

pytestmark = pytest.mark.parametrize("impl", ["eager", "fused"])
STUDENT, TEACHER = normal(42, 9, seed=0), normal(42, 9, seed=1)
LABELS = torch.tensor([3, -100, 0, 8, -100, 5]).repeat(7)


def kl(z_p: Tensor, z_q: Tensor) -> Tensor:
    """KL of two distributions, from their logits; one value a token."""
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def assert_is(definition, loss) -> None:
    """Value and gradient of ``loss(student)`` are those of ``definition(student, teacher)``."""

    def both(function, *arguments: Tensor) -> list[Tensor]:
        leaf = arguments[0].detach().clone().requires_grad_()
        value = function(leaf, *arguments[1:])
        return [value.detach(), *torch.autograd.grad(value.sum(), leaf)]

    exact = both(definition, STUDENT.double(), TEACHER.double())
    plain = both(definition, STUDENT, TEACHER)
    for what in zip(both(loss, STUDENT), exact, plain, ("value", "gradient"), strict=True):
        assert_within_budget(*what)


# axolotl: the gradient lacks the factor
def test_temperature_squared_multiplies_value_and_gradient(impl):
    assert_is(
        lambda z, z_t: 16 * kl(z_t / 4, z / 4),
        lambda z: kd_loss(z, TEACHER, temperature=4.0, reduction="none", impl=impl).loss,
    )


# Fast-LLM: the teacher's side alone; elsewhere the student's alone
def test_temperature_softens_both_sides(impl):
    options = {"temperature": 3.0, "reduction": "none", "impl": impl}
    assert_is(
        lambda z, z_t: 9 * kl(z_t / 3, z / 3),
        lambda z: kd_loss(z, TEACHER, **options).loss,
    )
    assert_is(
        lambda z, z_t: 9 * kl(z_t / 0.5, z / 3),
        lambda z: kd_loss(z, TEACHER, teacher_temperature=0.5, **options).loss,
    )


# Liger: the narrower side is filled with logits of zero, which take probability
def test_padded_columns_have_no_probability(impl):
    with pytest.raises(ValueError, match="Pass vocab_size=7"):
        kd_loss(STUDENT, TEACHER[:, :7], impl=impl)
    assert_is(
        lambda z, z_t: kl(z_t[:, :7], z[:, :7]),
        lambda z: kd_loss(z, TEACHER[:, :7], vocab_size=7, reduction="none", impl=impl).loss,
    )


# Liger #1338: compiled, ignored tokens count
# Dynamo itself instantiates the function.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_ignored_tokens_do_not_count_when_compiled(impl):
    counts = LABELS != -100
    torch._dynamo.reset()
    assert_is(
        lambda z, z_t: kl(z_t, z)[counts].mean(),
        torch.compile(
            lambda z: kd_loss(z, TEACHER, LABELS, impl=impl).loss,
            fullgraph=True,
            backend="aot_eager",
        ),
    )


# Fused kernels that store the gradient of one term lose that of the other
def test_cross_entropy_has_its_gradient(impl):
    for kd_weight in (0.0, 1.0):
        assert_is(
            lambda z, z_t, w=kd_weight: (
                w * kl(z_t, z)[LABELS != -100].mean() + 0.5 * cross_entropy(z, LABELS)
            ),
            lambda z, w=kd_weight: (
                kd_loss(z, TEACHER, LABELS, kd_weight=w, ce_weight=0.5, impl=impl).loss
            ),
        )


# Liger's TVD: where p = q the gradient takes the sign of one side
def test_tvd_has_no_gradient_where_both_sides_agree(impl):
    impl = None if impl == "fused" else impl  # fused where there is a kernel
    student = STUDENT.clone().requires_grad_()
    kd_loss(student, STUDENT, divergence="tvd", impl=impl).loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(STUDENT))
    # q = (1/2, 1/4, 1/4) ties with p = (1/4, 1/4, 1/2) in the middle: G = (1/2, 0, -1/2), q G = 1/8
    q, p = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    logits = q.log().requires_grad_()
    kd_loss(logits, p.log(), divergence="tvd", impl=impl).loss.backward()
    exact = torch.tensor([3 / 16, -1 / 32, -5 / 32], dtype=torch.float64)
    assert_within_budget(logits.grad, exact, exact.float())


# Trainers that take the mean of each micro-batch, which weighs the tokens of short ones more
def test_mean_is_of_the_step_not_of_the_micro_batch(impl):
    def accumulated(z: Tensor) -> Tensor:
        parts = slice(0, 40), slice(40, 42)  # 27 tokens that count, and 1
        return sum(
            kd_loss(z[rows], TEACHER[rows], LABELS[rows], num_tokens=28, impl=impl).loss
            for rows in parts
        )

    assert_is(lambda z, z_t: kl(z_t, z)[LABELS != -100].mean(), accumulated)


# Liger's fused linear losses: each chunk's share of the weight's gradient is rounded to bfloat16
def test_weight_gradient_is_accumulated_in_float32(impl):
    hidden, weight = (normal(*shape, seed=2, size=1.0).bfloat16() for shape in ((256, 8), (9, 8)))
    teacher = normal(256, 9, seed=3)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = weight.to(dtype).requires_grad_()
        loss = kl(teacher.to(dtype), linear(hidden.to(dtype), leaf)).sum()
        return torch.autograd.grad(loss, leaf)[0]

    leaf = weight.clone().requires_grad_()
    options = {"reduction": "sum", "max_chunk_bytes": 64}
    linear_kd_loss(hidden, leaf, teacher, impl=impl, **options).loss.backward()
    assert_within_budget(leaf.grad, gradient(torch.float64), gradient(torch.float32).bfloat16())


# Liger, DistillKit: the incoming gradient or the loss is read on the host
def test_nothing_waits_for_the_device(impl):
    """A tensor without data has nothing to read: asking for a value raises."""
    with FakeTensorMode():
        student, teacher = torch.empty(6, 9, requires_grad=True), torch.empty(6, 9)
        labels, mask = torch.ones(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
        batch = {"mask": mask, "num_tokens": torch.ones(())}
        loss = kd_loss(student, teacher, labels, ce_weight=0.5, impl=impl, **batch).loss
        loss.backward(torch.empty(()))
        assert student.grad.shape == (6, 9)


# Losses on top-k logits: the kept probabilities are taken for all there is
def test_what_top_k_left_out_has_its_mass(impl):
    logits, ids = TEACHER.topk(3)
    teacher = SparseTeacher(ids, logits, TEACHER.logsumexp(-1))

    def events(z: Tensor) -> Tensor:
        """Log-probabilities of the kept ids and of any other."""
        log_p = z.log_softmax(-1)
        is_kept = torch.zeros_like(z, dtype=torch.bool).scatter(-1, ids, True)
        others = log_p.masked_fill(is_kept, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_p.gather(-1, ids), others], -1)

    assert_is(
        lambda z, z_t: kl(events(z_t), events(z)),
        lambda z: kd_loss(z, teacher, reduction="none", impl=impl).loss,
    )


# Losses that evaluate the formula at its ends, where it is zero (GKD defines them otherwise)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_jsd_ends_in_the_two_kl_divergences(impl, beta):
    options = {"divergence": "jsd", "beta": beta}
    assert_is(
        lambda z, z_t: kl(z, z_t) if beta else kl(z_t, z),
        lambda z: kd_loss(z, TEACHER, reduction="none", impl=impl, **options).loss,
    )


# orda-kernel, TRL #6629: a model's own softcap and logit scale never reach the loss
def test_softcap_and_logit_scale_come_before_the_temperature(impl):
    options = {"softcap": 2.0, "logit_scale": 0.5, "teacher_logit_scale": 1.5, "temperature": 2.0}
    assert_is(
        # softcap and temperature are both 2
        lambda z, z_t: 4 * kl(torch.tanh(1.5 * z_t / 2), torch.tanh(0.5 * z / 2)),
        lambda z: kd_loss(z, TEACHER, reduction="none", impl=impl, **options).loss,
    )
