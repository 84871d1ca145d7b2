"""The gradients of a head's input, weight and bias, summed chunk by chunk in float32.

With the gradient G of a chunk's logits, ``[c, V]``, those are G W, G' h and the sum of G's rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# N tokens of all chunks, c of one; V vocabulary, D width

# Float32 sums meet what is added to them, and what they are rounded to, in the cache of a CPU.
_CPU_BLOCK_BYTES = 4 << 20
_DEVICE_BLOCK_BYTES = 256 << 20


class HeadGradients:
    """Sums over chunks of what is asked for; None of what is not.

    Columns of a chunk where no gradient's size exceeds ``skip_below`` are left out of both
    products, unless they are less than half of all.

    Attributes:
        hidden: ``[N, D]``, float32 (float64 for float64).
        weight: ``[V, D]``.
        bias: ``[V]``.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        needs: tuple[bool, bool, bool],
        skip_below: float | None,
    ) -> None:
        dtype = torch.promote_types(weight_VD.dtype, torch.float32)

        def zeros(like: Tensor, is_needed: bool) -> Tensor | None:
            return torch.zeros_like(like, dtype=dtype) if is_needed else None

        self.hidden = zeros(hidden_ND, needs[0])
        self.weight = zeros(weight_VD, needs[1])
        self.bias = zeros(weight_VD[:, 0], needs[2])
        self._skip_below = skip_below

    def add(self, begin: int, grad_cV: Tensor, hidden_cD: Tensor, weight_VD: Tensor) -> None:
        """Add a chunk whose first token is ``begin``; columns past those of ``grad_cV`` get 0."""
        num_tokens, num_columns = grad_cV.shape
        weight_VD = weight_VD[:num_columns]
        if self.bias is not None:
            self.bias[:num_columns] += grad_cV.sum(0, dtype=self.bias.dtype)
        columns = None if self._skip_below is None else _large_columns(grad_cV, self._skip_below)
        if columns is not None:
            grad_cV = grad_cV.index_select(1, columns)
            weight_VD = weight_VD.index_select(0, columns)
        if self.hidden is not None:
            self.hidden[begin : begin + num_tokens] = grad_cV @ weight_VD
        if self.weight is not None:
            _add_product(self.weight[:num_columns], columns, grad_cV, hidden_cD)


def scaled(total: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``total * scale`` in ``dtype``; ``total`` is spent."""
    if total.dtype == dtype:
        return total if scale is None else total.mul_(scale)
    result = torch.empty_like(total, dtype=dtype)
    for block in _blocks(total, len(total)):
        result[block] = total[block] if scale is None else total[block].mul_(scale)
    return result


def _large_columns(grad_cV: Tensor, skip_below: float) -> Tensor | None:
    """Columns with a gradient above ``skip_below`` or NaN; None where they are most of all."""
    if len(grad_cV) == 0:
        return None
    low_V, high_V = grad_cV.aminmax(dim=0)
    is_small_V = torch.maximum(high_V, -low_V) <= skip_below
    columns = (~is_small_V).nonzero().squeeze(1)
    return columns if 2 * len(columns) <= grad_cV.shape[1] else None


def _add_product(
    total_VD: Tensor, columns: Tensor | None, grad_cV: Tensor, hidden_cD: Tensor
) -> None:
    """``total[columns] += grad' @ hidden``, without rounding the sum to less than its dtype."""
    if columns is None and total_VD.dtype == grad_cV.dtype:
        total_VD.addmm_(grad_cV.T, hidden_cD)
        return
    for block in _blocks(total_VD, grad_cV.shape[1]):
        product = _product(grad_cV[:, block].T, hidden_cD, total_VD.dtype)
        if columns is None:
            total_VD[block] += product
        else:
            total_VD.index_add_(0, columns[block], product.to(total_VD.dtype))


def _blocks(total: Tensor, num_rows: int) -> Iterator[slice]:
    """``num_rows`` rows as wide as those of ``total``, cut into blocks."""
    block_bytes = _CPU_BLOCK_BYTES if total.device.type == "cpu" else _DEVICE_BLOCK_BYTES
    step = max(1, block_bytes // (total.element_size() * total.shape[1:].numel()))
    for begin in range(0, num_rows, step):
        yield slice(begin, begin + step)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b``, not rounded to 16 bits on the way to ``dtype`` where torch can."""
    if a.is_cuda and a.dtype != dtype and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=dtype)
    return a @ b
