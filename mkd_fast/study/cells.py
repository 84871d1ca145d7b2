"""One cell of a study: a student built, trained, watched and tested; and the probes before it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mkd_fast.data.splits import balanced_order
from mkd_fast.student import TokenMap
from mkd_fast.study.config import Objective
from mkd_fast.study.grid import Cell, Probe, curve_steps, num_rows, num_steps
from mkd_fast.study.measure import Measured, headline, measure, size_of
from mkd_fast.study.objectives import spec_of, task_of
from mkd_fast.study.records import Row
from mkd_fast.study.shared import Shared
from mkd_fast.study.starts import build
from mkd_fast.train import models
from mkd_fast.train.loop import FitResult, fit
from mkd_fast.train.recipe import decisive_settings, to_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Curve:
    """A training seen on development text, at its start and at chosen steps.

    Evaluating draws no random number, so that the training is the same as without.
    """

    model: "PreTrainedModel"
    shared: Shared
    steps: Sequence[int]
    points: list[Row] = field(default_factory=list)

    def see(self, result: FitResult) -> None:
        """Evaluate, if this is one of the steps."""
        if result.steps in self.steps:
            found = measure(self.model, self.shared.curve_part, self.shared)
            self.points.append({**to_dict(result), "loss": found.loss, "dev": found.score})
            self.points[-1]["step"] = self.points[-1].pop("steps")


@dataclass(frozen=True)
class Trained:
    """A trained student, on the device, in evaluation mode."""

    model: "PreTrainedModel"
    result: FitResult
    curve: list[Row]


def decisive(shared: Shared, cell: Cell, rate: float) -> dict[str, Any]:
    """All that decides a cell's result, but for the machine it is trained on."""
    recipe, steps = shared.recipe, num_steps(cell.fraction, shared.recipe, shared.sizes.num_train)
    return {
        **cell.plain(),
        "layers": shared.layers(cell.depth, cell.num_layers),
        "rate": rate,
        **_decisive(shared, cell.objective, steps),
        "curve": [curve_steps(steps, recipe.study.curve_points), recipe.study.curve_rows],
    }


def decisive_for_probe(shared: Shared, probe: Probe) -> dict[str, Any]:
    """The same for a probe."""
    study = shared.recipe.study
    return {
        **vars(probe),
        "seed": study.seeds[0],
        "layers": shared.layers(study.depth, study.num_layers[0]),
        **_decisive(shared, probe.objective, study.probe_steps),
    }


def _decisive(shared: Shared, objective: Objective, steps: int) -> dict[str, Any]:
    recipe, spec = shared.recipe, spec_of(objective, shared.recipe.loss)
    train = decisive_settings(recipe.train)
    of_no_effect = ("epochs", "learning_rate", "checkpoint_every", "log_every")
    return {
        "steps": steps,
        "loss": None if spec is None else to_dict(spec),
        "train": {name: value for name, value in train.items() if name not in of_no_effect},
        "task": recipe.task.kind,
        "shared": shared.fingerprints,
    }


def train(
    shared: Shared,
    cell: Cell,
    rate: float,
    steps: int,
    curve_at: Sequence[int] = (),
) -> Trained:
    """Build the cell's student and train it.

    Raises:
        FloatingPointError: a loss or gradient was not finite.
    """
    recipe, text = shared.recipe, shared.train_part.text
    layers = shared.layers(cell.depth, cell.num_layers)
    student = build(shared, cell.start, layers, cell.objective, cell.seed)
    model = models.to_device(student, shared.device)
    order = balanced_order(text.strata, text.languages, seed=cell.seed)
    rows = sorted(order[: num_rows(cell.fraction, len(text))])
    has_new_head = cell.start == "pretrained" and cell.objective != "hidden" and shared.head_names
    curve = Curve(model, shared, curve_at)
    curve.see(FitResult())
    result = fit(
        model,
        task_of(shared, cell.objective, layers, rows, steps, cell.seed),
        replace(
            recipe.train,
            epochs=1,
            learning_rate=rate,
            head_rate=recipe.train.head_rate if has_new_head else 1.0,
            freeze=shared.head_names if cell.objective == "hidden" else (),
        ),
        name=cell.shown,
        seed=cell.seed,
        after_step=curve.see,
        shows_progress=False,
    )
    return Trained(model, result, curve.points)


def run_cell(shared: Shared, cell: Cell, rate: float, tried: Row) -> Row:
    """Train and test a student; the row that says everything of it, but for its key.

    Args:
        shared: what it is made from.
        cell: which one.
        rate: the learning rate.
        tried: the score of each rate that was tried.

    Returns:
        The row; where a loss was not finite, it has an "error" and no scores.
    """
    study, corpus = shared.recipe.study, shared.corpus
    num_train = num_rows(cell.fraction, shared.sizes.num_train)
    steps = num_steps(cell.fraction, shared.recipe, shared.sizes.num_train)
    row: Row = {
        "study": shared.recipe.name,
        "task": shared.recipe.task.kind,
        **cell.plain(),
        "layers": shared.layers(cell.depth, cell.num_layers),
        "num_train": num_train,
        "learning_rate": rate,
        "probe": tried,
        "epochs": steps * shared.recipe.train.batch_size / num_train,
        "metric": headline(shared),
        "seen": corpus.seen,
        "unseen": corpus.unseen,
    }
    started = time.monotonic()
    try:
        trained = train(shared, cell, rate, steps, curve_steps(steps, study.curve_points))
        tested = measure(trained.model, shared.test_part, shared)
    except FloatingPointError as error:
        return {**row, "error": str(error), "wall_seconds": time.monotonic() - started}
    if study.keep_students:
        _keep(shared, cell, trained.model)
    return {
        **row,
        **to_dict(trained.result),
        **size_of(trained.model),
        "curve": trained.curve,
        **scores_of(tested),
        "wall_seconds": time.monotonic() - started,
    }


def _keep(shared: Shared, cell: Cell, student: "PreTrainedModel") -> None:
    name = "-".join(str(value) for value in cell.plain().values())
    folder = shared.recipe.folder / "students" / name
    shutil.rmtree(folder, ignore_errors=True)  # of a row that is stale
    tokenizer = models.load_tokenizer(str(shared.copied))
    models.save_folder(folder, student.cpu(), tokenizer, TokenMap.load(shared.copied))


def scores_of(tested: Measured) -> Row:
    """What rows say of a model's test."""
    return {"scores": tested.by_language(), "correct": tested.correct()}


def run_probe(shared: Shared, probe: Probe) -> Row:
    """Try a learning rate; the row that says how it went, but for its key."""
    study = shared.recipe.study
    cell = Cell(probe.start, study.depth, study.num_layers[0], probe.objective, 1.0, study.seeds[0])
    row: Row = {**cell.plain(), "rate": probe.rate, "steps": study.probe_steps}
    started = time.monotonic()
    try:
        trained = train(shared, cell, probe.rate, study.probe_steps)
        found = measure(trained.model, shared.dev_part, shared)
        row |= {"score": found.score, "loss": found.loss}
    except FloatingPointError as error:
        row |= {"score": None, "error": str(error)}
    return {**row, "wall_seconds": time.monotonic() - started}


def score_copy(shared: Shared, layers: tuple[int, ...]) -> Row:
    """Scores by language of a copy of the fine-tuned teacher that nothing has trained."""
    untrained = build(shared, "finetuned", layers, "labels", 0)
    model = models.to_device(untrained, shared.device)
    return {"layers": layers, "scores": measure(model, shared.test_part, shared).by_language()}


def score_teacher(shared: Shared) -> Row:
    """The teacher's record: what a cell's row says, as far as it applies."""
    model, curve, test = shared.teacher_parts()
    size = size_of(model)
    model = models.to_device(model, shared.device)
    watched = measure(model, curve, shared)
    row = {
        "metric": headline(shared),
        **size,
        "num_layers": shared.num_teacher_layers,
        "num_train": shared.sizes.num_train,
        "dev": watched.score,
        "dev_loss": watched.loss,
        **scores_of(measure(model, test, shared)),
    }
    if shared.finetuned is not None:
        row |= to_dict(shared.finetuned.fit)
    return row
