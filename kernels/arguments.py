"""What goes into a kernel, bundled: Triton takes named tuples of tensors and numbers.

A field that is None is a constant to the compiler, so what is not asked for costs nothing.
"""

from typing import NamedTuple

from torch import Tensor

# N tokens, V vocabulary, P positions of hidden states a token, D width


class Side(NamedTuple):
    """One side's logits."""

    logits: Tensor  # [N, V or more], columns contiguous
    stride: int  # elements from row to row
    logit_scale: float | None  # None: 1
    to_bits: float  # log2(e) / T: 2^(to_bits (z - max)) is the tempered exponential


class Tokens(NamedTuple):
    """Which tokens count, and how much one weighs in the reduced loss."""

    num: int
    labels: Tensor | None  # int64 [N]
    mask: Tensor | None  # bool [N]
    denominator: Tensor | None  # float32 [], on the device
    weight: float  # divided by the denominator where there is one
    ignore_index: int


class Terms(NamedTuple):
    """Constants of the loss; the slopes turn dD/dx into the gradient of a stored logit."""

    beta: float
    kd_scale: float
    kd_slope: float  # kd_weight * kd_scale * logit_scale / T
    ce_slope: float  # ce_weight * logit_scale


class Layer(NamedTuple):
    """A matched pair of hidden layers."""

    student: Tensor  # [N, P, D]
    teacher: Tensor  # [N, P, D]
    grad: Tensor | None  # [N, P, D], contiguous
    strides: tuple[int, int, int, int]  # student's token and position, teacher's


class Hidden(NamedTuple):
    """All matched layers."""

    layers: tuple[Layer, ...]
    mask: Tensor | None  # bool [N, P]
    num_positions: int  # P
    slope: float  # 2 * hidden_weight / number of layers
    errors: Tensor | None  # float32 [N * P], or one sum a program
