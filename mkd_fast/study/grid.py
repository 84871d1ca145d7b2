"""Which students a study trains, in which order, and how long that will take.

The main grid is starts x objectives x fractions x seeds x numbers of layers, all at one choice of
the teacher's layers. The other choices are tried where they matter, with students copied from the
fine-tuned teacher, under one objective.

Seeds are outermost, so that a study that was interrupted has whole replicates; within a seed the
cheap cells come first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

from mkd_fast.study.config import Objective, Start, StudyConfig, StudyRecipe
from mkd_fast.train.corpus import Corpus

# A forward pass takes about a third of a training step.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Cell:
    """One student: where it starts, what it is trained with and on how much, and its seed."""

    start: Start
    depth: str
    num_layers: int
    objective: Objective
    fraction: float
    seed: int

    @property
    def shown(self) -> str:
        """A line for people."""
        start = self.start if self.start == "scratch" else f"{self.start} {self.depth}"
        return (
            f"{start}, {self.num_layers} layers, {self.objective}, "
            f"{self.fraction:.4g} of the text, seed {self.seed}"
        )

    def plain(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A short training that tries a learning rate."""

    start: Start
    objective: Objective
    rate: float


@dataclass(frozen=True)
class Sizes:
    """What time depends on besides the recipe.

    Args:
        num_train: training sentences.
        num_dev: development sentences.
        num_test: test sentences.
    """

    num_train: int
    num_dev: int
    num_test: int

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        """The numbers of sentences of a text."""
        assert corpus.dev is not None, "the recipe names it"
        return cls(len(corpus.train), len(corpus.dev), len(corpus.test))


def cells(recipe: StudyRecipe, sizes: Sizes) -> list[Cell]:
    """Every cell once, in the order in which they are run."""
    seeds = recipe.study.seeds
    found = whole_grid(recipe.study)
    return sorted(found, key=lambda cell: (seeds.index(cell.seed), cost(cell, recipe, sizes)))


def whole_grid(study: StudyConfig) -> list[Cell]:
    """Every cell once, in the order of the recipe's values."""
    main = product(
        study.starts,
        (study.depth,),
        study.num_layers,
        study.objectives,
        study.fractions,
        study.seeds,
    )
    others = product(
        ("finetuned",),
        study.depths,
        study.num_layers,
        (study.depth_objective,),
        study.fractions,
        study.seeds,
    )
    return [Cell(*values) for values in (*main, *others)]  # type: ignore[arg-type]


def probes(of: Iterable[Cell], recipe: StudyRecipe) -> Iterator[Probe]:
    """The learning rates to try for the starts and objectives of these cells."""
    arms = dict.fromkeys((cell.start, cell.objective) for cell in of)
    for (start, objective), rate in product(arms, recipe.study.rates):
        yield Probe(start, objective, rate)


def num_rows(fraction: float, num_train: int) -> int:
    """Training sentences of a fraction, at least one."""
    return max(1, round(fraction * num_train))


def num_steps(fraction: float, recipe: StudyRecipe, num_train: int) -> int:
    """Steps of a cell: the same epochs for every fraction, but no fewer than ``min_steps``."""
    an_epoch = -(-num_rows(fraction, num_train) // recipe.train.batch_size)
    return max(recipe.train.epochs * an_epoch, recipe.study.min_steps)


def curve_steps(total: int, points: int) -> tuple[int, ...]:
    """The start, and up to ``points`` steps that double, the last being the last one."""
    return (0, *sorted({-(-total // (1 << back)) for back in range(points)}))


def cost(cell: Cell, recipe: StudyRecipe, sizes: Sizes) -> float:
    """Time of a cell, in training steps of one layer."""
    steps = num_steps(cell.fraction, recipe, sizes.num_train)
    study = recipe.study
    points = len(curve_steps(steps, study.curve_points))
    evaluated = points * min(study.curve_rows, sizes.num_dev) + sizes.num_test
    return cell.num_layers * (steps + _passes(evaluated, recipe))


def probe_cost(recipe: StudyRecipe, sizes: Sizes) -> float:
    """Time of a probe, in the same unit."""
    study = recipe.study
    return study.num_layers[0] * (study.probe_steps + _passes(sizes.num_dev, recipe))


def _passes(num_rows: int, recipe: StudyRecipe) -> float:
    return num_rows / recipe.train.batch_size * _FORWARD_SHARE
