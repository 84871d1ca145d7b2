"""The part of a run that asks its teacher: the cache of what it said, made and mended."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast import progress
from mkd_fast.data.batches import EvaluationBatches
from mkd_fast.teacher.cache import (
    Damage,
    Fingerprints,
    TeacherCache,
    fingerprint_chat_template,
    fingerprint_tokenizer,
)
from mkd_fast.teacher.cache.manifest import MANIFEST
from mkd_fast.teacher.capture import CaptureProgress, capture
from mkd_fast.teacher.repair import repair
from mkd_fast.teacher.shared import resolved_num_parts
from mkd_fast.train import models
from mkd_fast.train.run_teacher import TeacherStages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mkd_fast.teacher.streamed import StreamedTeacher


class CacheStages(TeacherStages):
    """A run up to where its student learns; made as ``TeacherStages``."""

    @cached_property
    def cache(self) -> TeacherCache:
        """The teacher's outputs for the training text."""
        settings, path = self.config.capture, self.folder / "cache"
        with self._teaching("capture") as teaching:
            take_part = partial(
                capture,
                path=path,
                keep=settings.keep,
                hidden_layers=[theirs for _, theirs in self.matched_layers],
                hidden_dtype=settings.hidden_dtype,
                temperatures=(self.config.loss.resolved_teacher_temperature,),
                shard_bytes=settings.shard_megabytes << 20,
                **teaching,
            )
            if resolved_num_parts(path, None, teaching["batches"], resume=True) > 1:
                cache = take_part()
            else:
                cache = self.processes.made_once(
                    lambda: take_part() if (path / MANIFEST).exists() else None, take_part
                )
        summary = cache.summary()
        parts = ", ".join(f"{part} {size:,.0f}" for part, size in summary.bytes_per_token.items())
        progress.say(
            f"capture: {summary.num_samples:,} samples, {summary.num_tokens:,} tokens, "
            f"{summary.num_bytes / 1e6:,.0f} MB; bytes a token: {parts}"
        )
        return cache

    def repair(self, path: Path) -> tuple[Damage, ...]:
        """Make a damaged cache of the run's teacher and text as it was; what was damaged."""
        with self._teaching("repair") as teaching:
            return repair(path, **teaching)

    @contextmanager
    def _teaching(self, name: str) -> Iterator[dict[str, Any]]:
        """The teacher and its text, as ``capture`` and ``repair`` take them, and a bar."""
        tokenizer = models.load_tokenizer(self.teacher_folder)
        with (
            self._captured_teacher() as teacher,
            progress.bar(name, len(self.teacher_text)) as bar,
        ):

            def show(state: CaptureProgress) -> None:
                bar.update(state.num_samples, f"{state.num_tokens:,} tokens")

            yield {
                "teacher_model": teacher,
                "batches": EvaluationBatches(self.teacher_text, self.config.capture.batch_size),
                "fingerprints": Fingerprints(
                    tokenizer=fingerprint_tokenizer(tokenizer),
                    chat_template=fingerprint_chat_template(tokenizer),
                    dataset=self.teacher_text.fingerprint,
                ),
                "device": self.device,
                "progress": show,
            }

    @contextmanager
    def _captured_teacher(self) -> Iterator["PreTrainedModel | StreamedTeacher"]:
        """The teacher in memory, or streamed in as much as ``[capture] max_memory`` allows."""
        num_bytes = self.config.capture.max_memory_bytes
        if num_bytes is None:
            yield self._loaded(self.teacher_folder)
            return
        with self.kind.stream(self.teacher_folder, self.device, num_bytes) as streamed:
            progress.say(
                f"capture: layer by layer, {streamed.num_layers} of them, in {num_bytes:,} bytes"
            )
            yield streamed
