"""Memory of large gradients: kept when their tensor is gone, and never while somebody has it."""

import pytest
import torch
from dense_kd_input import normal

from mkd_fast import kd_loss
from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)

SHAPE = (66, 128_256)  # 33.9 MB in float32
KEPT_BYTES = 34 * 2**20  # in whole huge pages


@pytest.fixture(autouse=True)
def _nothing_kept():
    torch.ops.mkd_fast.release_kept_memory()
    yield
    torch.ops.mkd_fast.release_kept_memory()


@pytest.fixture(scope="module")
def logits():
    return normal(*SHAPE, seed=0).requires_grad_(), normal(*SHAPE, seed=1)


def gradient_of(student, teacher, **arguments):
    return torch.autograd.grad(kd_loss(student, teacher, **arguments).loss, student)[0]


def test_a_gradient_takes_the_memory_of_one_that_is_gone(logits):
    address = gradient_of(*logits).data_ptr()
    assert gradient_of(*logits).data_ptr() == address
    assert torch.ops.mkd_fast.release_kept_memory() == KEPT_BYTES
    assert torch.ops.mkd_fast.release_kept_memory() == 0


def test_a_gradient_that_somebody_has_keeps_its_memory(logits):
    student, teacher = logits
    first = gradient_of(student, teacher)
    view, expected = first[60:, 5:], first[60:, 5:].clone()
    del first
    second = gradient_of(student, -teacher)
    assert not torch.equal(second[60:, 5:], expected)
    assert torch.equal(view, expected)


def test_nothing_of_a_former_gradient_shows(logits):
    student, teacher = logits
    address = gradient_of(student, teacher).data_ptr()
    mask = torch.arange(len(student)) % 2 == 0
    gradient = gradient_of(student, teacher, mask=mask, vocab_size=100_003)
    assert gradient.data_ptr() == address
    assert not gradient[~mask].any()
    assert not gradient[:, 100_003:].any()
    assert gradient[mask, :100_003].any(-1).all()
