"""TensorBoard and Weights & Biases, beside the JSONL that is always written.

A tracker that cannot start stops the run before it trains. One that fails later is told once and
left out from then on: what it would have shown is in metrics.jsonl.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mkd_fast import progress
from mkd_fast.checks import sharing as checks
from mkd_fast.files import make_folder

Row = Mapping[str, Any]
PACKAGE_OF = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """Somewhere to watch a training."""

    def write(self, model: str, step: int, values: Mapping[str, float]) -> None:
        """Show a model's values at a step."""

    def close(self) -> None:
        """Nothing more comes from this process."""


class Tracking:
    """The trackers of a run, started when they are first needed and continued when it resumes.

    Args:
        names: of ``PACKAGE_OF``.
        folder: the run's; what trackers keep is in it.
        settings: of the run, nested plain values.

    Raises:
        RuntimeError: a tracker is not installed; names the extra that has it.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        for name in names:
            if find_spec(PACKAGE_OF[name]) is None:
                raise checks.tracker_not_installed(name)
        self._names, self._folder, self._settings = names, folder, settings
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def start(self) -> None:
        """Start those that have not started.

        Raises:
            RuntimeError: one cannot start; says why.
        """
        for name in self._names:
            if name in self._trackers or name in self._failed:
                continue
            try:
                self._trackers[name] = _STARTS[name](self._folder, self._settings)
            except Exception as error:  # whatever is wrong with it, its user must know
                raise checks.tracker_not_started(name, error) from error

    def write(self, row: Row) -> None:
        """Pass on a row of metrics.jsonl."""
        self.start()
        values = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float))
        }
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.write(row["model"], row["step"], values)
            except Exception as error:  # hours of training outweigh a curve that JSONL has too
                self._leave_out(name, error)

    def close(self) -> None:
        """End what this process has started; a later row starts it again."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            try:
                tracker.close()
            except Exception as error:  # as above
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        self._failed.add(name)
        progress.say(
            f"tracking: WARNING, {name} failed and is left out from here on "
            f"({type(error).__name__}: {error}); metrics.jsonl has every row"
        )


class _TensorBoard:
    """A folder of events for each model, so that their curves share their plots."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class: Callable[..., Any] = SummaryWriter
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}
        make_folder(self._folder)
        with SummaryWriter(str(self._folder)) as writer:
            writer.add_text("recipe", f"```json\n{json.dumps(settings, indent=1)}\n```", 0)

    def write(self, model: str, step: int, values: Mapping[str, float]) -> None:
        if model not in self._writers:
            # what a stopped run has written beyond its checkpoint is written again
            place = str(self._folder / model.replace(" ", "_"))
            self._writers[model] = self._writer_class(place, purge_step=step)
        for name, value in values.items():
            self._writers[model].add_scalar(name, value, step)
        self._writers[model].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _WeightsAndBiases:
    """One run of the project "mkd_fast" (or $WANDB_PROJECT), known again by an id in the folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import os

        import wandb

        kept = folder / "wandb" / "run_id.txt"
        make_folder(kept.parent)
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mkd_fast"),
            name=folder.name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )
        self._models: set[str] = set()

    def write(self, model: str, step: int, values: Mapping[str, float]) -> None:
        if model not in self._models:
            self._run.define_metric(f"{model}/step")
            self._run.define_metric(f"{model}/*", step_metric=f"{model}/step")
            self._models.add(model)
        # A resumed run repeats the steps behind its checkpoint, with the same values.
        if step > (self._run.summary.get(f"{model}/step") or 0):
            named = {f"{model}/{name}": value for name, value in values.items()}
            self._run.log({**named, f"{model}/step": step})

    def close(self) -> None:
        self._run.finish()


_STARTS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
