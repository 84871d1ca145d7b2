"""Matched hidden layers: checked, projected and flattened, for the loss's hidden term."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses.targets import Int8Hidden
from mkd_fast.losses.tokens import Tokens

# N tokens, P positions of hidden states a token, D width

Hidden = Tensor | Sequence[Tensor]
TeacherHidden = Tensor | Int8Hidden | Sequence[Tensor | Int8Hidden]
Projection = Tensor | Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class MatchedLayers:
    """Hidden states of both sides, layer by layer; possibly of no layer.

    Attributes:
        student: one ``[N, P, D_l]`` a layer, projected to the teacher's width.
        teacher: the same shapes; int8 where ``teacher_scale`` is given.
        teacher_scale: float32 ``[N, P]`` for every layer, or nothing at all.
        mask: bool ``[N, P]``, the positions that count, or None.
    """

    student: tuple[Tensor, ...] = ()
    teacher: tuple[Tensor, ...] = ()
    teacher_scale: tuple[Tensor, ...] = ()
    mask: Tensor | None = None

    def teacher_values(self) -> tuple[Tensor, ...]:
        """The teacher's states as floating-point numbers."""
        if not self.teacher_scale:
            return self.teacher
        pairs = zip(self.teacher, self.teacher_scale, strict=True)
        return tuple(Int8Hidden(*pair).dequantised() for pair in pairs)

    def cleared(self, counts_N: Tensor) -> "MatchedLayers":
        """Floating-point states with zeros wherever nothing counts."""
        is_cleared = ~counts_N[:, None]
        if self.mask is not None:
            is_cleared = is_cleared | ~self.mask

        def clear(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(layer.masked_fill(is_cleared[:, :, None], 0.0) for layer in layers)

        return replace(
            self,
            student=clear(self.student),
            teacher=clear(self.teacher_values()),
            teacher_scale=(),
        )


def flatten(
    student_hidden: Hidden | None,
    teacher_hidden: TeacherHidden | None,
    hidden_mask: Tensor | None,
    projection: Projection | None,
    tokens: Tokens,
) -> MatchedLayers:
    """Matched layers as ``[N, P, D_l]``: P is 1 where hidden states go token by token."""
    ours, theirs = as_layers(student_hidden), as_layers(teacher_hidden)
    if len(ours) != len(theirs):
        raise checks.hidden_missing(
            tokens.function, tokens.layers, f"{len(ours)} and {len(theirs)} of them"
        )
    ours = _projected(ours, projection, tokens)
    students: list[Tensor] = []
    teachers: list[Tensor] = []
    scales: list[Tensor] = []
    for layer, (student, teacher) in enumerate(zip(ours, theirs, strict=True)):
        values, scale = _parts(layer, teacher, tokens)
        if student.shape != values.shape:
            raise checks.hidden_shape_mismatch(
                tokens.function, tokens.layers, layer, student.shape, values.shape
            )
        for side, name, tensor in ((students, "student", student), (teachers, "teacher", values)):
            argument = f"{name}_{tokens.layers}[{layer}]"
            checks.on_device(tokens.function, argument, tensor, tokens.device)
            side.append(_as_positions(argument, tensor, tokens))
        if students[layer].shape[1] != students[0].shape[1]:
            raise checks.hidden_positions_mismatch(
                tokens.function,
                tokens.layers,
                layer,
                students[layer].shape[1],
                students[0].shape[1],
            )
        if scale is not None:
            scales.append(scale.float().reshape(students[layer].shape[:2]))
    if scales and len(scales) != len(teachers):
        raise checks.hidden_kinds_mixed(tokens.function, tokens.layers, len(scales), len(teachers))
    mask = None
    if hidden_mask is not None:
        mask = _flatten_mask(hidden_mask, students, tokens)
    return MatchedLayers(tuple(students), tuple(teachers), tuple(scales), mask)


def as_layers(hidden: Any) -> tuple[Any, ...]:
    """One tensor is one layer, and nothing is none."""
    if hidden is None:
        return ()
    return (hidden,) if isinstance(hidden, Tensor | Int8Hidden) else tuple(hidden)


def _projected(
    layers: Sequence[Tensor], projection: Projection | None, tokens: Tokens
) -> tuple[Tensor, ...]:
    for layer, states in enumerate(layers):
        checks.floating_point(tokens.function, f"student_{tokens.layers}[{layer}]", states)
    if projection is None:
        return tuple(layers)
    matrices = (projection,) if isinstance(projection, Tensor) else tuple(projection)
    if len(matrices) != len(layers):
        raise checks.projections_mismatch(tokens.function, len(matrices), len(layers))
    for layer, (states, matrix) in enumerate(zip(layers, matrices, strict=True)):
        if matrix is not None and (matrix.dim() != 2 or len(matrix) != states.shape[-1]):
            raise checks.projection_shape(tokens.function, layer, states.shape[-1], matrix.shape)
    pairs = zip(layers, matrices, strict=True)
    return tuple(states if matrix is None else states @ matrix for states, matrix in pairs)


def _parts(layer: int, teacher: Any, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """A teacher's states and, where they are int8, their scale."""
    function, argument = tokens.function, f"teacher_{tokens.layers}[{layer}]"
    if not isinstance(teacher, Int8Hidden):
        checks.floating_point(function, argument, teacher)
        if teacher.requires_grad:
            raise checks.teacher_requires_grad(function, argument)
        return teacher, None
    if teacher.values.dtype != torch.int8:
        raise checks.wrong_dtype(function, f"{argument}.values", "int8", teacher.values.dtype)
    if teacher.scale.shape != teacher.values.shape[:-1]:
        wanted = teacher.values.shape[:-1]
        raise checks.leading_shape_mismatch(
            function, f"{argument}.scale", wanted, teacher.scale.shape
        )
    if teacher.scale.requires_grad:
        raise checks.teacher_requires_grad(function, f"{argument}.scale")
    checks.on_device(function, f"{argument}.scale", teacher.scale, tokens.device)
    return teacher.values, teacher.scale


def _as_positions(argument: str, tensor: Tensor, tokens: Tokens) -> Tensor:
    leading_shape = tokens.leading_shape
    num_leading = len(leading_shape)
    is_wrong = tensor.shape[:num_leading] != leading_shape
    if is_wrong or tensor.dim() not in (num_leading + 1, num_leading + 2):
        raise checks.hidden_shape(tokens.function, argument, leading_shape, tensor.shape)
    if tensor.dim() == num_leading + 1:
        tensor = tensor.unsqueeze(-2)
    return tensor.reshape(leading_shape.numel(), *tensor.shape[num_leading:])


def _flatten_mask(hidden_mask: Tensor, students: Sequence[Tensor], tokens: Tokens) -> Tensor:
    function = tokens.function
    if hidden_mask.dtype != torch.bool:
        raise checks.wrong_dtype(function, "hidden_mask", "bool", hidden_mask.dtype)
    if not students:
        raise checks.hidden_missing(function, tokens.layers, "hidden_mask without hidden states")
    checks.on_device(function, "hidden_mask", hidden_mask, tokens.device)
    positions = students[0].shape[:2]
    wanted = torch.Size((*tokens.leading_shape, positions[1]))
    if hidden_mask.shape not in (wanted, wanted[:-1] if positions[1] == 1 else wanted):
        raise checks.leading_shape_mismatch(function, "hidden_mask", wanted, hidden_mask.shape)
    return hidden_mask.reshape(positions)
