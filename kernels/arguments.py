"""What goes into the kernels of the loss ops, bundled and derived from the op's arguments.

Triton takes named tuples of tensors and numbers. A field that is None is a constant to the
compiler, so what is not asked for costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# N tokens, V vocabulary, P positions of hidden states a token, D width

_LOG2E = math.log2(math.e)
_TIE_TERMS = 7  # of a series whose terms fall by a factor of 2 and the factorial
_SMALLEST_SQUARE = 1e-16  # lengths are at least 1e-8, as in losses/reference.py
# Where a mixture is one of the pair: by definition for jsd, as it comes for the others.
_ENDS = {
    ("jsd", 0.0): "forward_kl",
    ("jsd", 1.0): "reverse_kl",
    ("skew_forward_kl", 0.0): "forward_kl",
    ("skew_forward_kl", 1.0): "zero",
    ("skew_reverse_kl", 0.0): "reverse_kl",
    ("skew_reverse_kl", 1.0): "zero",
}


def is_centre_known(divergence: str) -> bool:
    """Whether the ``centre`` of pointwise.py follows from the first sweep of a row."""
    return divergence in ("forward_kl", "reverse_kl", "jeffreys", "zero", "logit_mse")


class Side(NamedTuple):
    """One side's logits."""

    logits: Tensor  # [N, V or more], columns contiguous
    stride: int  # elements from row to row
    logit_scale: float | None  # None: 1
    softcap: float | None  # None: off
    to_bits: float  # log2(e) / T: 2^(to_bits (z - max)) is the tempered exponential
    to_bits_high: float  # its first 12 bits
    to_bits_low: float  # and the rest of it


class Tokens(NamedTuple):
    """Which tokens count, and how much one weighs in the reduced loss."""

    num: int
    labels: Tensor | None  # int64 [N]
    mask: Tensor | None  # bool [N]
    denominator: Tensor | None  # float32 [], on the device
    weight: float  # divided by the denominator where there is one
    ignore_index: int


class Terms(NamedTuple):
    """Constants of the loss; the slopes turn a gradient of D or CE into that of a stored logit."""

    alpha: float
    beta: float
    value_to_kd: float  # kd_scale, times ln 2 where D is summed in bits
    kd_slope: float  # kd_weight * kd_scale * logit_scale / T
    ce_slope: float  # ce_weight * logit_scale
    alpha_parts: tuple[float, float]  # a multiple of 2^-12, and the rest of it
    beta_parts: tuple[float, float]
    total_parts: tuple[float, float]  # of alpha + beta
    near_tie: tuple[float, ...]  # D / q^(alpha + beta) is log(q / p)^2 times this series in it
    nearness: float  # up to this log(q / p)
    power_shift: float  # powers of alpha_beta are made 2^power_shift times as large from the start


class Layer(NamedTuple):
    """A matched pair of hidden layers."""

    student: Tensor  # [N, P, D]
    teacher: Tensor  # [N, P, D]
    scale: Tensor | None  # of an int8 teacher, float32 [N, P], contiguous
    grad: Tensor | None  # [N, P, D], contiguous
    strides: tuple[int, int, int, int]  # the student's token and position, the teacher's


class Hidden(NamedTuple):
    """All matched layers."""

    layers: tuple[Layer, ...]
    mask: Tensor | None  # bool [N, P]
    num_positions: int  # P, 1 without layers
    slope: float  # hidden_weight / number of layers
    smallest_square: float | None  # of a length in the cosine; None: squared error
    errors: Tensor | None  # float32: [N * P], or one sum a program


@dataclass(frozen=True)
class Options:
    """The keyword arguments of the op, as its schema in losses/ops.py defines them."""

    divergence: str
    alpha: float
    beta: float
    temperature: float
    teacher_temperature: float
    logit_scale: float
    teacher_logit_scale: float
    softcap: float
    teacher_softcap: float
    kd_scale: float
    kd_weight: float
    ce_weight: float
    hidden_weight: float
    hidden_distance: str
    vocab_size: int
    ignore_index: int
    reduction: str
    needs_grad_student: bool
    needs_grad_hidden: bool

    @property
    def resolved_divergence(self) -> str:
        """The DIVERGENCE of pointwise.py: ends of a range and limits are kinds of their own."""
        if self.divergence != "alpha_beta":
            return _ENDS.get((self.divergence, self.beta), self.divergence)
        if self.alpha == 0.0:
            return "alpha_beta_0_0" if self.beta == 0.0 else "alpha_beta_alpha_0"
        if self.beta == 0.0:
            return "alpha_beta_beta_0"
        return "alpha_beta_sum_0" if self.alpha + self.beta == 0.0 else "alpha_beta"

    @property
    def softmax_temperature(self) -> float:
        """T of the student's softmax, which logit_mse takes for the cross-entropy alone."""
        return 1.0 if self.divergence == "logit_mse" else self.temperature

    @property
    def needs_centre_sweep(self) -> bool:
        """Whether the gradient needs a sum over the row that its first sweep cannot make."""
        has_gradient = self.needs_grad_student and self.kd_weight != 0.0
        return has_gradient and not is_centre_known(self.resolved_divergence)

    def terms(self) -> Terms:
        """The constants of the loss."""
        kd_slope = self.kd_weight * self.kd_scale * self.logit_scale / self.softmax_temperature
        value_to_kd = self.kd_scale
        if self.divergence == "logit_mse":
            value_to_kd /= max(self.vocab_size, 1)
            kd_slope *= 2.0 / max(self.vocab_size, 1)
        elif self.divergence not in ("tvd", "alpha_beta"):
            value_to_kd *= math.log(2.0)
        return Terms(
            alpha=self.alpha,
            beta=self.beta,
            value_to_kd=value_to_kd * 2.0**-self._power_shift,
            kd_slope=kd_slope * 2.0**-self._power_shift,
            ce_slope=self.ce_weight * self.logit_scale,
            alpha_parts=_in_two(self.alpha),
            beta_parts=_in_two(self.beta),
            total_parts=_in_two(self.alpha + self.beta),
            near_tie=self._near_tie,
            nearness=0.5 / max(abs(self.alpha), abs(self.alpha + self.beta), 1e-9),
            power_shift=float(self._power_shift),
        )

    @property
    def _near_tie(self) -> tuple[float, ...]:
        """Coefficients of alpha_beta that has no limits; of any other none are asked for."""
        if self.resolved_divergence != "alpha_beta":
            return (0.0,) * _TIE_TERMS
        steps = range(1, _TIE_TERMS + 1)
        total = self.alpha + self.beta
        powers = ((-total) ** n - (-self.alpha) ** n for n in steps)
        return tuple(
            -power / (self.beta * math.factorial(n + 1))
            for n, power in zip(steps, powers, strict=True)
        )

    @property
    def _power_shift(self) -> int:
        """What of a small T squared is taken off a power's exponent: e^100 / 100 is a float32."""
        has_powers = self.divergence == "alpha_beta" and (self.alpha, self.beta) != (0.0, 0.0)
        return math.ceil(math.log2(self.kd_scale)) if has_powers and 0 < self.kd_scale < 1 else 0


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors that all loss ops take, as their schema defines them."""

    student: Tensor
    labels: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | None
    student_hidden: Sequence[Tensor]
    teacher_hidden: Sequence[Tensor]
    teacher_scale: Sequence[Tensor]
    hidden_mask: Tensor | None

    @classmethod
    def of(
        cls,
        student: Tensor,
        labels: Tensor | None,
        mask: Tensor | None,
        num_tokens: Tensor | None,
        student_hidden: Sequence[Tensor],
        teacher_hidden: Sequence[Tensor],
        teacher_scale: Sequence[Tensor],
        hidden_mask: Tensor | None,
    ) -> "Inputs":
        """As the kernels want them: copied where columns are strided."""
        return cls(
            with_contiguous_columns(student),
            None if labels is None else labels.contiguous(),
            None if mask is None else mask.contiguous(),
            num_tokens,
            [with_contiguous_columns(layer) for layer in student_hidden],
            [with_contiguous_columns(layer) for layer in teacher_hidden],
            [scale.contiguous() for scale in teacher_scale],
            None if hidden_mask is None else hidden_mask.contiguous(),
        )

    @property
    def num_positions(self) -> int:
        """P, or 0 without hidden states."""
        return self.student_hidden[0].shape[1] if self.student_hidden else 0

    @property
    def hidden_bytes(self) -> int:
        """Of one hidden state: of the widest, but 1 where teachers are int8; 4 without any."""
        if self.teacher_scale:
            return 1
        layers = (*self.student_hidden, *self.teacher_hidden)
        return max((layer.element_size() for layer in layers), default=4)

    @property
    def hidden_alignments(self) -> tuple[int, ...]:
        """Of each layer: what divides all row starts, up to 16 bytes of the narrower side."""
        return tuple(
            math.gcd(
                16 // min(ours.element_size(), theirs.element_size()),
                *_row_strides(ours),
                *_row_strides(theirs),
                ours.shape[2],
            )
            for ours, theirs in zip(self.student_hidden, self.teacher_hidden, strict=True)
        )

    def tokens(self, options: Options, denominator: Tensor | None) -> Tokens:
        """Which tokens count, and their weight; without a denominator "mean" counts all of them."""
        num = len(self.student)
        is_plain_mean = options.reduction == "mean" and denominator is None
        return Tokens(
            num=num,
            labels=self.labels,
            mask=self.mask,
            denominator=denominator,
            weight=1.0 / max(num, 1) if is_plain_mean else 1.0,
            ignore_index=options.ignore_index,
        )

    def hidden(self, options: Options, grads: Sequence[Tensor], errors: Tensor | None) -> Hidden:
        """The matched layers, with where their gradients and errors go."""
        layers = []
        for index, (student, teacher) in enumerate(
            zip(self.student_hidden, self.teacher_hidden, strict=True)
        ):
            scale = self.teacher_scale[index] if self.teacher_scale else None
            grad = grads[index] if grads else None
            strides = (*_row_strides(student), *_row_strides(teacher))
            layers.append(Layer(student, teacher, scale, grad, strides))
        return Hidden(
            layers=tuple(layers),
            mask=self.hidden_mask,
            num_positions=max(self.num_positions, 1),
            slope=options.hidden_weight / max(len(layers), 1),
            smallest_square=_SMALLEST_SQUARE if options.hidden_distance == "cosine" else None,
            errors=errors,
        )


def student_side(logits: Tensor, options: Options) -> Side:
    """The student's logits and what turns them into exponents."""
    return _side(logits, options.logit_scale, options.softcap, options.softmax_temperature)


def teacher_side(logits: Tensor, options: Options) -> Side:
    """The same of a dense teacher."""
    scale, softcap = options.teacher_logit_scale, options.teacher_softcap
    return _side(logits, scale, softcap, options.teacher_temperature)


def _side(logits: Tensor, scale: float, softcap: float, temperature: float) -> Side:
    to_bits = _LOG2E / temperature
    mantissa, exponent = math.frexp(to_bits)
    to_bits_high = math.ldexp(round(mantissa * 4096), exponent - 12)
    return Side(
        logits,
        stride=logits.stride(0),
        logit_scale=None if scale == 1.0 else scale,
        softcap=softcap or None,
        to_bits=to_bits,
        to_bits_high=to_bits_high,
        to_bits_low=to_bits - to_bits_high,
    )


def _in_two(power: float) -> tuple[float, float]:
    """A multiple of 2^-12, which a whole number is multiplied by exactly, and the rest."""
    high = round(power * 4096) / 4096
    return high, power - high


def _row_strides(layer: Tensor) -> tuple[int, int]:
    """Elements from token to token and from position to position."""
    return layer.stride(0), layer.stride(1)


def with_contiguous_columns(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def row_alignment(*sizes: int) -> int:
    """The largest power of two, up to a 16-byte load of 16-bit numbers, that divides all sizes."""
    return math.gcd(8, *sizes)


def row_layout(sides: Sequence[Tensor], vocab_size: int) -> tuple[int, str]:
    """GROUP and LAYOUT of row_blocks.py: how rows lie to the 16 bytes of a vector load.

    Args:
        sides: the student's logits, then any that are read beside them.
        vocab_size: how many columns are real.
    """
    num_columns = sides[0].shape[1]
    group = 16 // min(side.element_size() for side in sides)
    if any(side.data_ptr() % 16 or (side.stride(0) - num_columns) % group for side in sides):
        return group, "scattered"
    is_whole = num_columns % group == 0 and vocab_size % group == 0
    return group, "whole" if is_whole else "shifted"


def empty_like_contiguous(tensor: Tensor) -> Tensor:
    """Memory for the gradient of a tensor."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
