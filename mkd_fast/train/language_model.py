"""Language models, masked and causal: losses from hidden states, and KL to the teacher.

Only the tokens that have a label go through a head, and no [M, V] logits are kept of either side:
the loss is ``linear_kd_loss``. A student with a part of the vocabulary learns what the teacher says
given that it says a token of that part, and every model of its run, the teacher too, is scored
over these tokens: else a smaller vocabulary would look like a better model.

Shapes: M tokens with a label, V vocabulary, D width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mkd_fast import progress
from mkd_fast.data import Text, TokenisedText
from mkd_fast.data.batches import labelled_only
from mkd_fast.data.feeding import PLAIN, Feeding
from mkd_fast.data.tokens import NO_LABEL, Pieces
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.losses import LossOutput, LossSpec, SparseTeacher, linear_kd_loss
from mkd_fast.student import TokenMap
from mkd_fast.teacher.cache.kinds import HIDDEN
from mkd_fast.train import models
from mkd_fast.train.examiner import sums_of_pieces
from mkd_fast.train.heads import BehindHead, behind_head, into_head
from mkd_fast.train.loop import Step
from mkd_fast.train.task_kinds import Examined, KindOfModel, Teaching
from mkd_fast.train.tasks import DistillTask, LabelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class TokenLabelTask(LabelTask):
    """Cross-entropy with the tokens that are labels: fine-tuning. ``text`` is of ``Pieces``."""

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch."""
        return Step(labelled_only(self.feeding.collate(self.text, rows)))

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """The mean over the tokens that have a label."""
        ids_M = step.batch.labels
        zeros_M = torch.zeros(len(ids_M), device=ids_M.device)
        certain = SparseTeacher(ids_M[:, None], zeros_M[:, None], log_z=zeros_M)
        head, _ = into_head(model, step.batch)
        behind = behind_head(model.config)
        out = linear_kd_loss(
            head.hidden,
            head.weight,
            certain,
            student_bias=head.bias,
            spec=LossSpec(softcap=behind.softcap, logit_scale=behind.scale, teacher_softcap=None),
        )
        nothing = torch.zeros_like(out.kd)
        return LossOutput(out.loss, kd=nothing, ce=out.kd, hidden=nothing)


@dataclass(frozen=True)
class TokenDistillTask(DistillTask):
    """``linear_kd_loss`` against what a teacher left in its cache about the same pieces."""

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch and the teacher's outputs at its tokens that have a label."""
        step = super().read(rows)
        assert step.target is not None, "that of a DistillTask has one"
        batch = labelled_only(step.batch)
        return Step(batch, step.target.at(batch.positions))

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """``linear_kd_loss`` of the tokens that have a label."""
        assert step.target is not None, "read() gives every step its target"
        teacher, spec = step.target.teacher, self._spec_of(model)
        if self.token_map is not None:
            teacher = self.token_map.target(teacher, spec=spec)
        head, layers = into_head(model, step.batch, [ours for ours, _ in self.matched_layers])
        return linear_kd_loss(
            head.hidden,
            head.weight,
            teacher,
            step.batch.labels,
            head.bias,
            student_layers=layers,
            teacher_layers=step.target.hidden,
            spec=spec,
        )

    def _spec_of(self, model: nn.Module) -> LossSpec:
        """The loss, with what either side does to its logits behind the head.

        Of a teacher this was done before logits were kept, but not before hidden states were.
        """
        ours, manifest = behind_head(model.config), self.cache.manifest
        theirs = BehindHead(manifest.outputs.softcap, manifest.outputs.logit_scale)
        if manifest.plan.keep != (HIDDEN,):
            theirs = BehindHead()
        if ours == theirs == BehindHead():
            return self.spec
        return replace(
            self.spec,
            softcap=ours.softcap,
            logit_scale=ours.scale,
            teacher_softcap=theirs.softcap,
            teacher_logit_scale=theirs.scale,
        )


@dataclass(frozen=True)
class LanguageModel(KindOfModel):
    """A task whose models say tokens; which tokens of a text they are to say is a subclass's.

    Args:
        data: as of ``KindOfModel``.
    """

    @abstractmethod
    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> Pieces:
        """What is trained on: pieces of the text, with the tokens to be said as labels."""

    @abstractmethod
    def examined(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> Pieces:
        """What is tested on."""

    @abstractmethod
    def score_sums(
        self, examined: Examined, text: Pieces, sums: "np.ndarray[Any, np.dtype[np.float64]]"
    ) -> ModelScores:
        """Scores for each language of the sums over each piece that ``Examiner`` makes."""

    def labels_of(self, name: str) -> tuple[str, ...]:
        """None."""
        return ()

    def load(
        self, name: str, label_names: tuple[str, ...], *, new_head_seed: int | None = None
    ) -> "PreTrainedModel":
        """A language model of the kind."""
        return models.load_language_model(name, self.auto_class, new_head_seed=new_head_seed)

    def student_text(
        self,
        text: Text,
        teacher_text: TokenisedText,
        tokenizer: "PreTrainedTokenizerFast",
        token_map: TokenMap | None,
    ) -> Pieces:
        """The teacher's pieces; dropped tokens are unknown, and no labels."""
        assert isinstance(teacher_text, Pieces), "tokenise() made it"
        if token_map is None:
            return teacher_text
        ids = token_map.new_ids(torch.from_numpy(teacher_text.ids)).numpy()
        labels = token_map.labels(torch.from_numpy(teacher_text.labels), NO_LABEL).numpy()
        known = (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id, 0)
        unknown = next(token_id for token_id in known if token_id is not None)
        return replace(
            teacher_text,
            ids=np.where(ids < 0, np.int32(unknown), ids),
            labels=labels,
            pad_id=unknown if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )

    def label_task(
        self, tokens: TokenisedText, batch_size: int, seed: int, feeding: Feeding = PLAIN
    ) -> TokenLabelTask:
        """Cross-entropy with the tokens to be said."""
        return TokenLabelTask(tokens, batch_size, seed, feeding=feeding)

    def distill_task(
        self,
        tokens: TokenisedText,
        batch_size: int,
        seed: int,
        teaching: Teaching,
        feeding: Feeding = PLAIN,
    ) -> TokenDistillTask:
        """``linear_kd_loss``."""
        return TokenDistillTask(
            tokens,
            batch_size,
            seed,
            teacher_text=teaching.teacher_text,
            cache=teaching.cache,
            spec=teaching.spec,
            matched_layers=teaching.matched_layers,
            token_map=teaching.token_map,
            schedule=teaching.schedule,
            feeding=feeding,
        )

    def score(self, examined: Examined) -> ModelScores:
        """Of the text over tokens that the student's vocabulary has."""
        full = self.examined(examined.text, models.load_tokenizer(examined.teacher_folder))
        tokenizer = models.load_tokenizer(examined.folder)
        trimmed = self.student_text(examined.text, full, tokenizer, examined.token_map)
        theirs = replace(full, labels=trimmed.labels)
        is_teacher = examined.folder == examined.teacher_folder
        teacher = self.load(examined.teacher_folder, ())
        sums = sums_of_pieces(examined, theirs if is_teacher else trimmed, theirs, teacher)
        scores = self.score_sums(examined, theirs, sums)
        scored = {score.language for score in (*scores.seen, *scores.unseen)}
        if absent := sorted(set(languages_of(examined, full)) - scored):
            progress.say(
                f"evaluate: WARNING, no score in {' '.join(absent)}: the student's vocabulary has "
                "none of the tokens to be found; see data.vocabulary_text, student.vocabulary"
            )
        return scores


def languages_of(examined: Examined, text: Pieces) -> list[str]:
    """The language of each piece."""
    return [examined.text.languages[number] for number in text.texts.tolist()]
