"""What a narrower student keeps of the residual stream: some units of it, or some directions.

Let x be the teacher's stream and z the student's, which is P^T x: P picks units (`Picked`), or has
orthonormal columns (`Turned`). What writes to the stream is multiplied by P. What reads it sees
less, and two things make up for that where there is calibration text:

- A norm divides by the size of z instead of x. Its gain is multiplied by the root of the mean
  square of z in units of what the teacher's norm divides by (centred, where the norm
  subtracts the mean), so that what is kept comes out as large as there.
- A matrix W reads y = norm(x), of which the student has P^T y. W is multiplied by the best linear
  estimate of y from it, E[y y^T] P (P^T E[y y^T] P)^-1, so that what can be told from the kept
  units is not lost. A tenth of the mean square of a unit is added to the moments' diagonal: there
  the estimate tends to P, which is what a copy without calibration has.

SliceGPT (arXiv 2401.15024) has `Turned`: P = U, the directions in which the standardised stream has
the largest mean square. RMSNorm without its gain g commutes with a rotation, so g goes into the
matrices that read it: W' = W diag(g) U. At D' = D nothing has changed but for rounding.
LayerNorm also subtracts the mean, and it still does in the student. So the student's stream is
kept at mean zero: one of its D' directions, that of equal units, stays empty, and U holds D' - 1
directions of the centred stream, which at D' = D are all there are. The empty direction then
carries the norm's bias b: the student's bias is 1 in each unit, and W' has (W b) / D' added in each
column. Heads that are tied to the embeddings are untied, since only one of them is multiplied by g.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mkd_fast.checks import width as checks
from mkd_fast.student import probe as probes
from mkd_fast.student.activity import Moments
from mkd_fast.student.anatomy import RESIDUAL, Anatomy
from mkd_fast.student.norms import Norm, norms_of
from mkd_fast.student.plan import Cut

_RIDGE = 0.1  # of a unit's mean square


@dataclass(frozen=True, eq=False)
class Stream:
    """A teacher's stream, and what is known of it.

    Attributes:
        model: the teacher.
        anatomy: the teacher's.
        norms: of the anatomy.
        moments: by norm that was run on calibration text; none: nothing is made up for.
        embedding_factor: of the word embeddings.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    norms: Mapping[str, Norm]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    embedding_factor: float = 1.0

    def norm_read(self, name: str, axis: int) -> str | None:
        """The norm whose output an axis of a tensor reads; None where it reads none, or writes."""
        module_name, _, kind = name.rpartition(".")
        module = self.model.get_submodule(module_name)
        if kind != "weight" or not isinstance(module, probes.MATRICES):
            return None
        if axis == probes.output_axis(module):
            return None
        return self.anatomy.norm_before.get(module_name)

    def gain(self, norm: str) -> Tensor:
        """[D], float64 on the CPU."""
        weight: Any = self.model.get_submodule(norm).weight
        gain: Tensor = self.norms[norm].gain_offset + weight.detach().double().cpu()
        return gain

    def bias(self, norm: str) -> Tensor | float:
        """[D] likewise, or 0."""
        bias: Any = getattr(self.model.get_submodule(norm), "bias", None)
        return 0.0 if bias is None else bias.detach().double().cpu()

    def size(self, norm: str, kept: Tensor) -> float:
        """The root of the mean square of what is kept, whose second moment is given."""
        mean_square = kept.diagonal().mean()
        if self.norms[norm].is_centred:
            mean_square = mean_square - kept.mean()
        return float(mean_square.sqrt())

    def is_words(self, name: str) -> bool:
        """Whether a tensor is the table of word embeddings."""
        words: Any = self.model.get_input_embeddings()
        return self.model.get_submodule(name.rpartition(".")[0]) is words

    def is_tied(self, name: str) -> bool:
        """Whether a tensor is the table of word embeddings under another name."""
        words: Any = self.model.get_input_embeddings()
        tensor = getattr(self.model.get_submodule(name.rpartition(".")[0]), "weight", None)
        return tensor is words.weight and not self.is_words(name)


@dataclass(frozen=True, eq=False)
class Picked:
    """The student's stream is some units of the teacher's.

    Attributes:
        stream: the teacher's.
        units: the numbers of those units, rising.
        how: how they were chosen, in words.
    """

    stream: Stream
    units: Tensor
    how: str
    _estimates: dict[str, Tensor] = field(default_factory=dict)

    def cut(self, name: str) -> tuple[Cut, list[str]]:
        """What is kept of a tensor on the stream, and how to say so."""
        stream = self.stream
        rows, maps, said = {}, {}, [f"{RESIDUAL} ({self.how})"]
        for axis in stream.anatomy.residual[name]:
            norm = None if stream.is_tied(name) else stream.norm_read(name, axis)
            if norm is not None and norm in stream.moments:
                maps[axis] = self._estimate(norm)
                said.append("the dropped ones estimated")
            else:
                rows[axis] = self.units
        factor, offset = self._factor(name)
        if factor != 1.0:
            said.append(f"{'gain ' if offset else ''}times {factor:.4g}")
        return Cut(rows, maps, factor, offset), said

    def _factor(self, name: str) -> tuple[float, float]:
        """A tensor's factor, and what a norm adds to its weight."""
        stream = self.stream
        if stream.is_words(name) or stream.is_tied(name):
            return stream.embedding_factor, 0.0
        norm, _, kind = name.rpartition(".")
        if norm not in stream.norms:
            return 1.0, 0.0
        factor = 1.0
        for reader, before in stream.anatomy.norm_before.items():
            if before == norm and stream.is_tied(f"{reader}.weight"):
                factor = 1 / stream.embedding_factor
        if kind != "weight":
            return factor, 0.0
        if norm in stream.moments:
            second = stream.moments[norm].second.double()
            factor *= stream.size(norm, second[self.units][:, self.units])
        return factor, stream.norms[norm].gain_offset

    def _estimate(self, norm: str) -> Tensor:
        if norm not in self._estimates:
            gain, bias = self.stream.gain(norm), self.stream.bias(norm)
            second = _ridged(self.stream.moments[norm].of_output(gain, bias))
            columns = second[:, self.units]
            self._estimates[norm] = torch.linalg.solve(columns[self.units], columns.T).T
        return self._estimates[norm]


@dataclass(frozen=True, eq=False)
class Turned:
    """The student's stream is some directions of the teacher's.

    Attributes:
        stream: the teacher's.
        directions: [D, k], orthonormal columns.
        spread: [k, D'], orthonormal rows: where the student has them.
        how: how they were chosen, in words.
    """

    stream: Stream
    directions: Tensor
    spread: Tensor
    how: str
    _readers: dict[str, Tensor] = field(default_factory=dict)

    def cut(self, name: str) -> tuple[Cut, list[str]]:
        """What is kept of a tensor on the stream, and how to say so."""
        stream, width = self.stream, self.spread.shape[1]
        said = [f"residual stream turned ({self.how})"]
        norm, _, kind = name.rpartition(".")
        if norm in stream.norms:
            if kind == "weight":
                said.append("the gain moved on")
            gain = self._size(norm) - stream.norms[norm].gain_offset
            return Cut({}, {}, fill=(gain if kind == "weight" else 1.0, width)), said
        maps = {}
        for axis in stream.anatomy.residual[name]:
            before = stream.norm_read(name, axis)
            writes = self.directions @ self.spread
            maps[axis] = writes if before is None else self._reads(before)
        factor = stream.embedding_factor if stream.is_words(name) else 1.0
        return Cut({}, maps, factor), said

    def _size(self, norm: str) -> float:
        if norm not in self.stream.moments:
            return 1.0
        kept = self.directions @ self.spread
        return self.stream.size(norm, kept.T @ self.stream.moments[norm].second.double() @ kept)

    def _reads(self, norm: str) -> Tensor:
        if norm not in self._readers:
            estimate = self.directions
            if norm in self.stream.moments:
                columns = _ridged(self.stream.moments[norm].second) @ self.directions
                estimate = torch.linalg.solve(self.directions.T @ columns, columns.T).T
            reads = self.stream.gain(norm)[:, None] * (estimate @ self.spread)
            empty = torch.zeros(len(reads), dtype=reads.dtype) + self.stream.bias(norm)
            self._readers[norm] = reads + empty[:, None] / self.spread.shape[1]
        return self._readers[norm]


def _ridged(second: Tensor) -> Tensor:
    second = second.double()
    identity = torch.eye(len(second), dtype=second.dtype)
    return second + _RIDGE * second.diagonal().mean() * identity


def principal(stream: Stream, second: Tensor, width: int, how: str) -> Turned:
    """The directions of largest mean square in E[x x^T] [D, D], and their place in the student.

    The sign of a direction is that of its largest entry.
    """
    second, num_units = second.double(), len(second)
    is_centred = any(norm.is_centred for norm in stream.norms.values())
    if is_centred:
        centring = torch.eye(num_units, dtype=second.dtype) - 1 / num_units
        second = centring @ second @ centring
        second = second - second.trace() / num_units  # the direction of equal units comes last
    directions = torch.linalg.eigh(second).eigenvectors.flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    spread = torch.eye(width, dtype=torch.float64)
    if is_centred:
        spread = torch.linalg.eigh(spread - 1 / width).eigenvectors[:, 1:].T  # those of mean zero
    return Turned(stream, directions[:, : len(spread)], spread, how)


def check_turnable(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Raise ValueError unless a probe of the family says the same with its stream turned."""
    kind = type(model).__name__
    if model is model.base_model:
        raise checks.cannot_turn(kind, "whose outputs are the stream itself")
    small = probes.small_sizes(anatomy.sizes)
    probe = probes.build_probe(model, small, tie_word_embeddings=False)
    other = probes.build_probe(model, small, tie_word_embeddings=False)
    stream = Stream(probe, anatomy, norms_of(probe, anatomy.norms))
    points = probes.random_points(small.hidden_size)
    turned = principal(stream, points @ points.T, small.hidden_size, "")
    other.load_state_dict(
        {
            name: turned.cut(name)[0].take(tensor) if name in anatomy.residual else tensor
            for name, tensor in probe.state_dict().items()
        }
    )
    if not probes.same_outputs(probes.run(probe), probes.run(other)):
        raise checks.cannot_turn(
            kind, "whose norms scale units of the stream, or of what is written to it, one by one"
        )
