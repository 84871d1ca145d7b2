"""What a recipe's task decides: its text, tokens, models, losses and scores.

``[task] kind`` names one; stages ask it and do not look at its name.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from mkd_fast.data import HubSource, Text, TokenisedText
from mkd_fast.data.feeding import PLAIN, Feeding
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.losses import LossSpec
from mkd_fast.student import TokenMap
from mkd_fast.teacher.cache import TeacherCache
from mkd_fast.train import models
from mkd_fast.train.config import DataConfig
from mkd_fast.train.loop import Task
from mkd_fast.train.schedule import CONSTANT, LossSchedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mkd_fast.teacher.streamed import StreamedTeacher


@dataclass(frozen=True)
class Teaching:
    """What a student learns from.

    Args:
        teacher_text: the text in the teacher's token ids, to compare with the cache's.
        cache: the teacher's outputs.
        spec: the loss.
        matched_layers: pairs (hidden state of the student, hidden state of the teacher), as
            ``transformers`` numbers them; none where hidden states play no part.
        token_map: the student's vocabulary within the teacher's; None where it is the same.
        schedule: how the weights of the loss move.
    """

    teacher_text: TokenisedText
    cache: TeacherCache
    spec: LossSpec
    matched_layers: tuple[tuple[int, int], ...]
    token_map: TokenMap | None
    schedule: LossSchedule = CONSTANT


@dataclass(frozen=True)
class Examined:
    """A model, and what it is scored on.

    Args:
        name: under which its scores are reported.
        model: on its device.
        folder: where it and its tokenizer are kept.
        text: in seen and unseen languages.
        seen: the languages it was trained on.
        batch_size: samples a forward pass.
        teacher_folder: its teacher's.
        token_map: as of ``Teaching``.
    """

    name: str
    model: "PreTrainedModel"
    folder: str
    text: Text
    seen: tuple[str, ...]
    batch_size: int
    teacher_folder: str
    token_map: TokenMap | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


class TaskKind(Protocol):
    """A task; ``train.classification``, ``train.masked_lm`` and ``train.causal_lm`` have them."""

    @property
    def auto_class(self) -> str:
        """The class of ``transformers`` whose ``from_pretrained`` loads a model of the task."""
        ...

    @property
    def starts_at_label_shares(self) -> bool:
        """Whether a new head is to: ``models.start_at_label_shares``."""
        ...

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> Text:
        """Text of the task; without ``label_names`` it is training text, which defines them."""
        ...

    def written(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> list[str]:
        """The texts as they are tokenised, from which a student's vocabulary is chosen."""
        ...

    def labels_of(self, name: str) -> tuple[str, ...]:
        """The labels of a model that is fine-tuned already, in the order of its logits."""
        ...

    def load(
        self, name: str, label_names: tuple[str, ...], *, new_head_seed: int | None = None
    ) -> "PreTrainedModel":
        """A model in float32, with a new head where it has none and a seed is given."""
        ...

    def stream(self, name: str, device: torch.device, max_memory_bytes: int) -> "StreamedTeacher":
        """A fine-tuned model that runs layer by layer from its files, in float32."""
        ...

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> TokenisedText:
        """Training text in the teacher's token ids, as long as ``[data]`` allows."""
        ...

    def student_text(
        self,
        text: Text,
        teacher_text: TokenisedText,
        tokenizer: "PreTrainedTokenizerFast",
        token_map: TokenMap | None,
    ) -> TokenisedText:
        """The same in the student's token ids."""
        ...

    def what_is_lost(self, tokens: TokenisedText) -> str | None:
        """A line for people about labels that the tokens do not have; None where all are there."""
        ...

    def label_task(
        self, tokens: TokenisedText, batch_size: int, seed: int, feeding: Feeding = PLAIN
    ) -> Task:
        """Fine-tuning."""
        ...

    def distill_task(
        self,
        tokens: TokenisedText,
        batch_size: int,
        seed: int,
        teaching: Teaching,
        feeding: Feeding = PLAIN,
    ) -> Task:
        """Learning from a cache."""
        ...

    def score(self, examined: Examined) -> ModelScores:
        """Scores of a model for each language."""
        ...


@dataclass(frozen=True)
class KindOfModel(ABC):
    """What the kinds of this package share.

    Args:
        data: ``[data]``, which says how long a sample may be.
    """

    data: DataConfig
    auto_class: ClassVar[str]
    starts_at_label_shares: ClassVar[bool] = False

    def written(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> list[str]:
        """Texts with their prefix."""
        return [self.data.text_prefix + one for one in text.texts]

    def stream(self, name: str, device: torch.device, max_memory_bytes: int) -> "StreamedTeacher":
        """A model that is never in memory as a whole."""
        return models.stream_model(name, device, max_memory_bytes, self.auto_class)
