"""Running a teacher over a text once and keeping what it said in a cache on disk."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.fingerprint import Fingerprints, fingerprint_model, token_hashes
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.manifest import MANIFEST, UNFINISHED, Plan
from mkd_fast.teacher.cache.reader import TeacherCache
from mkd_fast.teacher.cache.writer import Records, open_writer
from mkd_fast.teacher.kept import LOGITS_DTYPES, kept_tensors, num_kept, tensor_specs

DEFAULT_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class CaptureProgress:
    """How far a capture has come, counting what an earlier run has done.

    Args:
        num_samples: samples captured.
        num_tokens: their tokens.
    """

    num_samples: int
    num_tokens: int


def capture(
    teacher_model: nn.Module,
    batches: Iterable[Any],
    path: str | Path,
    *,
    keep: str = "topk:64",
    hidden_layers: Sequence[int] = (),
    temperatures: Sequence[float] = (1.0,),
    vocab_size: int | None = None,
    logits_dtype: Literal["float32", "bfloat16"] = "float32",
    fingerprints: Fingerprints | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = True,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> TeacherCache:
    """Run the teacher over every batch and keep its outputs in a cache.

    Stopped at any moment and called again with the same arguments, it goes on after the last
    finished shard and ends with the same bytes as a run that was never stopped. Called again on
    a finished cache, it only opens it.

    Args:
        teacher_model: called with ``input_ids`` and ``attention_mask``; returns ``logits``
            ``[B, V]`` (one row per sample) or ``[B, S, V]`` (one per token), and
            ``hidden_states`` if asked. It runs in evaluation mode without gradients.
        batches: the same batches in the same order whenever they are iterated: objects or
            mappings with ``input_ids`` ``[B, S]``, ``attention_mask`` ``[B, S]`` and
            ``sample_ids`` ``[B]``. Padding may be on either side, and is not stored.
        path: the cache's folder; made if need be.
        keep: ``"logits"``, or ``"topk:K"`` for the K largest with log_z over all.
        hidden_layers: as ``transformers`` numbers hidden states: 0 the embeddings, i what layer i
            hands on; negative numbers count from the last. Stored per token in bfloat16.
        temperatures: for which log_z is stored; ``"logits"`` serves any and stores none.
        vocab_size: real columns of the logits; the rest, padding, is dropped. None: all.
        logits_dtype: of stored logits.
        fingerprints: of tokenizer and text, and of the teacher, which is computed if absent.
        device: where the teacher runs; None leaves it where it is.
        autocast: dtype of autocast; None for the model's own.
        shard_bytes: a shard is closed when it holds this much. One shard is held in memory.
        resume: False removes what an earlier capture has left in the folder.
        progress: called after each batch.

    Returns:
        The finished cache, open.

    Raises:
        ValueError: arguments out of range, a sample twice, outputs that are not finite, batches
            other than those of the run that is resumed, or a folder of another plan.
        RuntimeError: another process is writing there.
        OSError: the disk is full or not writable; what is finished is kept, and the same call
            goes on from it.

    Numerics:
        log_z in float32 from the logits as the model returns them.
    """
    checks.one_of("capture", "logits_dtype", logits_dtype, tuple(LOGITS_DTYPES))
    checks.positive("capture", "shard_bytes", shard_bytes)
    checks.positive("capture", "vocab_size", vocab_size)
    if device is not None:
        teacher_model.to(device)
    folder = Path(path)
    origin = fingerprints or Fingerprints()
    plan = Plan(
        keep=(keep,),
        vocab_size=vocab_size,
        logits_dtype=logits_dtype,
        temperatures=_stored_temperatures(keep, temperatures),
        hidden_layers=_layer_numbers(teacher_model, hidden_layers),
        shard_bytes=shard_bytes,
        fingerprints=replace(
            origin,
            teacher=origin.teacher or fingerprint_model(teacher_model),
            precision=origin.precision or _precision(teacher_model, autocast),
        ),
    )
    if resume and (folder / MANIFEST).exists():
        cache = TeacherCache.open(folder)
        plan.require(cache.manifest.plan, folder)
        (folder / UNFINISHED).unlink(missing_ok=True)  # stopped just after the manifest
        return cache
    with open_writer(folder, plan, resume=resume) as writer, _teaching(teacher_model):
        new = (b for b in map(_token_batch, batches) if not writer.skip(b.sample_ids, b.hashes))
        for records, tensors in _run(teacher_model, new, plan, autocast):
            writer.begin(tensors)
            writer.add(records)
            if progress is not None:
                progress(CaptureProgress(writer.num_samples, writer.num_tokens))
        writer.finish()
    return TeacherCache.open(folder)


def _stored_temperatures(keep: str, temperatures: Sequence[float]) -> tuple[float, ...]:
    if num_kept(keep) is None:
        return ()
    if len(set(temperatures)) < max(len(temperatures), 1):
        raise checks.bad_temperatures(temperatures)
    for temperature in temperatures:
        checks.positive("capture", "temperatures", temperature)
    return tuple(float(temperature) for temperature in temperatures)


def _layer_numbers(model: nn.Module, layers: Sequence[int]) -> tuple[int, ...]:
    if not layers:
        return ()
    config: Any = model.config
    num_layers = config.get_text_config().num_hidden_layers
    numbers = tuple(layer if layer >= 0 else num_layers + 1 + layer for layer in layers)
    in_range = all(0 <= number <= num_layers for number in numbers)
    if not in_range or len(set(numbers)) < len(numbers):
        raise checks.hidden_layers_out_of_range(layers, num_layers)
    return numbers


def _precision(model: nn.Module, autocast: torch.dtype | None) -> str:
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    return own if autocast is None else f"autocast {str(autocast).removeprefix('torch.')}"


@contextmanager
def _teaching(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache, and everything as it was afterwards."""
    was_training = model.training
    config: Any = getattr(model, "config", None)
    used_cache = getattr(config, "use_cache", None)
    model.eval()
    if used_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(was_training)
        if used_cache is not None:
            config.use_cache = used_cache


@dataclass(frozen=True)
class _TokenBatch:
    """A batch with what the host needs to know of it before the teacher has run."""

    input_ids: Tensor
    attention_mask: Tensor
    sample_ids: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    tokens: Tensor  # positions of the real ones in the flattened mask


def _token_batch(batch: Any) -> _TokenBatch:
    names = ("input_ids", "attention_mask", "sample_ids")
    get = batch.get if isinstance(batch, Mapping) else partial(getattr, batch)
    if missing := [name for name in names if get(name, None) is None]:
        raise checks.batch_without(type(batch).__name__, missing)
    input_ids, mask, sample_ids = (torch.as_tensor(get(name, None)) for name in names)
    if input_ids.shape != mask.shape or sample_ids.shape != input_ids.shape[:1]:
        raise checks.batch_shapes_differ(input_ids.shape, mask.shape, sample_ids.shape)
    real = mask.cpu().bool()
    return _TokenBatch(
        input_ids,
        mask,
        sample_ids.cpu().numpy().astype(np.int64),
        token_hashes(input_ids, mask),
        real.sum(1).numpy(),
        real.flatten().nonzero().squeeze(1),
    )


def _run(
    model: nn.Module, batches: Iterable[_TokenBatch], plan: Plan, autocast: torch.dtype | None
) -> Iterator[tuple[Records, tuple[TensorSpec, ...]]]:
    """Records of each batch; the device works on one while the host writes the one before."""
    in_flight: _Launched | None = None
    for batch in batches:
        launched = _launch(model, batch, plan, autocast)
        if in_flight is not None:
            yield in_flight.records(), in_flight.tensors
        in_flight = launched
    if in_flight is not None:
        yield in_flight.records(), in_flight.tensors


@dataclass(frozen=True)
class _Launched:
    """Work given to the device, with the host's copy of its results on the way."""

    batch: _TokenBatch
    tensors: tuple[TensorSpec, ...]
    on_host: dict[str, Tensor]
    copied: list[torch.cuda.Event]  # one for each GPU that holds a part of the outputs

    def records(self) -> Records:
        for event in self.copied:
            event.synchronize()
        for name, rows in self.on_host.items():
            # a logit of -inf is a legal probability of zero
            illegal = rows.isnan() | (rows == torch.inf) if "logits" in name else ~rows.isfinite()
            if illegal.any():
                raise checks.teacher_not_finite(name, self.batch.sample_ids.tolist())
        arrays = {name: _as_array(rows) for name, rows in self.on_host.items()}
        batch = self.batch
        return Records(batch.sample_ids, batch.hashes, batch.lengths, arrays)


def _launch(
    model: nn.Module, batch: _TokenBatch, plan: Plan, autocast: torch.dtype | None
) -> _Launched:
    device = next(model.parameters()).device
    inputs = {
        "input_ids": batch.input_ids.to(device, non_blocking=True),
        "attention_mask": batch.attention_mask.to(device, non_blocking=True),
    }
    options = {"output_hidden_states": True} if plan.hidden_layers else {}
    casting = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with torch.inference_mode():
        with casting:
            outputs = model(**inputs, **options)
        tensors = tensor_specs(plan, outputs)
        kept = kept_tensors(plan, outputs, batch.tokens.to(device, non_blocking=True))
    gpus = {rows.device for rows in kept.values() if rows.is_cuda}
    on_host = {n: rows.to("cpu", non_blocking=rows.is_cuda) for n, rows in kept.items()}
    copied = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]
    return _Launched(batch, tensors, on_host, copied)


def _as_array(rows: Tensor) -> NDArray[Any]:
    if rows.dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = rows.numpy()
    return array
