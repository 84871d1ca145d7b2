"""``mkd_fast::scale_``: a saved gradient times the incoming one, in place.

The incoming gradient is 1 for a plain ``loss.backward()``. Whether it is, is asked on the device:
the host never waits, and where it is 1 no program touches the gradient.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from mkd_fast.kernels.launch import Launch

_BLOCK = 2048


@triton.jit
def _scale(grad, scale, num_elements, ROW_ELEMENTS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of elements; ROW_ELEMENTS share a scale, or all of them do where it is None."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    element = start + tl.arange(0, BLOCK)
    is_element = element < num_elements
    if ROW_ELEMENTS is None:
        factor = tl.load(scale)
        is_needed = factor != 1.0
    else:
        factor = tl.load(scale + element // ROW_ELEMENTS, mask=is_element, other=1.0)
        is_needed = tl.max((factor != 1.0).to(tl.int32)) != 0
    if is_needed:
        if start + BLOCK <= num_elements:  # without a mask the loads are 16 bytes wide
            value = tl.load(grad + element).to(tl.float32) * factor
            tl.store(grad + element, value.to(grad.dtype.element_ty))
        else:
            value = tl.load(grad + element, mask=is_element, other=0.0).to(tl.float32) * factor
            tl.store(grad + element, value.to(grad.dtype.element_ty), mask=is_element)


def launch_of_scale(grad: Tensor, scale: Tensor) -> Launch:
    """The launch for a gradient that has elements."""
    arguments = {
        "grad": grad,
        "scale": scale,
        "num_elements": grad.numel(),
        "ROW_ELEMENTS": grad.numel() // len(scale) if scale.dim() else None,
        "BLOCK": _BLOCK,
    }
    return Launch(_scale, -(-grad.numel() // _BLOCK), arguments, num_warps=4)


def scale_(grad: Tensor, scale: Tensor) -> None:
    """The op of this name; its schema stands in losses/ops.py. ``grad`` is contiguous."""
    assert grad.is_contiguous(), "gradients of our ops are"
    if grad.numel():
        with torch.cuda.device_of(grad):
            launch_of_scale(grad, scale.contiguous()).run()  # that of a sum is one 1, expanded
