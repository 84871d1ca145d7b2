"""From a teacher's outputs to what is stored of a batch.

Logits are worked on in chunks of rows, float32, each of which serves every kind that is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.arrays import as_array
from mkd_fast.teacher.cache.format import TensorSpec, axes_of, counts_name
from mkd_fast.teacher.cache.kinds import (
    HIDDEN,
    LAST,
    Arrays,
    Origin,
    States,
    logits_kinds,
    matched_states,
)
from mkd_fast.teacher.cache.manifest import Outputs, Plan
from mkd_fast.teacher.cache.writer import Records

# N rows (samples, or real tokens of a batch), V vocabulary, D width, B samples, S tokens

# float32 logits worked on at a time: what a CPU keeps in its cache, what fills a GPU
_CPU_CHUNK_BYTES = 2 << 20
_CHUNK_BYTES = 64 << 20


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
        self.outputs = about
        self.kinds = logits_kinds(plan, about.num_columns)
        self._axis = "token"
        if self.kinds:
            if first.logits is None or first.logits.ndim not in (2, 3):
                raise checks.not_teacher_logits(
                    None if first.logits is None else first.logits.shape
                )
            self._axis = "sample" if first.logits.ndim == 2 else "token"
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
        origin = Origin(batch.sample_ids, self.rows_of(batch))
        choices = [
            {n: t.to(device, non_blocking=True) for n, t in kind.choices(origin).items()}
            for kind in self.kinds
        ]
        chunk_bytes = _CPU_CHUNK_BYTES if device.type == "cpu" else _CHUNK_BYTES
        size = max(1, chunk_bytes // (4 * logits_NV.shape[1]))
        parts: list[list[dict[str, Tensor]]] = [[] for _ in self.kinds]
        for begin in range(0, max(len(rows), 1), size):
            chunk = slice(begin, begin + size)
            z_NV = logits_NV.index_select(0, rows[chunk]).float()
            for kind, drawn, made in zip(self.kinds, choices, parts, strict=True):
                made.append(kind.on_device(z_NV, {n: t[chunk] for n, t in drawn.items()}))
        return {
            kind.name: {name: torch.cat([part[name] for part in made]) for name in made[0]}
            for kind, made in zip(self.kinds, parts, strict=True)
        }


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
        for kind in self._keeper.kinds:
            tensors |= kind.on_host(arrays.pop(kind.name))
        for of_states in arrays.values():
            tensors |= of_states
        num_rows = {"token": batch.lengths}
        ends = np.cumsum(self._keeper.rows_of(batch))
        for axis in axes_of(self._keeper.tensors)[2:]:
            upto = np.cumsum(np.append(0, tensors[counts_name(axis)]), dtype=np.int64)
            num_rows[axis] = np.diff(upto[ends], prepend=0)
        return Records(batch.sample_ids, batch.hashes, num_rows, tensors)


def _require_finite(name: str, rows: Tensor, sample_ids: NDArray[np.int64]) -> None:
    if not rows.is_floating_point():
        return
    # a logit of -inf is a legal probability of zero
    illegal = rows.isnan() | (rows == torch.inf) if name == "logits" else ~rows.isfinite()
    if illegal.any():
        raise checks.teacher_not_finite(name, sample_ids.tolist())
