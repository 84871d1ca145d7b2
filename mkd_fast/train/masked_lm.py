"""Masked language models: running text, losses from hidden states, KL to the teacher.

Only the tokens that are to be found go through a head, and no [M, V] logits are kept of either
side: the loss is ``linear_kd_loss``. A student with a part of the vocabulary learns what the
teacher says given that it says a token of that part, and every model of its run, the teacher too,
is scored over these tokens: else a smaller vocabulary would look like a better model.

Shapes: M tokens to be found, V vocabulary, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast import progress
from mkd_fast.data import HubSource, Text, TokenisedText
from mkd_fast.data.batches import collate, evaluation_batches, length_grouped_batches
from mkd_fast.data.masked import MaskedBatch, MaskedText, labelled_only, mask_text
from mkd_fast.data.plain import RunningText, load_running
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.evaluate.language_model import score_language_model
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.losses import (
    LossOutput,
    LossSpec,
    SparseTeacher,
    TeacherHead,
    linear_kd_loss,
)
from mkd_fast.student import TokenMap
from mkd_fast.train import models
from mkd_fast.train.config import DataConfig
from mkd_fast.train.loop import Step, to_device
from mkd_fast.train.task_kinds import Examined, Teaching
from mkd_fast.train.tasks import DistillTask, LabelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mkd_fast.teacher.streamed import StreamedTeacher

_EXAMINED_BY = LossSpec(ce_weight=1.0, reduction="none")


@dataclass(frozen=True)
class MaskedLabelTask(LabelTask):
    """Cross-entropy with the tokens that were hidden: fine-tuning.

    ``text`` is a ``MaskedText``; an epoch is one of its maskings, in turn.
    """

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step."""
        return _batches_of_masking(self, epoch)

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch."""
        return Step(labelled_only(collate(self.text, rows)))

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """The mean over the tokens to be found."""
        ids_M = step.batch.labels
        zeros_M = torch.zeros(len(ids_M), device=ids_M.device)
        certain = SparseTeacher(ids_M[:, None], zeros_M[:, None], log_z=zeros_M)
        head, _ = _into_head(model, step)
        out = linear_kd_loss(head.hidden, head.weight, certain, student_bias=head.bias)
        nothing = torch.zeros_like(out.kd)
        return LossOutput(out.loss, kd=nothing, ce=out.kd, hidden=nothing)


@dataclass(frozen=True)
class MaskedDistillTask(DistillTask):
    """``linear_kd_loss`` against what a teacher left in its cache about the same masked text."""

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step."""
        return _batches_of_masking(self, epoch)

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch and the teacher's outputs for its tokens to be found."""
        step = super().read(rows)
        assert step.target is not None, "that of a DistillTask has one"
        batch = labelled_only(step.batch)
        return Step(batch, step.target.at(batch.positions))

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """``linear_kd_loss`` of the tokens to be found."""
        assert step.target is not None, "read() gives every step its target"
        teacher = step.target.teacher
        if self.token_map is not None:
            teacher = self.token_map.target(teacher, spec=self.spec)
        head, layers = _into_head(model, step, [ours for ours, _ in self.matched_layers])
        return linear_kd_loss(
            head.hidden,
            head.weight,
            teacher,
            step.batch.labels,
            head.bias,
            student_layers=layers,
            teacher_layers=step.target.hidden,
            spec=self.spec,
        )


def _batches_of_masking(task: LabelTask, epoch: int) -> list[list[int]]:
    text = task.text
    assert isinstance(text, MaskedText), "tokenise() made it"
    first = (epoch % text.num_maskings) * text.num_pieces
    batches = length_grouped_batches(
        text.lengths[first : first + text.num_pieces],
        batch_size=task.batch_size,
        seed=task.seed,
        epoch=epoch,
    )
    return [[first + row for row in rows] for rows in batches]


def _into_head(
    model: nn.Module, step: Step, layers: Sequence[int] = ()
) -> tuple[TeacherHead, list[Tensor]]:
    """Head and its input at the tokens to be found, and the hidden states [M, D] of some layers."""
    batch = step.batch
    assert isinstance(batch, MaskedBatch), "read() made it"
    with _head_left_out(model) as head:
        out = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=bool(layers),
        )

    def found(states: Tensor) -> Tensor:
        return states.flatten(0, 1).index_select(0, batch.positions)

    hidden = found(out.logits).to(head.weight.dtype)
    states = [found(out.hidden_states[layer]) for layer in layers]
    return TeacherHead(hidden, head.weight, getattr(head, "bias", None)), states


@contextmanager
def _head_left_out(model: nn.Module) -> Iterator[Any]:
    """What goes into the head comes out of it, as the model's logits."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]  # transformers' models
    head.forward = lambda states: states
    try:
        yield head
    finally:
        del head.forward


@dataclass(frozen=True)
class MaskedLanguageModel:
    """Running text of which some tokens are hidden; KL to the teacher and perplexity.

    Args:
        data: its ``num_maskings`` inputs of every piece of text are captured once.
        seed: of what is masked.
    """

    data: DataConfig
    seed: int
    auto_class = "AutoModelForMaskedLM"

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> RunningText:
        """Columns ``text`` and ``language``, or lines."""
        return load_running(source)

    def labels_of(self, name: str) -> tuple[str, ...]:
        """None."""
        return ()

    def load(
        self, name: str, label_names: tuple[str, ...], *, new_head_seed: int | None = None
    ) -> "PreTrainedModel":
        """A masked language model."""
        return models.load_masked_lm(name, new_head_seed=new_head_seed)

    def stream(self, name: str, device: torch.device, max_memory_bytes: int) -> "StreamedTeacher":
        """A masked language model that is never in memory as a whole."""
        return models.stream_model(name, device, max_memory_bytes, self.auto_class)

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> MaskedText:
        """Pieces of the text, each ``num_maskings`` times."""
        return self._masked(text, tokenizer, self.data.num_maskings)

    def _masked(
        self, text: Text, tokenizer: "PreTrainedTokenizerFast", num_maskings: int
    ) -> MaskedText:
        assert isinstance(text, RunningText), "read() made it"
        return mask_text(
            text,
            tokenizer,
            max_length=self.data.max_length,
            text_prefix=self.data.text_prefix,
            num_maskings=num_maskings,
            mask_share=self.data.mask_share,
            seed=self.seed,
        )

    def student_text(
        self,
        text: Text,
        teacher_text: TokenisedText,
        tokenizer: "PreTrainedTokenizerFast",
        token_map: TokenMap | None,
    ) -> MaskedText:
        """The teacher's masked text; dropped tokens are unknown, and nothing to be found."""
        assert isinstance(teacher_text, MaskedText), "tokenise() made it"
        if token_map is None:
            return teacher_text
        ids = token_map.new_ids(torch.from_numpy(teacher_text.ids)).numpy()
        labels = token_map.labels(torch.from_numpy(teacher_text.labels), NO_LABEL).numpy()
        unknown = tokenizer.unk_token_id
        if unknown is None:
            unknown = tokenizer.mask_token_id
        return replace(
            teacher_text,
            ids=np.where(ids < 0, np.int32(unknown), ids),
            labels=labels,
            pad_id=tokenizer.pad_token_id,
        )

    def what_is_lost(self, tokens: TokenisedText) -> None:
        """Nothing: a text that is too long makes several pieces."""

    def label_task(self, tokens: TokenisedText, batch_size: int, seed: int) -> MaskedLabelTask:
        """Cross-entropy with what was hidden."""
        return MaskedLabelTask(tokens, batch_size, seed)

    def distill_task(
        self, tokens: TokenisedText, batch_size: int, seed: int, teaching: Teaching
    ) -> MaskedDistillTask:
        """``linear_kd_loss``."""
        return MaskedDistillTask(
            tokens,
            batch_size,
            seed,
            teacher_text=teaching.teacher_text,
            cache=teaching.cache,
            spec=teaching.spec,
            matched_layers=teaching.matched_layers,
            token_map=teaching.token_map,
        )

    def score(self, examined: Examined) -> ModelScores:
        """Of one masking of the text, over tokens that the student's vocabulary has."""
        teacher_tokenizer = models.load_tokenizer(examined.teacher_folder)
        full = self._masked(examined.text, teacher_tokenizer, 1)
        tokenizer = models.load_tokenizer(examined.folder)
        trimmed = self.student_text(examined.text, full, tokenizer, examined.token_map)
        is_teacher = examined.folder == examined.teacher_folder
        ours = replace(full, labels=trimmed.labels) if is_teacher else trimmed
        teacher = self.load(examined.teacher_folder, ())
        examiner = _Examiner(examined, ours, replace(full, labels=trimmed.labels), teacher)
        languages = [examined.text.languages[row] for row in full.texts.tolist()]
        scores = score_language_model(
            examined.name, examiner.sums(), languages, seen_languages=examined.seen
        )
        scored = {score.language for score in (*scores.seen, *scores.unseen)}
        if absent := sorted(set(languages) - scored):
            progress.say(
                f"evaluate: WARNING, no score in {' '.join(absent)}: the student's vocabulary has "
                "none of the tokens to be found; see data.vocabulary_text, student.vocabulary"
            )
        return scores


class _Examiner:
    """A model beside its teacher, over one masked text."""

    def __init__(
        self, examined: Examined, ours: MaskedText, theirs: MaskedText, teacher: "PreTrainedModel"
    ) -> None:
        self._examined = examined
        self._sides = (
            (examined.model.eval(), ours),
            (models.to_device(teacher, examined.device).eval().requires_grad_(False), theirs),
        )

    @torch.inference_mode()
    def sums(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """KL, cross-entropy and number of the tokens to be found in each sample, [N, 3]."""
        examined, text = self._examined, self._sides[0][1]
        sums_N3 = torch.zeros(len(text), 3, dtype=torch.float64, device=examined.device)
        batches = evaluation_batches(text.lengths, batch_size=examined.batch_size)
        with progress.bar(f"evaluate {examined.name}", len(text)) as bar:
            for rows in bar.over(batches, len):
                (ours, batch), (theirs, _) = (self._head(*side, rows) for side in self._sides)
                out = linear_kd_loss(
                    ours.hidden,
                    ours.weight,
                    theirs,
                    batch.labels,
                    ours.bias,
                    spec=_EXAMINED_BY,
                )
                samples_M = batch.sample_ids[batch.positions // batch.input_ids.shape[1]]
                values_M3 = torch.stack([out.kd, out.ce, torch.ones_like(out.kd)], -1)
                sums_N3.index_add_(0, samples_M, values_M3.double())
        found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = sums_N3.cpu().numpy()
        return found

    def _head(
        self, model: nn.Module, text: MaskedText, rows: Sequence[int]
    ) -> tuple[TeacherHead, MaskedBatch]:
        """Head and its input, over the student's vocabulary whosever it is."""
        batch = to_device(labelled_only(collate(text, rows)), self._examined.device)
        head, _ = _into_head(model, Step(batch))
        token_map = self._examined.token_map
        if token_map is not None and len(head.weight) > len(token_map.keep_token_ids):
            restricted = token_map.target(head)
            assert isinstance(restricted, TeacherHead), "it stays of its kind"
            head = restricted
        return head, batch
