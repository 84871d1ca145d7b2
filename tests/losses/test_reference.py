"""The specification itself: gradients by finite differences, closed forms, and limits."""

import math

import pytest
import torch
from torch.nn import functional

from mkd_fast import LossSpec, SampledTeacher, SparseTeacher, TeacherHead, kd_loss

ALPHA_BETAS = [(0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, -0.5), (0.0, 0.0), (-0.3, 1.0)]
SPECS = {
    "forward_kl": LossSpec(),
    "reverse_kl": LossSpec(divergence="reverse_kl"),
    "jeffreys": LossSpec(divergence="jeffreys"),
    "jsd": LossSpec(divergence="jsd", beta=0.3),
    "skew_forward_kl": LossSpec(divergence="skew_forward_kl", beta=0.1),
    "skew_reverse_kl": LossSpec(divergence="skew_reverse_kl", beta=0.1),
    "tvd": LossSpec(divergence="tvd"),
    "logit_mse": LossSpec(divergence="logit_mse"),
} | {f"alpha_beta{ab}": LossSpec(divergence="alpha_beta", alpha_beta=ab) for ab in ALPHA_BETAS}


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eager(student, teacher, labels=None, **fields):
    return kd_loss(student, teacher, labels, impl="eager", **fields)


@pytest.mark.parametrize("name", SPECS)
def test_gradcheck(name):
    spec = SPECS[name]
    student = logits(3, 5).requires_grad_()
    hidden, teacher_hidden = logits(3, 4, seed=2).requires_grad_(), logits(3, 4, seed=3)
    labels = torch.tensor([1, -100, 4])
    spec = LossSpec(
        **{
            **vars(spec),
            "temperature": 1.7,
            "teacher_temperature": 0.8,
            "ce_weight": 0.4,
            "hidden_weight": 0.3,
            "softcap": 5.0,
            "logit_scale": 1.3,
        }
    )

    def loss(student, hidden):
        pair = {"student_hidden": hidden, "teacher_hidden": teacher_hidden}
        return eager(student, logits(3, 5, seed=1), labels, spec=spec, **pair).loss

    assert torch.autograd.gradcheck(loss, (student, hidden))


@pytest.mark.parametrize("name", SPECS)
def test_is_zero_with_zero_gradient_where_both_sides_agree(name):
    student = logits(4, 9).requires_grad_()
    out = eager(student, student.detach(), spec=SPECS[name])
    out.loss.backward()
    rounding = torch.finfo(torch.float64).eps * 9
    assert abs(out.loss.item()) <= rounding
    assert student.grad.abs().max().item() <= rounding


@pytest.mark.parametrize("name", [n for n in SPECS if n != "logit_mse"])
def test_ignores_a_shift_and_its_gradient_rows_sum_to_zero(name):
    student, teacher = logits(4, 9).requires_grad_(), logits(4, 9, seed=1)
    out = eager(student, teacher, spec=SPECS[name])
    shifted = eager(student + 3.0, teacher - 2.0, spec=SPECS[name])
    torch.testing.assert_close(out.loss, shifted.loss)
    out.loss.backward()
    assert student.grad.sum(-1).abs().max().item() <= torch.finfo(torch.float64).eps * 9


def test_forward_kl_is_torch_s_kl_div():
    student, teacher = logits(4, 9), logits(4, 9, seed=1)
    expected = functional.kl_div(
        (student / 2).log_softmax(-1),
        (teacher / 2).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    out = eager(student, teacher, temperature=2.0, reduction="sum")
    torch.testing.assert_close(out.loss, 4 * expected)


def test_relations_between_divergences():
    student, teacher = logits(4, 9), logits(4, 9, seed=1)

    def value(divergence, **fields):
        return eager(student, teacher, divergence=divergence, **fields).kd

    forward, reverse = value("forward_kl"), value("reverse_kl")
    torch.testing.assert_close(value("jeffreys"), forward + reverse)
    torch.testing.assert_close(value("jsd", beta=0.0), forward)
    torch.testing.assert_close(value("jsd", beta=1.0), reverse)
    torch.testing.assert_close(value("skew_forward_kl", beta=0.0), forward)
    torch.testing.assert_close(value("skew_reverse_kl", beta=0.0), reverse)
    mixed = (value("skew_forward_kl", beta=0.5) + value("skew_reverse_kl", beta=0.5)) / 2
    torch.testing.assert_close(value("jsd", beta=0.5), mixed)
    torch.testing.assert_close(value("alpha_beta", alpha_beta=(1.0, 0.0)), forward)
    torch.testing.assert_close(value("alpha_beta", alpha_beta=(0.0, 1.0)), reverse)


@pytest.mark.parametrize("limit", [(0.6, 0.0), (0.0, 0.6), (0.6, -0.6), (0.0, 0.0)])
def test_alpha_beta_limits_are_the_limits(limit):
    student, teacher = logits(4, 9), logits(4, 9, seed=1)
    step = 1e-5

    def value(alpha, beta):
        return eager(student, teacher, divergence="alpha_beta", alpha_beta=(alpha, beta)).loss

    beside = value(limit[0] + step, limit[1] + 2 * step)
    other_side = value(limit[0] - step, limit[1] - 2 * step)
    distance = (beside - other_side).abs().item()  # the function is smooth across its limit
    assert abs(value(*limit).item() - (beside + other_side).item() / 2) <= distance


def test_jsd_is_bounded_by_the_entropy_of_its_share():
    student, teacher = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
    out = eager(student, teacher, divergence="jsd", beta=0.3)
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    torch.testing.assert_close(out.loss, torch.tensor(entropy))


def test_temperature_squared_scales_value_and_gradient():
    with_square, without = logits(4, 9).requires_grad_(), logits(4, 9).requires_grad_()
    teacher = logits(4, 9, seed=1)
    a = eager(with_square, teacher, temperature=3.0)
    b = eager(without, teacher, temperature=3.0, temperature_squared=False)
    (a.loss + b.loss).backward()
    torch.testing.assert_close(a.loss, 9 * b.loss)
    torch.testing.assert_close(with_square.grad, 9 * without.grad)


def test_tvd_has_no_gradient_at_ties():
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    eager(student, torch.zeros(1, 4), divergence="tvd").loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(
    "name",
    [
        "forward_kl",
        "jsd",
        "skew_forward_kl",
        "tvd",
        "alpha_beta(0.2, 0.7)",
        "alpha_beta(1.0, 0.0)",
    ],
)
def test_a_teacher_column_of_minus_infinity_is_a_zero_probability(name):
    student, teacher = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    teacher[:, 2] = -torch.inf
    finite = teacher.masked_fill(teacher == -torch.inf, -1e4)
    out = eager(student, teacher, spec=SPECS[name])
    torch.testing.assert_close(out.loss, eager(student, finite, spec=SPECS[name]).loss)
    out.loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in SPECS if n != "logit_mse"])
def test_a_column_that_neither_side_may_take_changes_nothing(name):
    student, teacher = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    impossible = torch.full((4, 1), -torch.inf, dtype=torch.float64)
    wider, wider_teacher = (
        torch.cat([student, impossible], -1),
        torch.cat([teacher, impossible], -1),
    )
    out, wide = (
        eager(*sides, spec=SPECS[name]) for sides in ((student, teacher), (wider, wider_teacher))
    )
    torch.testing.assert_close(wide.loss, out.loss)
    (gradient,) = torch.autograd.grad(out.loss, student)
    torch.testing.assert_close(torch.autograd.grad(wide.loss, student)[0], gradient)


def test_reverse_kl_is_infinite_where_only_the_teacher_is_zero():
    teacher = logits(1, 6, seed=1)
    teacher[:, 2] = -torch.inf
    assert eager(logits(1, 6), teacher, divergence="reverse_kl").loss == torch.inf


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop", "uniform"])
def test_a_sparse_teacher_that_keeps_everything_is_the_dense_one(tail, divergence):
    student, teacher = logits(2, 3, 7).requires_grad_(), logits(2, 3, 7, seed=1)
    order = torch.argsort(logits(2, 3, 7, seed=2))  # ids need no order
    sparse = SparseTeacher(order, teacher.gather(-1, order), (teacher / 2).logsumexp(-1), tail=tail)
    out = eager(student, sparse, temperature=2.0, divergence=divergence)
    dense = eager(student, teacher, temperature=2.0, divergence=divergence)
    torch.testing.assert_close(out.loss, dense.loss)
    (gradient,) = torch.autograd.grad(out.loss, student)
    torch.testing.assert_close(gradient, *torch.autograd.grad(dense.loss, student))


def sparse_case(tail):
    student, teacher = logits(3, 8).requires_grad_(), logits(3, 8, seed=1)
    values, ids = teacher.topk(3)
    ids = torch.cat([ids, torch.full((3, 2), -1)], -1)  # empty slots, whatever their values
    values = torch.cat([values, torch.full((3, 2), 7.0)], -1)
    return student, teacher, SparseTeacher(ids, values, teacher.logsumexp(-1), tail=tail)


def test_bucket_compares_k_plus_one_events():
    student, teacher, sparse = sparse_case("bucket")
    p, q = teacher.softmax(-1), student.softmax(-1)
    kept = sparse.ids[:, :3]
    p_kept, q_kept = p.gather(1, kept), q.gather(1, kept)
    rest, q_tail = 1 - p_kept.sum(-1), 1 - q_kept.sum(-1)
    expected = (p_kept * (p_kept / q_kept).log()).sum(-1) + rest * (rest / q_tail).log()
    out = eager(student, sparse, reduction="none")
    torch.testing.assert_close(out.loss, expected)
    out.loss.sum().backward()
    outside = torch.ones(3, 8, dtype=torch.bool).scatter(1, kept, False)
    torch.testing.assert_close(student.grad[outside], (q * (1 - rest / q_tail)[:, None])[outside])


@pytest.mark.parametrize("tail", ["renormalize", "drop", "uniform"])
def test_other_tails_are_dense_teachers_written_out(tail):
    student, teacher, sparse = sparse_case(tail)
    is_kept = torch.zeros(3, 8, dtype=torch.bool).scatter(1, sparse.ids[:, :3], True)
    p, log_q = teacher.softmax(-1), student.log_softmax(-1)
    target = torch.where(is_kept, p, 0.0)
    if tail == "renormalize":
        target = target / target.sum(-1, keepdim=True)
    if tail == "uniform":
        target = torch.where(is_kept, p, (1 - target.sum(-1, keepdim=True)) / 5)
    expected = (torch.special.xlogy(target, target) - target * log_q).sum(-1)
    torch.testing.assert_close(eager(student, sparse, reduction="none").loss, expected)


def test_a_sampled_teacher_has_the_dense_gradient_in_expectation():
    student, teacher = logits(1, 6).requires_grad_(), logits(1, 6, seed=1)
    p = teacher.softmax(-1)
    proposal = p.sqrt() / p.sqrt().sum()
    num_draws, num_trials = 20, 4000
    draws = torch.multinomial(
        proposal.expand(num_trials, -1), num_draws, replacement=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    counts = torch.zeros(num_trials, 6, dtype=torch.float64).scatter_add(
        1, draws, torch.ones_like(draws, dtype=torch.float64)
    )
    weights = p / proposal * counts / num_draws
    ids = torch.arange(6).expand(num_trials, -1)
    rows = student.expand(num_trials, -1)
    out = eager(rows, SampledTeacher(ids, weights), temperature=1.0)
    (mean_gradient,) = torch.autograd.grad(out.loss, student)
    (dense,) = torch.autograd.grad(eager(student, teacher).loss, student)
    gradients = student.softmax(-1).detach() * weights.sum(-1, keepdim=True) - weights
    five_sigma = 5 * gradients.std(0) / math.sqrt(num_trials)
    assert ((mean_gradient - dense)[0].abs() <= five_sigma).all()


def test_a_teacher_head_is_the_dense_teacher_it_makes():
    student, hidden, weight, bias = logits(2, 3, 7), logits(2, 3, 4), logits(7, 4), logits(7)
    out = eager(student, TeacherHead(hidden, weight, bias), temperature=2.0)
    torch.testing.assert_close(
        out.loss, eager(student, hidden @ weight.T + bias, temperature=2.0).loss
    )


def test_hidden_error_is_the_mean_over_layers_positions_and_width():
    student, teacher = logits(2, 5), logits(2, 5, seed=1)
    ours = [logits(2, 3, 4, seed=s) for s in (2, 3)]
    theirs = [logits(2, 3, 4, seed=s) for s in (4, 5)]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    out = eager(
        student, teacher, student_hidden=ours, teacher_hidden=theirs, hidden_mask=mask,
        hidden_weight=1.0, kd_weight=0.0, reduction="none",
    )  # fmt: skip
    squared = torch.stack([(a - b).square().mean(-1) for a, b in zip(ours, theirs, strict=True)])
    expected = [squared[:, 0, :2].mean(), squared[:, 1, :1].mean()]
    torch.testing.assert_close(out.loss, torch.stack(expected))


def test_softcap_caps_and_scale_scales():
    student, teacher = logits(2, 5), logits(2, 5, seed=1)
    capped = eager(student, teacher, softcap=2.0, logit_scale=3.0, teacher_logit_scale=0.5)
    by_hand = eager(2 * torch.tanh(3 * student / 2), 2 * torch.tanh(0.5 * teacher / 2))
    torch.testing.assert_close(capped.loss, by_hand.loss)
    only_student = eager(student, teacher, softcap=2.0, teacher_softcap=None)
    torch.testing.assert_close(only_student.loss, eager(2 * torch.tanh(student / 2), teacher).loss)
