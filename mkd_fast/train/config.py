"""Recipes: TOML read into frozen dataclasses, every key and type checked once.

    config = load("recipes/home_intents.toml", {"train.epochs": "2"})

The section ``[loss]`` is a LossSpec, and ``[loss_schedule]`` a LossSchedule. An unknown key is
refused with the nearest known one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mkd_fast.checks import recipe as checks
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.losses.spec import LossSpec
from mkd_fast.student.depth import DEPTHS
from mkd_fast.student.width import WIDTHS, WidthRequest
from mkd_fast.teacher.cache.kinds import parse_keep
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.recipe import built, load_as
from mkd_fast.train.schedule import LossSchedule


def num_bytes(place: str, key: str, text: str) -> int:
    """Bytes as people write them, "2GiB"; ValueError for anything else."""
    units = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text)
    if found is None or found[2] not in units:
        raise checks.not_a_size(place, key, text)
    return int(float(found[1]) * (1 << units[found[2]]))


@dataclass(frozen=True)
class RunConfig:
    """``[run]``: where a run lives and its seed.

    Args:
        folder: everything the run writes, relative to the working directory.
        seed: of shuffling, dropout and new weights.
        device: "auto" takes a GPU where there is one.
        trackers: "tensorboard", "wandb": where training can be watched besides metrics.jsonl.
    """

    folder: str = "runs/run"
    seed: int = 0
    device: str = "auto"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class TaskConfig:
    """``[task]``: what models learn to say.

    Args:
        kind: "sequence_classification", a label for each text; "token_classification", a tag for
            each word, as for named entities; "masked_lm", running text of which some tokens are
            hidden; "causal_lm", running text or chats of which each token is said from those
            before it, of chats those of the assistant's answers.
    """

    kind: Literal["sequence_classification", "token_classification", "masked_lm", "causal_lm"] = (
        "sequence_classification"
    )

    @property
    def says_tokens(self) -> bool:
        """Whether its models are language models."""
        return self.kind in ("masked_lm", "causal_lm")


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: labelled text by language.

    Args:
        source: "home_intents" or, for language models, "home_text" (both built from PyPI packages),
            "files" or "hub".
        train, test: files with columns text, label, language (JSONL, CSV, Parquet), or, where
            words are tagged, tokens, tags, language (JSONL, Parquet); or, for language models,
            text, language, or lines (.txt), or chats with messages, language (JSONL, Parquet), a
            message having a role and a content; or split names of the hub dataset.
        dev: likewise, by which a study chooses learning rates; no other run reads it.
        seen: languages trained on; empty: all that the training text has, ``unseen`` excepted.
        unseen: languages only tested; empty: all that only the test text has.
        vocabulary_text: a text file, a sentence a line and no labels: with the training text in
            any language, what the student's vocabulary is chosen by. Unseen languages need it.
        hub_name, hub_config, text_column, label_column, language_column: for "hub". Where words
            are tagged, text_column and label_column hold lists.
        entity_types: for token classification, the types of entities that count; words of others
            are read as "O". Empty: all of the training text, and tested text may have no other.
        train_per_intent, dev_per_intent, test_per_intent: for "home_intents", sentences a language
            and intent.
        text_prefix: put before every text when it is tokenised ("query: " for E5 models).
        max_length: longest sequence, in tokens. Running text is cut into pieces of it.
        num_maskings: for "masked_lm", masked inputs of each piece: an epoch trains on one, the next
            on the next, and the teacher's outputs for all are captured.
        mask_share: of the tokens, that are to be found.
        language_temperature: T; of each epoch a language with n samples makes up a share in
            proportion to n^(1 / T): as it is at 1, all languages alike at inf.
    """

    source: Literal["home_intents", "home_text", "files", "hub"] = "files"
    train: str = ""
    dev: str = ""
    test: str = ""
    seen: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    vocabulary_text: str = ""
    hub_name: str = ""
    hub_config: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    language_column: str = "language"
    entity_types: tuple[str, ...] = ()
    train_per_intent: int = 20
    dev_per_intent: int = 5
    test_per_intent: int = 8
    text_prefix: str = ""
    max_length: int = 128
    num_maskings: int = 4
    mask_share: float = 0.15
    language_temperature: float = 1.0

    def __post_init__(self) -> None:
        if both := set(self.seen) & set(self.unseen):
            raise checks.seen_and_unseen(both)
        checks.positive("recipe: [data]", "num_maskings", self.num_maskings)
        checks.positive("recipe: [data]", "mask_share", self.mask_share)
        if not self.language_temperature >= 1.0:
            raise checks.temperature_below_one(self.language_temperature)
        if self.mask_share > 1.0:
            raise checks.share_out_of_range("recipe: [data]", "mask_share", self.mask_share)

    @property
    def is_built(self) -> bool:
        """Whether this package makes the text, and splits it itself."""
        return self.source in ("home_intents", "home_text")


@dataclass(frozen=True)
class TeacherConfig:
    """``[teacher]``: a name this package knows, a model folder, or a hub name.

    Args:
        model: what the task's class of ``transformers`` can load, as
            ``AutoModelForSequenceClassification``.
        finetuned: the model is a classifier of these labels already; use it as it is.
    """

    model: str = "multilingual-e5-small"
    finetuned: bool = False


@dataclass(frozen=True)
class CaptureConfig:
    """``[capture]``: what of the teacher's outputs goes to disk.

    Args:
        keep: "logits", "topk:K" or "sampled:N", or for language models "hidden". Hidden layers
            follow from ``student`` and ``loss``.
        hidden_dtype: of these layers.
        batch_size: sentences a forward pass.
        shard_megabytes: a shard is closed when it has grown to this.
        max_memory: "" runs the teacher from memory; "2GiB" runs it layer by layer, from its files,
            in that much memory.
    """

    keep: str = "logits"
    hidden_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    batch_size: int = 64
    shard_megabytes: int = 256
    max_memory: str = ""

    def __post_init__(self) -> None:
        parse_keep(self.keep)  # which refuses what is unknown
        for key in ("batch_size", "shard_megabytes"):
            checks.positive("recipe: [capture]", key, getattr(self, key))
        _ = self.max_memory_bytes

    @property
    def max_memory_bytes(self) -> int | None:
        """Bytes, or None for a teacher in memory."""
        if not self.max_memory:
            return None
        return num_bytes("recipe: [capture]", "max_memory", self.max_memory)


@dataclass(frozen=True)
class StudentConfig:
    """``[student]``: what is copied from the fine-tuned teacher.

    Args:
        depth: "stride", "first", "last", "first_last", "importance", or a list of the teacher's
            layers.
        num_layers: layers kept; 0: half of them.
        hidden_size, num_heads, intermediate_size: of a narrower student; 0: the teacher's.
        width: how its units are chosen, "uniform", "activation" or "pca".
        calibration_texts: how many training texts, taken at equal distances, layers are ranked on
            for "importance", and units chosen by for "activation" and "pca".
        vocabulary: "used" cuts the embeddings to the tokens of the training text (of every
            language where the source has such text), "all" keeps them.
        coverage: of "used", the share of that text's tokens that the kept ones must make up, in
            (0, 1]. Below 1 the rarest are left out and split into smaller pieces, so that hidden
            states, which are matched token by token, cannot be.
    """

    depth: str | tuple[int, ...] = "stride"
    num_layers: int = 0
    hidden_size: int = 0
    num_heads: int = 0
    intermediate_size: int = 0
    width: str = "activation"
    calibration_texts: int = 256
    vocabulary: Literal["used", "all"] = "used"
    coverage: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.depth, str):
            checks.one_of("recipe: [student]", "depth", self.depth, DEPTHS)
        checks.one_of("recipe: [student]", "width", self.width, WIDTHS)
        for key in ("num_layers", "hidden_size", "num_heads", "intermediate_size"):
            checks.not_negative("recipe: [student]", key, getattr(self, key))
        checks.positive("recipe: [student]", "calibration_texts", self.calibration_texts)
        if not 0.0 < self.coverage <= 1.0:
            raise checks.coverage_out_of_range(self.coverage)

    @property
    def width_request(self) -> WidthRequest:
        """How narrow the student is to be; empty where it keeps the teacher's width."""
        return WidthRequest(
            self.hidden_size or None,
            self.num_heads or None,
            None,
            self.intermediate_size or None,
            self.width,
        )

    @property
    def chooses_units_by_text(self) -> bool:
        """Whether the student is narrower, and its units are those that do most on text."""
        return not self.width_request.is_empty and self.width != "uniform"


@dataclass(frozen=True)
class ScratchConfig:
    """``[scratch]``: the rival of the same size and steps that starts from random weights.

    Args:
        enabled: train it.
        learning_rate: its own, since what suits a copy does not suit random weights.
        hidden_weight: likewise. Matching the teacher's hidden states helps a copy of its layers,
            and keeps random ones from learning: benchmarks/LOG.md.
    """

    enabled: bool = True
    learning_rate: float = 2e-4
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        checks.positive("recipe: [scratch]", "learning_rate", self.learning_rate)
        checks.not_negative("recipe: [scratch]", "hidden_weight", self.hidden_weight)


@dataclass(frozen=True)
class EvaluateConfig:
    """``[evaluate]``.

    Args:
        batch_size: sentences a forward pass.
    """

    batch_size: int = 128

    def __post_init__(self) -> None:
        checks.positive("recipe: [evaluate]", "batch_size", self.batch_size)


@dataclass(frozen=True)
class Config:
    """A whole recipe, resolved."""

    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    finetune: OptimConfig = field(default_factory=OptimConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossSpec = field(default_factory=LossSpec)
    loss_schedule: LossSchedule = field(default_factory=LossSchedule)
    train: OptimConfig = field(default_factory=OptimConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        has_labels = self.task.kind == "sequence_classification"
        tags_words = self.task.kind == "token_classification"
        for section in ("finetune", "train"):
            if has_labels and getattr(self, section).packing:
                raise checks.packed_texts(section)
        if self.train.accumulate > 1 and self.loss.reduction != "mean":
            raise checks.reduction_of_parts(self.loss.reduction)
        source, says_tokens = self.data.source, self.task.says_tokens
        if (source == "home_intents" and not has_labels) or (
            source == "home_text" and not says_tokens
        ):
            raise checks.source_of_another_task(source, self.task.kind)
        if self.data.entity_types and not tags_words:
            raise checks.entity_types_without_tags(self.task.kind)
        if self.loss.ignore_index != NO_LABEL and not has_labels:
            raise checks.other_ignore_index(self.loss.ignore_index, NO_LABEL)
        splits_otherwise = self.student.vocabulary == "used" and self.student.coverage < 1.0
        if splits_otherwise and (not has_labels or self.matches_states):
            raise checks.targets_of_other_tokens(self.student.coverage)
        if self.capture.keep == ("logits" if says_tokens else "hidden"):
            raise checks.kept_of_another_task(self.capture.keep, self.task.kind)

    @property
    def matches_states(self) -> bool:
        """Whether a student's hidden states are compared with the teacher's, at some step."""
        scratch = self.scratch.enabled and self.scratch.hidden_weight
        return bool(scratch or self.loss_schedule.most_hidden_weight(self.loss))


def load(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Read a recipe of ``mkd-fast distill``; arguments and errors as ``load_as``."""
    return load_as(Config, recipe, overrides)


def from_dict(content: Mapping[str, Any], place: str = "recipe") -> Config:
    """Build a Config from nested plain values, as TOML gives them."""
    config: Config = built(Config, content, place)
    return config
