r"""``mkd_fast::dense_kd``: distillation loss on dense logits, value and gradient in one launch.

A token's loss is ``kd_weight * s * D(p, q) + ce_weight * CE(z_s, y) + hidden_weight * H`` with
p = softmax(z_t / T_t), q = softmax(z_s / T_s) and s the T^2 factor. With x = a z_s / T_s (a the
logit scale) the gradient of a stored logit is

    dloss/dz = kd_weight s (a / T_s) dD/dx + ce_weight a (softmax(a z_s) - 1[v = y])

    forward_kl   D = sum p log(p / q)    dD/dx = q - p
    reverse_kl   D = sum q log(q / p)    dD/dx = q (log(q / p) - D)
    jeffreys     their sum, and that of their gradients
    jsd          m = b p + (1 - b) q     dD/dx = (1 - b) q (log(q / m) - KL(q, m))

divided by the number of tokens with reduction "mean". Derivations: pointwise.py; hidden.py for H.

Two kernels share the work. ``dense_kd_tile`` holds whole rows in registers (small label sets, many
rows a program): each logit is read once. ``dense_kd_rows`` sweeps a row two or three times.
``traffic`` says what that costs. H runs in further programs of the same launch, so its memory
traffic fills the gaps of the logits'. A count of the tokens goes before (only where "mean" needs
one) and a sum of the programs' values comes after; nothing waits for the host.

Saved for backward: the gradients themselves, in the dtypes of their inputs, nothing else.
Deterministic: sums go in a fixed order, and there are no atomics.
Not supported: softcap, float64, columns that are not contiguous (they are copied first), more than
2^31 columns or rows. A label that names no column makes its token's loss NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mkd_fast.kernels.arguments import Hidden, Layer, Side, Terms, Tokens
from mkd_fast.kernels.dense_kd_rows import dense_kd_rows
from mkd_fast.kernels.dense_kd_tile import dense_kd_tile
from mkd_fast.kernels.launch import Launch, LaunchConfig, capability_of, dense_kd_config
from mkd_fast.kernels.tokens import count_tokens
from mkd_fast.kernels.totals import reduce_values

# N tokens, V vocabulary, P positions of hidden states a token, D width

_LOG2E = math.log2(math.e)
_COUNT_BLOCK = 1024
_REDUCE_BLOCK = 1024


class Traffic(NamedTuple):
    """What a launch costs at least: bytes requested from memory, operations, exponentials."""

    bytes: int
    flops: int
    exponentials: int


def traffic(
    num_rows: int,
    vocab_size: int,
    *,
    student_bytes: int,
    teacher_bytes: int,
    divergence: str = "forward_kl",
    sweeps: int | None = None,
    with_grad: bool = True,
    own_temperature_ce: bool = False,
) -> Traffic:
    """Bytes and operations of ``dense_kd`` on ``[num_rows, vocab_size]`` logits.

    Args:
        num_rows, vocab_size: N and V.
        student_bytes, teacher_bytes: bytes of one logit of either side.
        divergence: as in LossSpec.
        sweeps: how often each logit is read; None: what the kernel does at this width.
        with_grad: whether the gradient is written.
        own_temperature_ce: whether there are labels and T is not 1, which costs a further
            exponential a sweep.
    """
    if sweeps is None:
        config = dense_kd_config(vocab_size, student_bytes, (9, 0))
        sweeps = num_sweeps(config, divergence, with_grad)
    num_logits = num_rows * vocab_size
    written = student_bytes if with_grad else 0
    exponentials = sweeps * (2 + own_temperature_ce)
    return Traffic(
        bytes=num_logits * (sweeps * (student_bytes + teacher_bytes) + written),
        flops=num_logits * (sweeps * 8 + 12),
        exponentials=num_logits * exponentials,
    )


def num_sweeps(config: LaunchConfig, divergence: str, with_grad: bool) -> int:
    """How often a kernel reads each logit."""
    if config.kernel == "tile":
        return 1
    return 3 if divergence == "jsd" and with_grad else 2


@dataclass(frozen=True)
class Options:
    """The keyword arguments of the op, as its schema in losses/ops.py defines them."""

    divergence: str
    beta: float
    temperature: float
    teacher_temperature: float
    logit_scale: float
    teacher_logit_scale: float
    kd_scale: float
    kd_weight: float
    ce_weight: float
    hidden_weight: float
    vocab_size: int
    ignore_index: int
    reduction: str
    needs_grad_student: bool
    needs_grad_hidden: bool

    @property
    def resolved_divergence(self) -> str:
        """The divergence, with the ends of jsd as what they are defined to be."""
        ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
        return ends.get(self.beta, "jsd") if self.divergence == "jsd" else self.divergence

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of kd, ce and hidden."""
        return self.kd_weight, self.ce_weight, self.hidden_weight


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors of the op, as its schema defines them."""

    student: Tensor
    teacher: Tensor
    labels: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | None
    student_hidden: Sequence[Tensor]
    teacher_hidden: Sequence[Tensor]
    hidden_mask: Tensor | None

    @property
    def num_positions(self) -> int:
        """P, or 0 without hidden states."""
        return self.student_hidden[0].shape[1] if self.student_hidden else 0


@dataclass(frozen=True, eq=False)
class Buffers:
    """What the main launch writes: one value a token or a program, and the gradients."""

    kd: Tensor
    ce: Tensor | None
    hidden: Tensor | None
    grad_student: Tensor | None
    grad_hidden: list[Tensor]


def dense_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    num_tokens: Tensor | None,
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    hidden_mask: Tensor | None,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """The op of this name; its schema and the meaning of its arguments stand in losses/ops.py."""
    inputs = Inputs(
        _columns_contiguous(student),
        _columns_contiguous(teacher),
        None if labels is None else labels.contiguous(),
        None if mask is None else mask.contiguous(),
        num_tokens,
        [_columns_contiguous(tensor) for tensor in student_hidden],
        [_columns_contiguous(tensor) for tensor in teacher_hidden],
        None if hidden_mask is None else hidden_mask.contiguous(),
    )
    choices = Options(**options)  # type: ignore[arg-type]
    launch, buffers, denominator = plan(inputs, choices)
    if launch.grid:
        launch.run()
    if choices.reduction == "none":
        values = _values_per_token(inputs, choices, buffers)
    else:
        values = _reduced(inputs, choices, buffers, denominator)
    grad = student.new_empty(0) if buffers.grad_student is None else buffers.grad_student
    return *values, grad, buffers.grad_hidden


def _columns_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def plan(inputs: Inputs, options: Options) -> tuple[Launch, Buffers, Tensor | None]:
    """The main launch for these inputs, not yet run, what it writes, and the denominator."""
    student = inputs.student
    num_rows, num_columns = student.shape
    alignment = _alignment(inputs, options)
    config = dense_kd_config(num_columns, student.element_size(), capability_of(student.device))
    num_programs = -(-num_rows // config.rows)
    num_hidden_rows = num_rows * inputs.num_positions
    num_hidden_programs = -(-num_hidden_rows // config.hidden_rows)
    per_token = options.reduction == "none"
    buffers = _allocate(
        inputs,
        options,
        num_values=num_rows if per_token else num_programs,
        num_errors=num_hidden_rows if per_token else num_hidden_programs,
    )
    denominator = _denominator(inputs, options)
    has_labels = inputs.labels is not None
    arguments = {
        "student": _side(student, options.logit_scale, options.temperature),
        "teacher": _side(inputs.teacher, options.teacher_logit_scale, options.teacher_temperature),
        "tokens": _tokens(inputs, options, denominator),
        "terms": Terms(
            beta=options.beta,
            kd_scale=options.kd_scale,
            kd_slope=options.kd_weight
            * options.kd_scale
            * options.logit_scale
            / options.temperature,
            ce_slope=options.ce_weight * options.logit_scale,
        ),
        "hidden": _hidden(inputs, options, buffers),
        "grad": buffers.grad_student,
        "kd_values": buffers.kd,
        "ce_values": buffers.ce,
        "DIVERGENCE": options.resolved_divergence,
        "KD_GRAD": options.kd_weight != 0.0,
        "CE_GRAD": has_labels and options.ce_weight != 0.0,
        "OWN_SUM": has_labels and options.temperature != 1.0,
        "PER_TOKEN": per_token,
        "WIDTHS": tuple(layer.shape[2] for layer in inputs.student_hidden),
        "ALIGNMENTS": tuple(map(_layer_alignment, inputs.student_hidden, inputs.teacher_hidden)),
        "BLOCK": config.block,
        "HIDDEN_ROWS": config.hidden_rows,
        "HIDDEN_BLOCK": config.hidden_block,
    }
    if config.kernel == "tile":
        arguments |= {
            "num_programs": num_programs,
            "V": options.vocab_size,
            "COLUMNS": num_columns,
            "ALIGNMENT": alignment,
            "ROWS": config.rows,
        }
        kernel = dense_kd_tile
    else:
        arguments |= {
            "V": options.vocab_size,
            "num_columns": num_columns,
            "GROUP": 16 // min(student.element_size(), inputs.teacher.element_size()),
            "LAYOUT": _layout(inputs, options),
        }
        kernel = dense_kd_rows
    launch = Launch(kernel, num_programs + num_hidden_programs, arguments, config.num_warps)
    return launch, buffers, denominator


def _allocate(inputs: Inputs, options: Options, *, num_values: int, num_errors: int) -> Buffers:
    def values(num: int) -> Tensor:
        return torch.empty(num, dtype=torch.float32, device=inputs.student.device)

    has_hidden = bool(inputs.student_hidden)
    return Buffers(
        kd=values(num_values),
        ce=None if inputs.labels is None else values(num_values),
        hidden=values(num_errors) if has_hidden else None,
        grad_student=_empty_grad(inputs.student) if options.needs_grad_student else None,
        grad_hidden=list(map(_empty_grad, inputs.student_hidden))
        if options.needs_grad_hidden
        else [],
    )


def _empty_grad(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _denominator(inputs: Inputs, options: Options) -> Tensor | None:
    """What "mean" divides by, on the device; None where the host knows it."""
    if options.reduction != "mean" or inputs.num_tokens is not None:
        return inputs.num_tokens if options.reduction == "mean" else None
    if inputs.labels is None and inputs.mask is None:
        return None
    denominator = torch.empty((), dtype=torch.float32, device=inputs.student.device)
    arguments = {
        "tokens": _tokens(inputs, options, None),
        "denominator": denominator,
        "BLOCK": _COUNT_BLOCK,
    }
    Launch(count_tokens, 1, arguments, num_warps=4).run()
    return denominator


def _tokens(inputs: Inputs, options: Options, denominator: Tensor | None) -> Tokens:
    num = len(inputs.student)
    is_plain_mean = options.reduction == "mean" and denominator is None
    return Tokens(
        num=num,
        labels=inputs.labels,
        mask=inputs.mask,
        denominator=denominator,
        weight=1.0 / max(num, 1) if is_plain_mean else 1.0,
        ignore_index=options.ignore_index,
    )


def _side(logits: Tensor, logit_scale: float, temperature: float) -> Side:
    scale = None if logit_scale == 1.0 else logit_scale
    return Side(logits, logits.stride(0), scale, _LOG2E / temperature)


def _hidden(inputs: Inputs, options: Options, buffers: Buffers) -> Hidden:
    pairs = list(zip(inputs.student_hidden, inputs.teacher_hidden, strict=True))
    layers = tuple(
        Layer(
            student,
            teacher,
            buffers.grad_hidden[layer] if buffers.grad_hidden else None,
            (*student.stride()[:2], *teacher.stride()[:2]),
        )
        for layer, (student, teacher) in enumerate(pairs)
    )
    return Hidden(
        layers=layers,
        mask=inputs.hidden_mask,
        num_positions=max(inputs.num_positions, 1),
        slope=2.0 * options.hidden_weight / max(len(pairs), 1),
        errors=buffers.hidden,
    )


def _alignment(inputs: Inputs, options: Options) -> int:
    """The power of two up to 8 that every row's first element is a multiple of."""
    return math.gcd(8, inputs.student.stride(0), inputs.teacher.stride(0), inputs.student.shape[1])


def _layer_alignment(student: Tensor, teacher: Tensor) -> int:
    return math.gcd(8, *student.stride()[:2], *teacher.stride()[:2], student.shape[2])


def _layout(inputs: Inputs, options: Options) -> str:
    """How rows lie to the 16 bytes of a vector load; see dense_kd_rows.py."""
    sides = (inputs.student, inputs.teacher)
    num_columns = inputs.student.shape[1]
    group = 16 // min(side.element_size() for side in sides)
    if any(side.data_ptr() % 16 or (side.stride(0) - num_columns) % group for side in sides):
        return "scattered"
    is_whole = num_columns % group == 0 and options.vocab_size % group == 0
    return "whole" if is_whole else "shifted"


def _values_per_token(
    inputs: Inputs, options: Options, buffers: Buffers
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, kd, ce and hidden of each token."""
    kd = buffers.kd
    ce = torch.zeros_like(kd) if buffers.ce is None else buffers.ce
    hidden = torch.zeros_like(kd)
    if buffers.hidden is not None:
        hidden = buffers.hidden.view(len(kd), inputs.num_positions).sum(1)
    loss = torch.zeros_like(kd)
    for weight, value in zip(options.weights, (kd, ce, hidden), strict=True):
        if weight:
            loss.add_(value, alpha=weight)
    return loss, kd, ce, hidden


def _reduced(
    inputs: Inputs, options: Options, buffers: Buffers, denominator: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, kd, ce and hidden, summed in a fixed order and divided by the denominator."""
    outputs = [buffers.kd.new_empty(()) for _ in range(4)]
    arguments = {
        "kd_values": buffers.kd,
        "ce_values": buffers.ce,
        "hidden_values": buffers.hidden,
        "num_values": len(buffers.kd),
        "num_hidden": 0 if buffers.hidden is None else len(buffers.hidden),
        "weights": options.weights,
        "denominator": denominator,
        "num_tokens": float(max(len(inputs.student), 1)) if options.reduction == "mean" else 1.0,
        **dict(zip(("loss", "kd", "ce", "hidden"), outputs, strict=True)),
        "BLOCK": _REDUCE_BLOCK,
    }
    Launch(reduce_values, 1, arguments, num_warps=4).run()
    loss, kd, ce, hidden = outputs
    return loss, kd, ce, hidden
