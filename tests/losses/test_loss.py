"""The public contract of kd_loss: what counts, how it is reduced, and every error's words."""

import pytest
import torch

import mkd_fast as mkd
from mkd_fast import LossSpec, SampledTeacher, SparseTeacher, kd_loss
from mkd_fast.losses.spec import DIVERGENCES

PATHS = ["eager", None]  # None: fused where it is built
# An infinite logit makes logit_mse infinite instead; alpha_beta needs its own argument.
NOT_A_NUMBER = [(d, torch.nan) for d in DIVERGENCES if d != "alpha_beta"]
NOT_A_NUMBER += [(d, torch.inf) for d, _ in NOT_A_NUMBER if d != "logit_mse"]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(impl, labels=None, mask=None, student=None, **fields):
    student = logits(2, 3, 7) if student is None else student
    student = student.clone().requires_grad_()
    out = kd_loss(student, logits(2, 3, 7, seed=1), labels, mask=mask, impl=impl, **fields)
    out.loss.sum().backward()
    return out, student.grad


@pytest.mark.parametrize("impl", PATHS)
class TestWhatCounts:
    labels = torch.tensor([[1, -100, 3], [-100, 0, 6]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    counted = torch.tensor([[True, False, False], [False, True, True]])

    def test_ignored_and_masked_tokens_do_not_count(self, impl):
        out, grad = run(impl, self.labels, self.mask, ce_weight=0.5)
        per_token, _ = run(impl, self.labels, self.mask, ce_weight=0.5, reduction="none")
        torch.testing.assert_close(out.loss, per_token.loss[self.counted].mean())
        assert torch.equal(per_token.loss != 0, self.counted)
        assert torch.equal((grad != 0).any(-1), self.counted)

    def test_what_ignored_tokens_hold_does_not_matter(self, impl):
        broken = logits(2, 3, 7).masked_fill(~self.counted[:, :, None], torch.nan)
        out, grad = run(impl, self.labels, self.mask, student=broken, ce_weight=0.5)
        clean, clean_grad = run(impl, self.labels, self.mask, ce_weight=0.5)
        assert torch.equal(out.loss, clean.loss)
        assert torch.equal(grad, clean_grad)

    def test_nothing_counts(self, impl):
        out, grad = run(impl, torch.full((2, 3), -100), ce_weight=0.5)
        assert [out.loss.item(), out.kd.item(), out.ce.item()] == [0, 0, 0]
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_no_tokens_at_all(self, impl):
        out = kd_loss(torch.zeros(0, 7), torch.zeros(0, 7), impl=impl)
        assert out.loss.item() == 0

    def test_num_tokens_is_the_denominator_of_mean(self, impl):
        total, total_grad = run(impl, self.labels, reduction="sum")
        for count in (10, torch.tensor(10.0)):
            out, grad = run(impl, self.labels, num_tokens=count)
            torch.testing.assert_close(out.loss, total.loss / 10)
            torch.testing.assert_close(grad, total_grad / 10)

    def test_loss_is_the_weighted_sum_of_its_parts(self, impl):
        hidden = {"student_hidden": logits(2, 3, 4), "teacher_hidden": logits(2, 3, 4, seed=1)}
        weights = {"kd_weight": 0.7, "ce_weight": 0.2, "hidden_weight": 0.4}
        out, _ = run(impl, self.labels, temperature=2.0, **hidden, **weights)
        torch.testing.assert_close(out.loss, 0.7 * out.kd + 0.2 * out.ce + 0.4 * out.hidden)
        assert [part.requires_grad for part in (out.kd, out.ce, out.hidden)] == [False] * 3

    def test_padded_columns_get_no_probability_and_no_gradient(self, impl):
        student = torch.cat([logits(4, 7), torch.full((4, 3), 50.0)], -1).requires_grad_()
        teacher = torch.cat([logits(4, 7, seed=1), torch.full((4, 1), torch.nan)], -1)
        out = kd_loss(student, teacher, vocab_size=7, impl=impl)
        out.loss.backward()
        torch.testing.assert_close(out.loss, kd_loss(logits(4, 7), logits(4, 7, seed=1)).loss)
        assert torch.equal(student.grad[:, 7:], torch.zeros(4, 3))

    def test_any_leading_shape(self, impl):
        student, teacher = logits(2, 3, 7), logits(2, 3, 7, seed=1)
        whole = kd_loss(student, teacher, reduction="none", impl=impl).loss
        assert whole.shape == (2, 3)
        one = kd_loss(student[1, 2], teacher[1, 2], torch.tensor(3), impl=impl).loss
        torch.testing.assert_close(one, whole[1, 2])

    def test_incoming_gradients_scale_the_outgoing_ones(self, impl):
        _, grad = run(impl, reduction="sum")
        scales = logits(2, 3, seed=5)
        student = logits(2, 3, 7).requires_grad_()
        out = kd_loss(student, logits(2, 3, 7, seed=1), reduction="none", impl=impl)
        (out.loss * scales).sum().backward()
        torch.testing.assert_close(student.grad, grad * scales[..., None])

    @pytest.mark.parametrize("side", [0, 1])
    @pytest.mark.parametrize(("divergence", "value"), NOT_A_NUMBER)
    def test_nan_and_inf_make_their_token_nan(self, impl, divergence, value, side):
        sides = [logits(2, 3, 7), logits(2, 3, 7, seed=1)]
        sides[side][0, 1, 4] = value
        out = kd_loss(*sides, divergence=divergence, reduction="none", impl=impl)
        assert torch.equal(out.loss.isnan().nonzero(), torch.tensor([[0, 1]]))


def test_the_module_form_is_the_function():
    spec = LossSpec(temperature=2.0, ce_weight=0.5)
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    module = mkd.KDLoss(spec)
    student, teacher = logits(2, 3, 7), logits(2, 3, 7, seed=1)
    assert torch.equal(
        module(student, teacher, labels).loss, kd_loss(student, teacher, labels, spec=spec).loss
    )
    assert "temperature=2.0" in repr(module)
    assert mkd.KDLoss(temperature=2.0, ce_weight=0.5).spec == spec


def test_bfloat16_logits_are_summed_in_float32():
    student, teacher = logits(4, 900).bfloat16(), logits(4, 900, seed=1).bfloat16()
    out = kd_loss(student, teacher, impl="eager")
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(
        out.loss, kd_loss(student.float(), teacher.float(), impl="eager").loss
    )


S, T = logits(2, 3, 7), logits(2, 3, 7)
H = logits(2, 3, 4)
BAD_INPUT = {
    "no tensor": (TypeError, "student_logits must be a floating-point tensor", ([1.0], T), {}),
    "integers": (TypeError, "got torch.int64 (2,)", (torch.tensor([1, 2]), T), {}),
    "unknown teacher": (
        TypeError,
        "teacher must be logits or one of mkd_fast's kinds: SparseTeacher",
        (S, "teacher"),
        {},
    ),
    "vocabulary": (
        ValueError,
        "kd_loss: teacher_logits must have the student's vocabulary, 7 columns, got 9. "
        "Pass vocab_size=7 if the rest is padding.",
        (S, logits(2, 3, 9)),
        {},
    ),
    "vocab_size": (ValueError, "vocab_size must lie in [1, 7]", (S, T), {"vocab_size": 8}),
    "teacher shape": (
        ValueError,
        "teacher must have the student's leading shape",
        (S, logits(6, 7)),
        {},
    ),
    "labels shape": (
        ValueError,
        "labels must have the student's leading shape, (2, 3)",
        (S, T, torch.zeros(6, dtype=torch.int64)),
        {},
    ),
    "label range": (
        ValueError,
        "kd_loss: labels must lie in [0, 7) or be ignore_index=-100, got 7 at token 4. Set labels",
        (S, T, torch.tensor([[1, -100, 2], [3, 7, 4]])),
        {},
    ),
    "num_tokens": (ValueError, "num_tokens must be one number", (S, T), {"num_tokens": H[0, 0]}),
    "label dtype": (TypeError, "labels must be integer", (S, T, torch.zeros(2, 3)), {}),
    "mask dtype": (TypeError, "mask must be bool", (S, T), {"mask": torch.ones(2, 3)}),
    "ce without labels": (
        ValueError,
        "labels must be given when ce_weight",
        (S, T),
        {"ce_weight": 1.0},
    ),
    "teacher gradient": (
        ValueError,
        "teacher must not require a gradient",
        (S, T.clone().requires_grad_()),
        {},
    ),
    "one hidden side": (ValueError, "go together", (S, T), {"student_hidden": H}),
    "hidden missing": (ValueError, "go together", (S, T), {"hidden_weight": 1.0}),
    "hidden widths": (
        ValueError,
        "student_hidden[0] must have its teacher's shape, (2, 3, 5)",
        (S, T),
        {"student_hidden": H, "teacher_hidden": logits(2, 3, 5)},
    ),
    "hidden gradient": (
        ValueError,
        "teacher_hidden[0] must not require a gradient",
        (S, T),
        {"student_hidden": H, "teacher_hidden": H.clone().requires_grad_()},
    ),
    "hidden mask alone": (
        ValueError,
        "go together",
        (S, T),
        {"hidden_mask": torch.ones(2, 3).bool()},
    ),
    "tail": (
        ValueError,
        "Did you mean 'bucket'?",
        (S, SparseTeacher(torch.zeros(2, 3, 1).long(), H[..., :1], H[..., 0], tail="buckets")),
        {},
    ),
    "sampled divergence": (
        ValueError,
        "the divergence of a SampledTeacher must be 'forward_kl', got 'jsd'",
        (S, SampledTeacher(torch.zeros(2, 3, 1).long(), H[..., :1])),
        {"divergence": "jsd"},
    ),
    "sparse logit_mse": (
        ValueError,
        "the divergence of a SparseTeacher must be one of distributions, got 'logit_mse'",
        (S, SparseTeacher(torch.zeros(2, 3, 1).long(), H[..., :1], H[..., 0])),
        {"divergence": "logit_mse"},
    ),
    "both forms": (TypeError, "spec= and its fields", (S, T), {"spec": LossSpec(), "beta": 0.1}),
    "misspelt field": (TypeError, "Did you mean 'temperature'?", (S, T), {"temprature": 2.0}),
    "misspelt divergence": (
        ValueError,
        "Did you mean 'forward_kl'?",
        (S, T),
        {"divergence": "forward_k"},
    ),
    "misspelt reduction": (
        ValueError,
        "reduction must be a known name",
        (S, T),
        {"reduction": "avg"},
    ),
    "misspelt impl": (ValueError, "impl must be a known name", (S, T), {"impl": "cuda"}),
    "temperature": (ValueError, "temperature must be positive", (S, T), {"temperature": 0.0}),
    "weight": (ValueError, "kd_weight must be zero or positive", (S, T), {"kd_weight": -1.0}),
    "beta": (ValueError, "beta must lie in [0, 1]", (S, T), {"beta": 1.5}),
    "alpha_beta missing": (
        ValueError,
        "alpha_beta must be given",
        (S, T),
        {"divergence": "alpha_beta"},
    ),
    "fused float64": (
        RuntimeError,
        "torch.float64 has no fused kernel",
        (S.double(), T),
        {"impl": "fused"},
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    kind, words, args, kwargs = BAD_INPUT[case]
    with pytest.raises(kind) as error:
        kd_loss(*args, **kwargs)
    assert words in str(error.value)
