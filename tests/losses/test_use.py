"""The loss inside torch's machinery: each way of running it gives the numbers of the plain run."""

import copy
import pickle

import pytest
import torch
from budget import assert_within_budget
from dense_kd_input import normal
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import mkd_fast as mkd
from mkd_fast import LossSpec, kd_loss

LABELS = torch.tensor([3, -100, 0, 4, 6, -100, 1, 2])
MASK = torch.tensor([True, True, False, True, True, False, True, True])
every_impl = pytest.mark.parametrize("impl", ["eager", "fused"])
torch_warns_of_its_own_scripts = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"
)


def of_logits(impl: str | None, *, num_rows: int = 8, **fields):
    """A loss of logits [N, 7] with labels, some of them ignored."""
    teacher, labels = normal(num_rows, 7, seed=1), LABELS[:num_rows]
    options = {"temperature": 2.0, "ce_weight": 0.5} | fields

    def loss(student: Tensor) -> Tensor:
        return kd_loss(student, teacher, labels, impl=impl, **options).loss

    return loss


def value_and_gradients(loss, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def of_everything(impl, student, hidden, teacher, teacher_hidden, labels, mask, num_tokens):
    return kd_loss(
        student, teacher, labels, student_hidden=hidden, teacher_hidden=teacher_hidden,
        mask=mask, num_tokens=num_tokens, impl=impl,
        temperature=2.0, ce_weight=0.5, hidden_weight=0.3,
    ).loss  # fmt: skip


@pytest.mark.parametrize(
    ("impl", "backend"), [("eager", "aot_eager"), ("fused", "aot_eager"), ("fused", "inductor")]
)
@torch_warns_of_its_own_scripts
# Dynamo itself does that.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_one_compiled_graph_serves_every_batch_size(impl, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(of_everything, fullgraph=True, backend=counter)
    for num_rows in (8, 6):
        tensors = [normal(num_rows, width, seed=width) for width in (7, 5)] * 2
        tensors = [tensor.clone() for tensor in (*tensors, LABELS[:num_rows], MASK[:num_rows])]
        tensors[2:4] = [tensor + 0.5 * tensor.flip(0) for tensor in tensors[2:4]]  # the teacher's
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        results = []
        for function in (compiled, of_everything):
            leaves = [tensor.requires_grad_() for tensor in tensors[:2]]
            value = function(impl, *tensors, torch.tensor(5.0))
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
        assert_equal(*results)
    assert counter.frame_count == 1


@every_impl
class TestLowPrecision:
    def test_autocast_changes_nothing(self, impl):
        """What a model hands over is bfloat16; the loss sums it in float32 all the same."""
        student = normal(8, 7, seed=0, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            inside = value_and_gradients(of_logits(impl), student)
        assert inside[0].dtype == torch.float32
        assert_equal(inside, value_and_gradients(of_logits(impl), student))

    @pytest.mark.parametrize("scale", [2.0**-4, 2.0**10])
    def test_a_scaled_loss_has_a_scaled_gradient(self, impl, scale):
        """As torch.amp.GradScaler does for float16."""
        student = normal(8, 7, seed=0, dtype=torch.float16)
        exact, plain = (
            value_and_gradients(lambda z: of_logits("eager")(z) * scale, student.to(dtype))[1]
            for dtype in (torch.float64, torch.float32)
        )
        scaled = value_and_gradients(lambda z: of_logits(impl)(z) * scale, student)[1]
        assert_within_budget(scaled, exact, plain.half())

    def test_a_scaled_mean_over_many_tokens_does_not_underflow(self, impl):
        """Divided by 4,096 first, a fifth of its gradient would be less than float16 holds."""
        student = normal(4096, 60, seed=0, dtype=torch.float16)
        teacher = normal(4096, 60, seed=1, dtype=torch.float16)

        def scaled(logits, impl="eager"):
            loss = kd_loss(logits, teacher.to(logits.dtype), impl=impl).loss * 65536.0
            return torch.autograd.grad(loss, logits)[0]

        exact, plain = (
            scaled(student.to(dtype).requires_grad_()) for dtype in (torch.float64, torch.float32)
        )
        actual = scaled(student.detach().requires_grad_(), impl)
        is_small = exact.abs() < 6e-8 * 65536.0
        assert is_small.float().mean() > 0.2
        assert_within_budget(actual, exact, plain.half())
        relative = (actual.double() - exact).abs() / exact.abs()
        assert relative[is_small].median() < torch.finfo(torch.float16).eps


@every_impl
@pytest.mark.parametrize("use_reentrant", [False, True])
class TestActivationCheckpointing:
    def test_around_the_loss(self, impl, use_reentrant):
        loss, student = of_logits(impl), normal(8, 7, seed=0)
        kept = value_and_gradients(loss, student)
        leaf = student.clone().requires_grad_()
        value = checkpoint(loss, leaf, use_reentrant=use_reentrant)
        value.backward()  # torch.autograd.grad is refused by the reentrant kind
        assert_equal([value.detach(), leaf.grad], kept)

    def test_around_the_model(self, impl, use_reentrant):
        loss, hidden = of_logits(impl), normal(8, 5, seed=0)
        model = torch.nn.Linear(5, 7)
        kept = value_and_gradients(lambda h: loss(model(h)), hidden)
        leaf = hidden.clone().requires_grad_()
        value = loss(checkpoint(model, leaf, use_reentrant=use_reentrant))
        value.backward()
        assert_equal([value.detach(), leaf.grad], kept)


class TestTransforms:
    student = normal(8, 7, seed=0)

    def test_functional_call_takes_the_gradient_of_parameters(self):
        model = torch.nn.Linear(5, 7)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        hidden = normal(8, 5, seed=2)

        def loss(parameters):
            return of_logits(None)(functional_call(model, parameters, hidden))

        functional = grad(loss)(parameters)
        of_logits("eager")(model(hidden)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(functional[name], parameter.grad)

    def test_vmap_takes_each_token_by_itself(self):
        teacher = normal(8, 7, seed=1)
        each = vmap(lambda *token: kd_loss(*token, ce_weight=0.5).loss)(
            self.student, teacher, LABELS
        )
        whole = kd_loss(
            self.student, teacher, LABELS, ce_weight=0.5, reduction="none", impl="eager"
        )
        torch.testing.assert_close(each, whole.loss)

    @torch_warns_of_its_own_scripts
    def test_jvp_is_the_gradient_along_a_direction(self):
        direction = normal(8, 7, seed=4)
        _, along = jvp(of_logits(None), (self.student,), (direction,))
        _, gradient = value_and_gradients(of_logits("eager"), self.student)
        torch.testing.assert_close(along, (gradient * direction).sum(), check_dtype=False)

    @torch_warns_of_its_own_scripts
    def test_second_derivatives_are_symmetric(self):
        double = self.student.double()
        matrix = hessian(of_logits(None))(double).reshape(56, 56)
        torch.testing.assert_close(matrix, matrix.T)
        one_by_one = jacrev(grad(of_logits("eager")))(double).reshape(56, 56)
        torch.testing.assert_close(matrix, one_by_one)

    @pytest.mark.parametrize("transform", [grad, jacrev, hessian, vmap])
    def test_fused_says_that_it_needs_plain_torch(self, transform):
        argument = self.student[None] if transform is vmap else self.student
        with pytest.raises(
            RuntimeError, match=r"impl='fused' .* got a torch.func transform, which"
        ):
            transform(of_logits("fused"))(argument)

    @torch_warns_of_its_own_scripts
    def test_fused_has_no_forward_mode(self):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(self.student, self.student)
            with pytest.raises(NotImplementedError, match="forward mode AD"):
                of_logits("fused")(dual)


@every_impl
class TestInputs:
    def test_a_student_row_for_many_tokens_gets_the_sum_of_their_gradients(self, impl):
        row = normal(1, 7, seed=0)
        _, summed = value_and_gradients(lambda z: of_logits(impl)(z.expand(8, 7)), row)
        exact, plain = (
            value_and_gradients(of_logits("eager"), row.expand(8, 7).to(dtype))[1].sum(0)
            for dtype in (torch.float64, torch.float32)
        )
        assert_within_budget(summed[0], exact, plain)

    def test_a_transposed_student_gets_its_gradient_transposed(self, impl):
        columns = normal(7, 8, seed=0)
        strided = value_and_gradients(lambda z: of_logits(impl)(z.T), columns)
        plain = value_and_gradients(of_logits(impl), columns.T.contiguous())
        assert_equal(strided, [plain[0], plain[1].T])

    def test_no_tokens_have_no_gradient(self, impl):
        value, gradient = value_and_gradients(of_logits(impl, num_rows=0), torch.zeros(0, 7))
        assert value.item() == 0
        assert gradient.shape == (0, 7)

    @pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 2, 2)])
    def test_leading_dimensions_are_free(self, impl, shape):
        student, teacher, labels = normal(8, 7, seed=0), normal(8, 7, seed=1), LABELS

        def shaped(z):
            batch = teacher.view(*shape, 7), labels.view(shape)
            return kd_loss(z.view(*shape, 7), *batch, ce_weight=0.5, impl=impl).loss

        flat = value_and_gradients(of_logits(impl, temperature=1.0), student)
        assert_equal(value_and_gradients(shaped, student), flat)

    def test_one_token_needs_no_leading_dimension(self, impl):
        alone = value_and_gradients(
            lambda z: of_logits(impl, num_rows=1)(z[None]), normal(7, seed=0)
        )
        one = value_and_gradients(
            lambda z: (
                kd_loss(
                    z, normal(1, 7, seed=1)[0], LABELS[0], temperature=2.0, ce_weight=0.5, impl=impl
                ).loss
            ),
            normal(7, seed=0),
        )
        assert_equal(one, alone)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_autograd_it_is_the_same_value(self, impl, mode):
        student = normal(8, 7, seed=0).requires_grad_()
        with mode():
            value = of_logits(impl)(student)
        assert not value.requires_grad
        assert torch.equal(value, of_logits(impl)(student).detach())

    def test_fake_tensors_pass_through(self, impl):
        with FakeTensorMode(allow_non_fake_inputs=True):
            value, gradient = value_and_gradients(of_logits(impl), torch.empty(8, 7))
        assert value.shape == ()
        assert gradient.shape == (8, 7)


def test_a_gradient_that_nobody_needs_is_not_computed(monkeypatch):
    """The op is told so, and returns an empty one."""
    asked = []
    op = torch.ops.mkd_fast.dense_kd

    def spy(*args, **options):
        asked.append(options["needs_grad_student"])
        return op(*args, **options)

    monkeypatch.setattr(torch.ops.mkd_fast, "dense_kd", spy)
    for student in (normal(8, 7, seed=0), normal(8, 7, seed=0).requires_grad_()):
        of_logits("fused")(student)
    with torch.no_grad():
        of_logits("fused")(student)
    assert asked == [False, True, False]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_specification_and_its_module_can_be_copied(copied):
    spec = LossSpec("alpha_beta", alpha_beta=(0.2, 0.7), softcap=30.0)
    assert copied(spec) == spec
    assert copied(mkd.KDLoss(spec)).spec == spec
