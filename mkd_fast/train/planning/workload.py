"""What decides how much memory a recipe takes: its models' shapes and its largest batches.

``FromText`` reads and tokenises the recipe's text and loads no weights. ``FromLength`` reads
nothing but the model's config: every batch is full of samples of one length, and the vocabulary,
which ``student.vocabulary = "used"`` would cut to the text, is whole.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mkd_fast.checks import train as checks
from mkd_fast.data.batches import Batch, EvaluationBatches, collate, labelled_only
from mkd_fast.data.feeding import feeding
from mkd_fast.data.tokens import NO_LABEL, TokenisedText
from mkd_fast.layer_list import find_layer_list
from mkd_fast.student import TokenMap
from mkd_fast.student.layers import keep_layers
from mkd_fast.student.sizes import Sizes
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.train import corpus as corpora
from mkd_fast.train import models
from mkd_fast.train.config import Config
from mkd_fast.train.copying import trimmed_tokenizer
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.loop import Task
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.shares import share_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, eq=False)
class Workload:
    """What is computed at once, and with what.

    Attributes:
        teacher, student: configs of both models.
        layers: the teacher's layers that the student has.
        token_map: of a vocabulary that was cut.
        finetuned, captured, trained: the largest batches; of training, of a part of a step.
        num_tokens, num_samples: that a cache holds; None where that is not known.
    """

    teacher: "PretrainedConfig"
    student: "PretrainedConfig"
    layers: tuple[int, ...]
    token_map: TokenMap | None
    finetuned: Batch
    captured: Batch
    trained: Batch
    num_tokens: int | None = None
    num_samples: int | None = None

    def told(self, config: Config) -> str:
        """The largest batches, for people."""
        named = {"fine-tune": self.finetuned, "capture": self.captured, "train": self.trained}
        if config.teacher.finetuned:
            del named["fine-tune"]
        sizes = ", ".join(
            f"{name} {rows} x {tokens}"
            for name, (rows, tokens) in ((n, b.input_ids.shape) for n, b in named.items())
        )
        columns: Any = self.student.get_text_config()
        return (
            f"largest batches, samples x tokens: {sizes}; the student has "
            f"{len(self.layers)} layers and {columns.vocab_size:,} tokens"
        )


class Source(Protocol):
    """Where a workload is known from."""

    def workload(self, config: Config) -> Workload:
        """Of a recipe, or of one with other settings."""
        ...


class FromText:
    """The recipe's own text, read and tokenised once for all settings that leave it alone."""

    def __init__(self) -> None:
        self._texts: dict[Any, _Text] = {}

    def workload(self, config: Config) -> Workload:
        """Of the largest batches of the first epoch."""
        key = (config.data, config.teacher, config.task, config.run.seed)
        text = self._texts.setdefault(key, _Text(config))
        return text.workload(config)


class _Text:
    def __init__(self, config: Config) -> None:
        self._config, self._kind = config, kind_of(config)
        self._folder = resolve_model(config.teacher.model)
        self._trimmed: dict[float, tuple[TokenisedText, TokenMap]] = {}

    @cached_property
    def corpus(self) -> corpora.Corpus:
        config = self._config
        labels = self._kind.labels_of(self._folder) if config.teacher.finetuned else None
        return corpora.make(config.data, config.run.seed, labels, self._kind.read)

    @cached_property
    def tokens(self) -> TokenisedText:
        return self._kind.tokenise(self.corpus.train, models.load_tokenizer(self._folder))

    def students(self, config: Config) -> tuple[TokenisedText, TokenMap | None]:
        """The text in the student's ids, and its vocabulary."""
        if config.student.vocabulary == "all":
            return self.tokens, None
        coverage = config.student.coverage
        if coverage not in self._trimmed:
            full, train = models.load_tokenizer(self._folder), self.corpus.train
            written = self._kind.written(train, full)
            cut, token_map = trimmed_tokenizer(full, self.corpus, written, config)
            text = self._kind.student_text(train, self.tokens, cut, token_map)
            self._trimmed[coverage] = text, token_map
        return self._trimmed[coverage]

    def workload(self, config: Config) -> Workload:
        (text, token_map), tokens, kind = self.students(config), self.tokens, self._kind
        shapes = _Shapes.of(config, len(self.corpus.train.label_names), token_map)
        seed, optim = config.run.seed, config.finetune

        def fed(text: TokenisedText, optim: OptimConfig) -> Any:
            temperature = config.data.language_temperature
            return feeding(optim.packing, temperature, self.corpus.train.languages, text)

        of_labels = kind.label_task(tokens, optim.batch_size, seed, fed(tokens, optim))
        of_student = kind.label_task(text, config.train.batch_size, seed, fed(text, config.train))
        return Workload(
            shapes.teacher,
            shapes.student,
            shapes.layers,
            token_map,
            finetuned=_largest(of_labels, tokens, optim),
            captured=next(iter(EvaluationBatches(tokens, config.capture.batch_size))),
            trained=_largest(of_student, text, config.train),
            num_tokens=int(tokens.lengths.sum()),
            num_samples=len(tokens),
        )


def _largest(task: Task, text: TokenisedText, optim: OptimConfig) -> Batch:
    """Of the step of the first epoch with the most tokens, padding included, the largest part."""
    largest = max(task.batches(0), key=lambda rows: len(rows) * int(text.lengths[list(rows)].max()))
    parts = share_of(largest, task, optim.accumulate).parts
    return max((part.step.batch for part in parts), key=lambda batch: batch.input_ids.numel())


@dataclass(frozen=True)
class FromLength:
    """Full batches of samples of one length.

    Args:
        length: tokens of a sample; all have a label where tokens have, or ``data.mask_share``.
    """

    length: int

    def workload(self, config: Config) -> Workload:
        """Of the config alone.

        Raises:
            ValueError: the teacher has no positions for such samples.
        """
        shapes = _Shapes.of(config, 0, None)
        about: Any = shapes.teacher.get_text_config()
        positions = getattr(about, "max_position_embeddings", None) or self.length
        if self.length > positions:
            raise checks.longer_than_positions(self.length, positions, config.teacher.model)
        return Workload(
            shapes.teacher,
            shapes.student,
            shapes.layers,
            None,
            finetuned=self._part(config, config.finetune),
            captured=self._batch(config, config.capture.batch_size),
            trained=self._part(config, config.train),
        )

    def _part(self, config: Config, optim: OptimConfig) -> Batch:
        num_rows = math.ceil(optim.batch_size / optim.accumulate)
        return self._batch(config, num_rows, optim.packing)

    def _batch(self, config: Config, num_rows: int, packing: int = 0) -> Batch:
        offsets = np.arange(num_rows + 1, dtype=np.int64) * self.length
        ids = np.zeros(num_rows * self.length, np.int32)
        text = TokenisedText(ids, offsets, np.zeros(num_rows, np.int64), 0)
        batch = collate(text, range(num_rows), row_tokens=packing)
        if config.task.kind == "sequence_classification":
            return batch
        share = config.data.mask_share if config.task.kind == "masked_lm" else 1.0
        labels = torch.full_like(batch.input_ids, NO_LABEL)
        labels[:, : math.ceil(share * self.length)] = 0
        batch = replace(batch, labels=labels)
        return batch if config.task.kind == "token_classification" else labelled_only(batch)


@dataclass(frozen=True)
class _Shapes:
    """Configs of both models, and the layers that are kept."""

    teacher: "PretrainedConfig"
    student: "PretrainedConfig"
    layers: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, num_labels: int, token_map: TokenMap | None) -> "_Shapes":
        name = resolve_model(config.teacher.model)
        return shapes_of(
            models.skeleton_of(name, kind_of(config).auto_class), config, num_labels, token_map
        )


def shapes_of(
    skeleton: "PreTrainedModel", config: Config, num_labels: int, token_map: TokenMap | None
) -> _Shapes:
    """What a recipe makes of a teacher, of which there are the modules alone.

    Args:
        skeleton: the teacher, on the meta device.
        config: of the run; ``importance`` keeps as many layers as ``first``.
        num_labels: of the text; 0 leaves what the teacher has.
        token_map: of the student.
    """
    settings = config.student
    depth = "first" if settings.depth == "importance" else settings.depth
    layer_list = find_layer_list("copy_init", skeleton)
    kept = keep_layers(skeleton, layer_list, depth, settings.num_layers or None)
    teacher, student = copy.deepcopy(skeleton.config), kept.config
    if not settings.width_request.is_empty:
        settings.width_request.sizes(Sizes.of(skeleton)).write(student)
    if token_map is not None:
        student.vocab_size = len(token_map.keep_token_ids)
        token_map.renumber(student)
    if num_labels:
        teacher.num_labels = student.num_labels = num_labels
    return _Shapes(teacher, student, kept.layers)
