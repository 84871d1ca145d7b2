"""Running a teacher over a text once and keeping what it said in a cache on disk."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mkd_fast.checks import cache as cache_checks
from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.fingerprint import (
    Fingerprints,
    fingerprint_model,
    fingerprint_weights,
)
from mkd_fast.teacher.cache.kinds import DTYPES, HIDDEN, STATE_DTYPES, parse_keep
from mkd_fast.teacher.cache.manifest import MANIFEST, Plan
from mkd_fast.teacher.cache.reader import TeacherCache
from mkd_fast.teacher.cache.writer import CacheWriter, open_writer
from mkd_fast.teacher.kept import Keeper, Launched, TeacherOutputs
from mkd_fast.teacher.runners import (
    Runner,
    outputs_of,
    runner_of,
    token_batch,
)
from mkd_fast.teacher.shared import capture_parts, remove_parts, resolved_num_parts

if TYPE_CHECKING:
    from mkd_fast.teacher.streamed import StreamedTeacher

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
    teacher_model: "nn.Module | StreamedTeacher",
    batches: Iterable[Any],
    path: str | Path,
    *,
    keep: str | Sequence[str] = "topk:64",
    hidden_layers: Sequence[int] = (),
    temperatures: Sequence[float] = (1.0,),
    vocab_size: int | None = None,
    logits_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    last_hidden_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    hidden_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16",
    proposal_exponent: float = 1.0,
    seed: int = 0,
    fingerprints: Fingerprints | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = True,
    num_parts: int | None = None,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> TeacherCache:
    """Run the teacher over every batch and keep its outputs in a cache.

    Stopped at any moment and called again with the same arguments, it goes on after the last
    finished shard and ends with the same bytes as a run that was never stopped. Called again on
    a finished cache, it only opens it.

    Args:
        teacher_model: called with ``input_ids`` and ``attention_mask``; returns ``logits``
            ``[B, V]`` (one row per sample) or ``[B, S, V]`` (one per token), and
            ``hidden_states`` if asked. It runs in evaluation mode without gradients. A
            ``StreamedTeacher`` is never in memory as a whole.
        batches: the same batches in the same order whenever they are iterated: objects or
            mappings with ``input_ids`` ``[B, S]``, ``attention_mask`` ``[B, S]`` and
            ``sample_ids`` ``[B]``. Padding may be on either side, and is not stored.
        path: the cache's folder; made if need be.
        keep: one kind or several: ``"logits"``; ``"topk:K"``, the K largest with log_z over all;
            ``"sampled:N"``, the distinct ones of N <= 255 draws with replacement; ``"hidden"``,
            what goes into the head, with the head beside it.
        hidden_layers: as ``transformers`` numbers hidden states: 0 the embeddings, i what layer i
            hands on; negative numbers count from the last. Stored per token.
        temperatures: for which top-k has log_z; the first is that of what is sampled. ``"logits"``
            and ``"hidden"`` serve any.
        vocab_size: real columns of the logits; the rest, padding, is dropped. None: all.
        logits_dtype: of ``"logits"``.
        last_hidden_dtype: of ``"hidden"``; None for the one it comes in, which is exact.
        hidden_dtype: of hidden_layers; ``"int8"`` has a scale per token.
        proposal_exponent: tau; samples are drawn in proportion to p^tau.
        seed: of the draws, which depend on it and the sample id, and on nothing else.
        fingerprints: of tokenizer and text, and of the teacher, which is computed if absent.
        device: where the teacher runs; None leaves it where it is.
        autocast: dtype of autocast; None for the model's own.
        shard_bytes: a shard is closed when it holds this much. Up to two shards are held in memory.
        resume: False removes what an earlier capture has left in the folder.
        num_parts: P > 1 lets any number of processes, on machines that share the folder, call this
            with the same arguments, and each returns the whole cache. They take the parts, every
            P-th batch each, in turn, those of killed processes too; the bytes depend on P alone.
            It rests on locks of the file system (``mkd_fast.teacher.shared``). None: as the folder
            was begun, else the world size where ``torch.distributed`` is initialised (if there are
            as many batches), else 1.
        progress: called after each batch; counts the part at hand where there are several.

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
    checks.one_of("capture", "logits_dtype", logits_dtype, tuple(DTYPES))
    if last_hidden_dtype is not None:
        checks.one_of("capture", "last_hidden_dtype", last_hidden_dtype, tuple(DTYPES))
    checks.one_of("capture", "hidden_dtype", hidden_dtype, STATE_DTYPES)
    checks.positive("capture", "shard_bytes", shard_bytes)
    checks.positive("capture", "vocab_size", vocab_size)
    checks.positive("capture", "proposal_exponent", proposal_exponent)
    checks.positive("capture", "num_parts", num_parts)
    if device is not None and isinstance(teacher_model, nn.Module):
        teacher_model.to(device)
    folder, kinds = Path(path), parse_keep(keep)
    plan = Plan(
        keep=kinds,
        vocab_size=vocab_size,
        logits_dtype=logits_dtype,
        last_hidden_dtype=last_hidden_dtype,
        temperatures=_stored_temperatures(kinds, temperatures),
        proposal_exponent=float(proposal_exponent),
        seed=seed,
        hidden_layers=_layer_numbers(teacher_model, hidden_layers),
        hidden_dtype=hidden_dtype,
        shard_bytes=shard_bytes,
        fingerprints=complete(fingerprints, teacher_model, autocast),
        num_parts=resolved_num_parts(folder, num_parts, batches, resume=resume),
    )
    if not resume and plan.num_parts > 1:
        raise cache_checks.parts_begun_anew(plan.num_parts)
    if resume and (folder / MANIFEST).exists():
        cache = TeacherCache.open(folder)
        plan.require("capture", cache.manifest.plan, folder)
        remove_parts(folder)
        return cache
    runner = runner_of(teacher_model, plan, autocast)

    def write(writer: CacheWriter, batches: Iterable[Any]) -> None:
        write_records(writer, runner, batches, progress)

    if plan.num_parts > 1:
        capture_parts(folder, plan, batches, write)
        remove_parts(folder)
    else:
        with open_writer(folder, plan, resume=resume) as writer:
            write(writer, batches)
    return TeacherCache.open(folder)


def write_records(
    writer: CacheWriter,
    runner: Runner,
    batches: Iterable[Any],
    progress: Callable[[CaptureProgress], None] | None,
) -> None:
    """Run the teacher over what the writer does not have yet, and complete the cache."""
    tokens = map(token_batch, batches)
    new = (batch for batch in tokens if not writer.skip(batch.sample_ids, batch.hashes))
    keeper: Keeper | None = None
    in_flight: deque[Launched] = deque()
    keeps_head = HIDDEN in writer.plan.keep

    def write_next() -> None:
        assert keeper is not None, "what is in flight was launched by it"
        records = in_flight.popleft().records()
        writer.begin(keeper.outputs, keeper.tensors)
        writer.add(records)
        if progress is not None:
            progress(CaptureProgress(writer.num_samples, writer.num_tokens))

    # the device works on one batch while the host writes the one before
    for batch, outputs in runner.run(new):
        is_first = keeper is None
        if keeper is None:
            about = outputs_of(runner.config, writer.plan, _num_columns(outputs, runner))
            keeper = Keeper(writer.plan, outputs, about)
        in_flight.append(keeper.launch(batch, outputs))
        if is_first or len(in_flight) > 1:
            write_next()
        if is_first and keeps_head and runner.has_head_at_hand:
            writer.hand_on_head(*runner.head())  # it is written while the teacher goes on
    while in_flight:
        write_next()
    if keeps_head and not writer.has_head:
        writer.hand_on_head(*runner.head())
    writer.finish()


def _num_columns(outputs: TeacherOutputs, runner: Runner) -> int:
    if outputs.logits is not None:
        return outputs.logits.shape[-1]
    return runner.num_head_columns


def _stored_temperatures(
    kinds: tuple[str, ...], temperatures: Sequence[float]
) -> tuple[float, ...]:
    if not any(kind.startswith(("topk", "sampled")) for kind in kinds):
        return ()
    if len(set(temperatures)) < max(len(temperatures), 1):
        raise checks.bad_temperatures(temperatures)
    for temperature in temperatures:
        checks.positive("capture", "temperatures", temperature)
    return tuple(float(temperature) for temperature in temperatures)


def _layer_numbers(
    teacher: "nn.Module | StreamedTeacher", layers: Sequence[int]
) -> tuple[int, ...]:
    if not layers:
        return ()
    config: Any = _model(teacher).config
    num_layers = config.get_text_config().num_hidden_layers
    numbers = tuple(layer if layer >= 0 else num_layers + 1 + layer for layer in layers)
    in_range = all(0 <= number <= num_layers for number in numbers)
    if not in_range or len(set(numbers)) < len(numbers):
        raise checks.hidden_layers_out_of_range(layers, num_layers)
    return numbers


def complete(
    given: Fingerprints | None,
    teacher: "nn.Module | StreamedTeacher",
    autocast: torch.dtype | None,
) -> Fingerprints:
    """Fingerprints with those of the teacher and its precision, where they were not given."""
    given = given or Fingerprints()
    precision = str(next(_model(teacher).parameters()).dtype).removeprefix("torch.")
    if autocast is not None:
        precision = f"autocast {str(autocast).removeprefix('torch.')}"
    return replace(
        given,
        teacher=given.teacher or _fingerprint(teacher),
        precision=given.precision or precision,
    )


def _model(teacher: "nn.Module | StreamedTeacher") -> nn.Module:
    return teacher if isinstance(teacher, nn.Module) else teacher.model


def _fingerprint(teacher: "nn.Module | StreamedTeacher") -> str:
    if isinstance(teacher, nn.Module):
        return fingerprint_model(teacher)
    return fingerprint_weights(teacher.model.config, teacher.named_weights())
