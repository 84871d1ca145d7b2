"""From a teacher's outputs to what is stored of a batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.arrays import as_array
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.kinds import (
    HIDDEN,
    LAST,
    Arrays,
    LogitsKind,
    LogitsRows,
    Origin,
    States,
    logits_kinds,
    matched_states,
    uniform_numbers,
)
from mkd_fast.teacher.cache.manifest import Outputs, Plan
from mkd_fast.teacher.cache.writer import Records
from mkd_fast.teacher.keep_logits import Asked, keep_logits, rounds_as

# N rows (samples, or real tokens of a batch), V vocabulary, D width, B samples, S tokens


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says about a batch.

    Args:
        logits: ``[B, V]`` or ``[B, S, V]``; None where no kind is made of them.
        hidden_states: ``[B, S, D]`` by number, those of the layers that are kept.
        last_hidden: what goes into the head, ``[B, S, D]``; None where it is not kept.
    """

    logits: Tensor | None
    hidden_states: Mapping[int, Tensor]
    last_hidden: Tensor | None


@dataclass(frozen=True)
class TokenBatch:
    """A batch with what the host needs to know of it before the teacher has run.

    Args:
        input_ids: ``[B, S]``.
        attention_mask: ``[B, S]``.
        sample_ids: ``[B]``.
        hashes: of the real tokens, ``[B]``.
        lengths: real tokens, ``[B]``.
        tokens: positions of the real ones in the flattened mask, ``[N]``.
    """

    input_ids: Tensor
    attention_mask: Tensor
    sample_ids: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    tokens: Tensor


class Keeper:
    """What a plan keeps of one teacher, known from its first outputs.

    Args:
        plan: of the capture.
        first: outputs of any batch.
        about: what the teacher's logits are like; its number of columns may be of padded ones.

    Raises:
        ValueError: the outputs lack what the plan asks for.
    """

    def __init__(self, plan: Plan, first: TeacherOutputs, about: Outputs) -> None:
        self._plan, self.outputs = plan, about
        self.kinds = logits_kinds(plan, about.num_columns)
        self._axis = "token"
        if self.kinds:
            if first.logits is None or first.logits.ndim not in (2, 3):
                raise checks.not_teacher_logits(
                    None if first.logits is None else first.logits.shape
                )
            self._axis = "sample" if first.logits.ndim == 2 else "token"
            self._asked = _asked_of(plan, self.kinds, about.num_columns)
            if any(kind.num_top or kind.num_draws for kind in self.kinds):
                self.outputs = replace(about, rounds_as=rounds_as(first.logits))
        self._states: list[tuple[int | None, States]] = []
        if HIDDEN in plan.keep:
            assert first.last_hidden is not None, "the runner was asked for it"
            name = str(first.last_hidden.dtype).removeprefix("torch.")
            self._states.append((None, States(LAST, plan.last_hidden_dtype or name)))
        self._states += matched_states(plan).items()
        specs = [spec for kind in self.kinds for spec in kind.specs(self._axis)]
        for layer, states in self._states:
            specs += states.specs(_states(first, layer).shape[-1])
        self.tensors: tuple[TensorSpec, ...] = tuple(specs)

    def launch(self, batch: TokenBatch, outputs: TeacherOutputs) -> "Launched":
        """Give the device its work on one batch, and its results the way to the host."""
        made: dict[str, dict[str, Tensor]] = {}
        if self.kinds:
            assert outputs.logits is not None, "the first outputs had them"
            made |= self._of_logits(batch, outputs.logits)
        for layer, states in self._states:
            rows_BSD = _states(outputs, layer)
            tokens = batch.tokens.to(rows_BSD.device, non_blocking=True)
            made[states.name] = states.on_device(rows_BSD.flatten(0, 1).index_select(0, tokens))
        return Launched(batch, self, made)

    def rows_of(self, batch: TokenBatch) -> NDArray[np.int64]:
        """How many rows of logits each sample has, ``[B]``."""
        return batch.lengths if self._axis == "token" else np.ones_like(batch.lengths)

    def _of_logits(self, batch: TokenBatch, logits: Tensor) -> dict[str, dict[str, Tensor]]:
        device = logits.device
        logits_NV = logits[..., : self.outputs.num_columns]
        if self._axis == "token":
            logits_NV = logits_NV.flatten(0, 1)
            rows = batch.tokens.to(device, non_blocking=True)
        else:
            rows = torch.arange(len(logits_NV), device=device)
        plan, origin = self._plan, Origin(batch.sample_ids, self.rows_of(batch))
        drawn = [uniform_numbers(plan.seed, kind.num_draws, origin) for kind in self.kinds]
        uniforms = torch.from_numpy(np.concatenate(drawn, 1)).to(device, non_blocking=True)
        kept = keep_logits(logits_NV, rows, self._asked, uniforms)
        made, end = {}, 0
        for kind in self.kinds:
            begin, end = end, end + kind.num_draws
            made[kind.name] = kind.on_device(LogitsRows(logits_NV, rows, kept.of_draws(begin, end)))
        return made


def _asked_of(plan: Plan, kinds: Sequence[LogitsKind], num_columns: int) -> Asked:
    """What all kinds together need of a row."""
    asked = Asked(num_columns, max(kind.num_top for kind in kinds))
    if asked.num_top:
        asked = replace(asked, temperatures=plan.temperatures)
    if any(kind.num_draws for kind in kinds):
        drawn_at = plan.temperatures[0]
        exponent = plan.proposal_exponent
        asked = replace(asked, draw_temperature=drawn_at, proposal_exponent=exponent)
    return asked


def _states(outputs: TeacherOutputs, layer: int | None) -> Tensor:
    if layer is not None:
        return outputs.hidden_states[layer]
    assert outputs.last_hidden is not None, "the first outputs had it"
    return outputs.last_hidden


class Launched:
    """Work given to the device, with the host's copy of its results on the way."""

    def __init__(
        self, batch: TokenBatch, keeper: "Keeper", made: dict[str, dict[str, Tensor]]
    ) -> None:
        self._batch, self._keeper = batch, keeper
        gpus = {rows.device for of_kind in made.values() for rows in of_kind.values()}
        self._on_host = {
            name: {n: rows.to("cpu", non_blocking=True) for n, rows in of_kind.items()}
            for name, of_kind in made.items()
        }
        self._copied = [
            torch.cuda.current_stream(gpu).record_event() for gpu in gpus if gpu.type == "cuda"
        ]

    def records(self) -> Records:
        """What is stored of the batch, once it has arrived.

        Raises:
            ValueError: the teacher's outputs are not finite.
        """
        for event in self._copied:
            event.synchronize()
        batch = self._batch
        for of_kind in self._on_host.values():
            for name, rows in of_kind.items():
                _require_finite(name, rows, batch.sample_ids)
        arrays = {
            name: {n: as_array(rows) for n, rows in of_kind.items()}
            for name, of_kind in self._on_host.items()
        }
        tensors: Arrays = {}
        num_rows = {"token": batch.lengths}
        rows_of_logits = self._keeper.rows_of(batch)
        for kind in self._keeper.kinds:
            stored = kind.on_host(arrays.pop(kind.name))
            tensors |= stored.tensors
            for axis, counts in stored.num_rows.items():
                num_rows[axis] = _sums(counts, rows_of_logits)
        for of_states in arrays.values():
            tensors |= of_states
        return Records(batch.sample_ids, batch.hashes, num_rows, tensors)


def _sums(counts: NDArray[np.int64], num_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the first ``num_rows[0]`` counts, of the next ``num_rows[1]``, and so on."""
    upto = np.cumsum(np.append(0, counts))
    return np.diff(upto[np.cumsum(num_rows)], prepend=0)


def _require_finite(name: str, rows: Tensor, sample_ids: NDArray[np.int64]) -> None:
    if not rows.is_floating_point() or rows.numel() == 0:
        return
    # NaN is both the least and the largest; a logit of -inf is a legal probability of zero
    least, largest = (bound.item() for bound in rows.aminmax())
    is_legal = math.isfinite(least) or (name == "logits" and least == -math.inf)
    if not (is_legal and largest < math.inf):
        raise checks.teacher_not_finite(name, sample_ids.tolist())
