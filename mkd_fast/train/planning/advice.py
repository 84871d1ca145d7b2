"""What makes a stage fit: changes of settings, those of least cost first, each predicted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from mkd_fast.train.config import Config
from mkd_fast.train.device import choose_device, is_bfloat16
from mkd_fast.train.planning.stages import CAPTURE, COPY, FINETUNE, StagePeak
from mkd_fast.train.planning.workload import Workload

Settings = Mapping[tuple[str, str], Any]
Predict = Callable[[Config], StagePeak]
# A change that saves less than this share of a stage is not worth its cost.
_LEAST_SHARE = 0.02
# What some families call their token embeddings, and which.
_WORD_EMBEDDINGS = "embeddings.word_embeddings"
_WITH_WORD_EMBEDDINGS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Change:
    """Settings, and what is given up for them.

    Attributes:
        settings: new values, by section and key.
        cost: for people.
    """

    settings: Settings
    cost: str

    def __str__(self) -> str:
        """As it is pasted behind a command."""
        return " ".join(
            f"--set {section}.{key}={_pasted(value)}"
            for (section, key), value in self.settings.items()
        )

    def of(self, config: Config) -> Config:
        """The recipe with it."""
        for (section, key), value in self.settings.items():
            config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
        return config


def _pasted(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "'[" + ", ".join(f'"{item}"' for item in value) + "]'"
    return str(value)


@dataclass(frozen=True)
class Added:
    """A change, and the stage's peak with it and those added before."""

    change: Change
    peak: StagePeak


@dataclass(frozen=True)
class Advice:
    """What was tried for a stage that does not fit.

    Attributes:
        before: its peak.
        added: changes that save something, one after the other.
        chosen: those of them that make it fit, or come nearest.
        peak: with these.
    """

    before: StagePeak
    added: tuple[Added, ...]
    chosen: tuple[Change, ...]
    peak: StagePeak


def advise(
    config: Config, work: Workload, before: StagePeak, memory_bytes: int, predict: Predict
) -> Advice:
    """Changes that make a stage fit into so much memory.

    One after the other is added, those of least cost first, until the stage fits; then those are
    taken out again without which it fits too.

    Args:
        config: the recipe.
        work: of it.
        before: the peak of the stage.
        memory_bytes: what there is.
        predict: the stage's peak under another recipe.
    """
    added, chosen = list[Added](), list[Change]()
    together, peak = config, before
    for change in changes(config, work, before.stage, memory_bytes):
        if peak.num_bytes <= memory_bytes:
            break
        with_it = predict(change.of(together))
        if peak.num_bytes - with_it.num_bytes >= _LEAST_SHARE * peak.num_bytes:
            together, peak = change.of(together), with_it
            chosen = [c for c in chosen if not c.settings.keys() <= change.settings.keys()]
            chosen.append(change)
            added.append(Added(change, peak))
    if peak.num_bytes <= memory_bytes:
        chosen, peak = _without_needless(config, chosen, peak, memory_bytes, predict)
    return Advice(before, tuple(added), tuple(chosen), peak)


def _without_needless(
    config: Config, chosen: list[Change], peak: StagePeak, memory_bytes: int, predict: Predict
) -> tuple[list[Change], StagePeak]:
    """The costliest was needed, or it would not be there; of the others, what must stay."""
    for change in chosen[:-1]:
        others = [other for other in chosen if other is not change]
        with_others = config
        for other in others:
            with_others = other.of(with_others)
        found = predict(with_others)
        if found.num_bytes <= memory_bytes:
            chosen, peak = others, found
    return chosen, peak


def changes(config: Config, work: Workload, stage: str, memory_bytes: int) -> Iterator[Change]:
    """What may help a stage, by what it costs: first what changes no result."""
    if stage == CAPTURE:
        yield from _of_capture(config, memory_bytes)
    elif stage != COPY:
        yield from _of_training(config, work, "finetune" if stage == FINETUNE else "train")


def _of_training(config: Config, work: Workload, section: str) -> Iterator[Change]:
    settings = getattr(config, section)
    num_parts = settings.accumulate
    while num_parts < settings.batch_size and settings.compile != "cuda_graphs":
        num_parts *= 2
        yield Change({(section, "accumulate"): num_parts}, "steps in parts: same result, slower")
    if not settings.checkpointing and settings.compile != "cuda_graphs":
        cost = "layers are computed twice: same result, a third more time"
        yield Change({(section, "checkpointing"): True}, cost)
    if settings.attention == "auto":
        cost = "attention as the model has it: rounds otherwise, slower in bfloat16 on a CPU"
        yield Change({(section, "attention"): "model"}, cost)
    if section == "train" and config.student.vocabulary == "all":
        yield Change({("student", "vocabulary"): "used"}, "tokens that no text uses are unknown")
    if not is_bfloat16(choose_device(config.run.device), settings.precision):
        yield Change({(section, "precision"): "bfloat16"}, "matrix products in bfloat16")
    if section == "train" and config.capture.keep == "hidden":
        yield Change({("capture", "keep"): "sampled:50"}, "a sampled loss instead of the exact one")
    if settings.optimizer == "adamw" and find_spec("torchao") is not None:
        yield Change({(section, "optimizer"): "adamw8bit"}, "moments of 8 bits; slow on a CPU")
    if not settings.freeze and work.teacher.model_type in _WITH_WORD_EMBEDDINGS:
        yield Change({(section, "freeze"): (_WORD_EMBEDDINGS,)}, "word embeddings stay as they are")
    if config.data.max_length > 64:
        yield Change({("data", "max_length"): config.data.max_length // 2}, "longer texts are cut")


def _of_capture(config: Config, memory_bytes: int) -> Iterator[Change]:
    settings = config.capture
    if settings.shard_megabytes > 32:
        yield Change({("capture", "shard_megabytes"): 32}, "more files")
    size = settings.batch_size
    while size > 1:
        size //= 2
        yield Change({("capture", "batch_size"): size}, "slower")
    if not settings.max_memory:
        budget = f"{max(memory_bytes // 2 >> 20, 1)}MiB"
        yield Change({("capture", "max_memory"): budget}, "weights are read once a block of text")
