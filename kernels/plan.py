"""What surrounds the main launch of a loss op: its buffers, a count before it, sums after it.

The main launch writes one value a token (reduction "none") or a program, and the gradients. Its
first programs take logits, the rest hidden states. Where "mean" has to find out how many tokens
count, a launch goes before; one more turns the values into the four results. Nothing waits for
the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkd_fast.kernels.arguments import (
    Inputs,
    Options,
    empty_like_contiguous,
    student_side,
)
from mkd_fast.kernels.launch import Launch, LaunchConfig
from mkd_fast.kernels.tokens import count_tokens
from mkd_fast.kernels.totals import combine_values, reduce_values

# N tokens, V vocabulary, P positions of hidden states a token, D width

_BLOCK = 1024  # values of a program that counts or sums them

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]


class Traffic(NamedTuple):
    """What a launch costs: bytes requested from memory, arithmetic operations, exponentials."""

    num_bytes: int
    num_operations: int
    num_exponentials: int


@dataclass(frozen=True, eq=False)
class Frame:
    """One call of a loss op, and what its main launch writes."""

    inputs: Inputs
    options: Options
    config: LaunchConfig
    denominator: Tensor | None  # of "mean", float32 [] on the device
    num_programs: int  # that take logits
    num_hidden_programs: int  # and after them those that take hidden states
    kd: Tensor
    ce: Tensor | None
    errors: Tensor | None
    grad_student: Tensor | None
    grad_hidden: list[Tensor]

    @classmethod
    def of(cls, inputs: Inputs, options: Options, config: LaunchConfig) -> "Frame":
        """With uninitialised buffers of the sizes that this call needs."""
        student = inputs.student
        num_rows = len(student)
        num_positions = num_rows * inputs.num_positions
        has_logits = student.shape[1] > 0
        num_programs = -(-num_rows // config.rows) if has_logits else 0
        num_hidden_programs = -(-num_positions // config.hidden_rows)
        is_per_token = options.reduction == "none"
        num_values = num_rows if is_per_token else num_programs
        num_errors = num_positions if is_per_token else num_hidden_programs

        def values(num: int) -> Tensor:
            new = student.new_empty if has_logits else student.new_zeros
            return new(num, dtype=torch.float32)

        return cls(
            inputs,
            options,
            config,
            denominator=_denominator(inputs, options),
            num_programs=num_programs,
            num_hidden_programs=num_hidden_programs,
            kd=values(num_values),
            ce=None if inputs.labels is None else values(num_values),
            errors=values(num_errors) if inputs.student_hidden else None,
            grad_student=empty_like_contiguous(student) if options.needs_grad_student else None,
            grad_hidden=[
                empty_like_contiguous(layer)
                for layer in inputs.student_hidden
                if options.needs_grad_hidden
            ],
        )

    def arguments(self) -> dict[str, Any]:
        """What the main kernels of all loss ops take."""
        inputs, options = self.inputs, self.options
        has_labels = inputs.labels is not None
        return {
            "student": student_side(inputs.student, options),
            "tokens": inputs.tokens(options, self.denominator),
            "terms": options.terms(),
            "hidden": inputs.hidden(options, self.grad_hidden, self.errors),
            "grad": self.grad_student,
            "kd_values": self.kd,
            "ce_values": self.ce,
            "V": options.vocab_size,
            "num_columns": inputs.student.shape[1],
            "DIVERGENCE": options.resolved_divergence,
            "KD_GRAD": options.kd_weight != 0.0,
            "CE_GRAD": has_labels and options.ce_weight != 0.0,
            "OWN_SUM": has_labels and options.softmax_temperature != 1.0,
            "PER_TOKEN": options.reduction == "none",
            "WIDTHS": tuple(layer.shape[2] for layer in inputs.student_hidden),
            "ALIGNMENTS": inputs.hidden_alignments,
            "BLOCK": self.config.block,
            "HIDDEN_ROWS": self.config.hidden_rows,
            "HIDDEN_BLOCK": self.config.hidden_block,
        }

    def around(self, kernel: Any, arguments: dict[str, Any]) -> tuple[list[Launch], Results]:
        """All launches, the main one being of this kernel, and what they will write."""
        launches = []
        if self.denominator is not None and self.inputs.num_tokens is None:
            launches.append(_count_launch(self))
        grid = self.num_programs + self.num_hidden_programs
        num_warps = self.config.num_warps
        launches.append(Launch(kernel, grid, arguments, num_warps, is_register_bound=True))
        finish = _combine_launch if self.options.reduction == "none" else _reduce_launch
        last_launch, values = finish(self)
        grad_student = self.kd.new_empty(0) if self.grad_student is None else self.grad_student
        return [*launches, last_launch], (*values, grad_student, self.grad_hidden)


def run(launches: Sequence[Launch], student: Tensor) -> None:
    """Launch in turn, on the current stream of the student's device."""
    with torch.cuda.device_of(student):
        for launch in launches:
            launch.run()


def _denominator(inputs: Inputs, options: Options) -> Tensor | None:
    """What "mean" divides by, or None where it is a number that the host knows."""
    if options.reduction != "mean":
        return None
    if inputs.num_tokens is None and (inputs.labels is not None or inputs.mask is not None):
        return inputs.student.new_empty((), dtype=torch.float32)
    return inputs.num_tokens


def _count_launch(frame: Frame) -> Launch:
    arguments = {
        "tokens": frame.inputs.tokens(frame.options, None),
        "denominator": frame.denominator,
        "BLOCK": _BLOCK,
    }
    return Launch(count_tokens, 1, arguments, num_warps=4)


def _weights(options: Options) -> tuple[float, float, float]:
    return options.kd_weight, options.ce_weight, options.hidden_weight


def _reduce_launch(frame: Frame) -> tuple[Launch, tuple[Tensor, Tensor, Tensor, Tensor]]:
    loss, kd, ce, hidden = (frame.kd.new_empty(()) for _ in range(4))
    arguments = {
        "kd_values": frame.kd,
        "ce_values": frame.ce,
        "errors": frame.errors,
        "num_values": frame.num_programs,
        "num_errors": frame.num_hidden_programs,
        "tokens": frame.inputs.tokens(frame.options, frame.denominator),
        "weights": _weights(frame.options),
        "loss": loss,
        "kd": kd,
        "ce": ce,
        "hidden": hidden,
        "BLOCK": _BLOCK,
    }
    return Launch(reduce_values, 1, arguments, num_warps=8), (loss, kd, ce, hidden)


def _combine_launch(frame: Frame) -> tuple[Launch, tuple[Tensor, Tensor, Tensor, Tensor]]:
    loss, hidden = torch.empty_like(frame.kd), torch.empty_like(frame.kd)
    ce = torch.zeros_like(frame.kd) if frame.ce is None else frame.ce
    arguments = {
        "kd_values": frame.kd,
        "ce_values": ce,
        "errors": frame.errors,
        "num_tokens": len(loss),
        "num_positions": frame.inputs.num_positions,
        "weights": _weights(frame.options),
        "loss": loss,
        "hidden": hidden,
        "BLOCK": _BLOCK,
    }
    grid = -(-len(loss) // _BLOCK)
    return Launch(combine_values, grid, arguments, num_warps=4), (loss, frame.kd, ce, hidden)
