"""What linear_kd_loss holds at once, counted: inputs, their gradients and one chunk."""

import weakref

import pytest
import torch
from linear_input import normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mkd_fast import TeacherHead, linear_kd_loss

N, D, V = 512, 8, 1024
CHUNK = 40 * V * 4 * 3  # forty float32 tokens: logits of either side and their gradient


class Storages(TorchDispatchMode):
    """Sizes of what torch allocates while this is entered: the largest, and the most at once."""

    def __init__(self, known):
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holds_one_chunk(dtype, reduction):
    inputs = [normal(*shape, seed=0).to(dtype) for shape in ((N, D), (V, D), (N, D), (V, D))]
    hidden, weight = (tensor.requires_grad_() for tensor in inputs[:2])
    with Storages(inputs) as storages:
        out = linear_kd_loss(
            hidden, weight, TeacherHead(*inputs[2:]), max_chunk_bytes=CHUNK, reduction=reduction
        )
        out.loss.sum().backward()
    gradients = (N + V) * D * (4 + dtype.itemsize)  # float32 sums, and what they are rounded to
    small = 16 * N * 4  # values a token
    assert storages.peak > CHUNK / 2, "something was counted"
    assert storages.largest < N * V * dtype.itemsize / 2
    assert storages.peak <= CHUNK + gradients + small
