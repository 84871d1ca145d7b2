"""Who trains: ours first, and for each kind of model those that people would use instead."""

from dataclasses import dataclass
from importlib import import_module, util
from typing import Any, Literal

from mkd_fast.benchmarks.rivals.job import Job, Trained


@dataclass(frozen=True)
class Variant:
    """A trainer with what the teacher says of a batch, computed at each step or kept.

    Attributes:
        name: in the results.
        teacher: "live" or "kept".
        where: module of this package, and its function.
        package: without which it does not run.
        options: of the function.
        has_our_loss: whether what it computes is, to rounding, what ours does.
    """

    name: str
    teacher: Literal["live", "kept"]
    where: tuple[str, str]
    package: str
    options: tuple[tuple[str, Any], ...] = ()
    has_our_loss: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return util.find_spec(self.package) is not None

    def train(self, job: Job) -> Trained:
        """An epoch of it."""
        module, function = self.where
        trainer = import_module(f"{__package__}.{module}")
        trained: Trained = getattr(trainer, function)(job, **dict(self.options))
        return trained


def _textbrewer(teacher: Literal["live", "kept"]) -> Variant:
    where = ("textbrewer_distiller", teacher)
    return Variant("TextBrewer", teacher, where, "textbrewer", has_our_loss=False)


_GROUPED = (("is_grouped", True),)
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "classifier": (
        Variant("mkd_fast", "kept", ("ours", "classifier"), "mkd_fast"),
        Variant("Trainer", "live", ("hf_trainer", "live"), "accelerate"),
        Variant("Trainer, by length", "live", ("hf_trainer", "live"), "accelerate", _GROUPED),
        Variant("Trainer", "kept", ("hf_trainer", "kept"), "accelerate"),
        Variant("Trainer, by length", "kept", ("hf_trainer", "kept"), "accelerate", _GROUPED),
        _textbrewer("live"),
        _textbrewer("kept"),
    ),
    "language model": (
        Variant("mkd_fast, hidden", "kept", ("ours", "from_hidden"), "mkd_fast"),
        Variant("mkd_fast, topk:64", "kept", ("ours", "from_topk"), "mkd_fast", has_our_loss=False),
        Variant("TRL GKDTrainer", "live", ("trl_trainer", "live"), "trl"),
    ),
}
