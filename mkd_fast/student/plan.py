"""Where each tensor of a student comes from, and the proof that none was forgotten."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mkd_fast.checks import student as checks
from mkd_fast.layer_list import layers_of
from mkd_fast.student.structure import offset_positions, padding_index, vocabulary_tensors
from mkd_fast.student.vocabulary import TokenMap


@dataclass(frozen=True, eq=False)
class Cut:
    """What a narrower student takes of a tensor.

    Attributes:
        rows: by axis, the indices that are kept.
        maps: by axis, what it is multiplied by: [the teacher's length, the student's].
        factor: of the tensor, or of offset + tensor where that is what acts.
        offset: what a norm adds to its weight.
        fill: a number and a length, for a vector that takes nothing of the teacher's.
    """

    rows: Mapping[int, Tensor]
    maps: Mapping[int, Tensor]
    factor: float = 1.0
    offset: float = 0.0
    fill: tuple[float, int] | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """A new tensor of the same dtype."""
        if self.fill is not None:
            return tensor.new_full((self.fill[1],), self.fill[0])
        for axis, rows in self.rows.items():
            tensor = tensor.index_select(axis, rows.to(tensor.device))
        if not self.maps and self.factor == 1.0:
            return tensor.clone()
        taken = tensor.double()
        for axis, by in self.maps.items():
            taken = (taken.movedim(axis, -1) @ by.to(taken)).movedim(-1, axis)
        return ((self.offset + taken) * self.factor - self.offset).to(tensor.dtype).contiguous()

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that take gives."""
        if self.fill is not None:
            return (self.fill[1],)
        kept = {axis: len(rows) for axis, rows in self.rows.items()}
        kept |= {axis: by.shape[1] for axis, by in self.maps.items()}
        return tuple(kept.get(axis, length) for axis, length in enumerate(whole))


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor of the teacher, all of it or a part, and how to say so.

    Attributes:
        name: the teacher's.
        how: what was done.
        rows: of the first axis: tokens or positions.
        cut: of any axis, for a narrower student.
    """

    name: str
    how: str = "copied"
    rows: Tensor | None = None
    cut: Cut | None = None

    def take(self, teacher_weights: Mapping[str, Tensor]) -> Tensor:
        """A copy that shares no memory with the teacher."""
        tensor = teacher_weights[self.name]
        if self.rows is not None:
            tensor = tensor[self.rows.to(tensor.device)]
        if self.cut is not None:
            return self.cut.take(tensor)
        return tensor.clone() if self.rows is None else tensor

    def shape(self, teacher_weights: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The shape that take gives."""
        whole = tuple(teacher_weights[self.name].shape)
        if self.rows is not None:
            whole = (len(self.rows), *whole[1:])
        return whole if self.cut is None else self.cut.shape(whole)


def plan_copy(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_list: str,
    layers: tuple[int, ...],
    token_map: TokenMap | None,
    narrowed: Callable[[Source, tuple[int, ...]], Source] | None = None,
) -> dict[str, Source]:
    """The source of every tensor in the student's state_dict.

    Args:
        teacher: the model to copy from.
        student: the model to fill, built from its own config.
        layer_list: the dotted name of the list of layers, in both.
        layers: the teacher's layer for each of the student's.
        token_map: which rows of the vocabulary are kept, or None for all.
        narrowed: makes the source of a narrower student's tensor, given its shape in the teacher.

    Raises:
        ValueError: a tensor of the student has no source or one of another shape, tensors that the
            student ties differ in the teacher, or a tensor of the teacher is left over.
    """
    per_token = vocabulary_tensors(teacher) if token_map is not None else frozenset()
    positions = offset_positions(teacher)
    sources = {}
    for name in student.state_dict():
        origin = _origin(name, layer_list, layers)
        if token_map is not None and origin in per_token:
            sources[name] = Source(origin, "kept tokens' rows", token_map.rows)
        elif positions is not None and origin == f"{positions}.weight":
            sources[name] = _positions(teacher, student, positions)
        else:
            sources[name] = Source(origin)
    _check_found(teacher, sources)
    if narrowed is not None:
        weights = teacher.state_dict()
        sources = {
            name: narrowed(source, tuple(weights[source.name].shape))
            for name, source in sources.items()
        }
    _check_shapes(teacher, student, sources)
    _check_ties(teacher, student, sources)
    _check_nothing_left(teacher, sources, layer_list, layers)
    return sources


def _origin(name: str, layer_list: str, layers: tuple[int, ...]) -> str:
    """The teacher's name for a tensor of the student: the same but for the layer's number."""
    prefix = f"{layer_list}."
    if not name.startswith(prefix):
        return name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{layers[int(number)]}.{rest}"


def _positions(teacher: PreTrainedModel, student: PreTrainedModel, table: str) -> Source:
    """The position table: row padding_idx + 1 + i serves position i, whatever the padding id is.

    Where the table grows, rows below the new padding index are never read; they repeat row 0.
    """
    moved = padding_index(student, table) - padding_index(teacher, table)
    if not moved:
        return Source(f"{table}.weight")
    num_rows = student.get_parameter(f"{table}.weight").shape[0]
    rows = (torch.arange(num_rows) - moved).clamp(min=0)
    return Source(f"{table}.weight", f"rows moved by {moved:+d} with the padding id", rows)


def _check_found(teacher: PreTrainedModel, sources: Mapping[str, Source]) -> None:
    weights = teacher.state_dict()
    missing = [name for name, source in sources.items() if source.name not in weights]
    if missing:
        raise checks.tensors_without_source(missing)


def _check_shapes(
    teacher: PreTrainedModel, student: PreTrainedModel, sources: Mapping[str, Source]
) -> None:
    weights = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        taken = sources[name].shape(weights)
        if taken != tuple(tensor.shape):
            raise checks.tensor_shape_mismatch(sources[name].name, tuple(tensor.shape), taken)


def _check_ties(
    teacher: PreTrainedModel, student: PreTrainedModel, sources: Mapping[str, Source]
) -> None:
    """What the student's config ties must be equal in the teacher, or one of them would be lost."""
    weights = teacher.state_dict()
    for first, *others in tied_names(student):
        for other in others:
            one, two = weights[sources[first].name], weights[sources[other].name]
            if one.data_ptr() != two.data_ptr() and not torch.equal(one, two):
                raise checks.tied_tensors_differ(sources[first].name, sources[other].name)


def tied_names(model: PreTrainedModel) -> list[list[str]]:
    """Names in the state_dict, grouped by the parameter that they share."""
    groups = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups[id(tensor)].append(name)
    return list(groups.values())


def _check_nothing_left(
    teacher: PreTrainedModel,
    sources: Mapping[str, Source],
    layer_list: str,
    layers: tuple[int, ...],
) -> None:
    """Adapters and the like, which the config does not describe, must not vanish silently."""
    every = range(len(layers_of(teacher, layer_list)))
    dropped = tuple(f"{layer_list}.{i}." for i in every if i not in layers)
    used = {source.name for source in sources.values()}
    left = [
        name for name in teacher.state_dict() if name not in used and not name.startswith(dropped)
    ]
    if left:
        raise checks.teacher_tensors_left(left)
