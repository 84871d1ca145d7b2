"""The recipe of a study: sections as in a run's, and ``[study]``, which spans the grid.

    recipe = load("recipes/study_intents.toml", {"study.seeds": "[0]"})

``[loss]`` is what "kl_hidden" trains with; the other objectives are parts of it (``objectives``).
``[train]`` says how a student is trained, except for its learning rate, which is chosen; its
``head_rate`` is for "pretrained" students, the only ones with a new head on layers that are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mkd_fast.checks import study as checks
from mkd_fast.losses.spec import LossSpec
from mkd_fast.student.depth import DEPTHS
from mkd_fast.train.config import (
    CaptureConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    RunConfig,
    ScratchConfig,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
)
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.recipe import load_as

STARTS = ("scratch", "embeddings", "pretrained", "finetuned")
OBJECTIVES = ("labels", "logit_mse", "kl", "kl_hidden", "hidden")
Start = Literal["scratch", "embeddings", "pretrained", "finetuned"]
Objective = Literal["labels", "logit_mse", "kl", "kl_hidden", "hidden"]
_PLACE = "recipe: [study]"


@dataclass(frozen=True)
class StudyConfig:
    """``[study]``: which students are trained, and how their learning rates are chosen.

    Args:
        starts: "scratch", random weights; "embeddings", those of the fine-tuned teacher and the
            rest random; "pretrained", layers and embeddings of the teacher before fine-tuning, and
            a random head; "finetuned", all of it from the fine-tuned teacher.
        objectives: "labels", cross-entropy; "logit_mse", "kl" (``loss.divergence``) and "kl_hidden"
            with the teacher's outputs; "hidden", its hidden states alone. Every student of
            "hidden" has the teacher's head, which nothing trains: it learns to be read by it.
            Language models are taught by "labels", "kl" and "kl_hidden".
        fractions: of the training sentences. Small ones lie within larger ones of the same seed,
            and hold labels and languages evenly.
        seeds: each decides the sentences of a fraction, their order, new weights and dropout.
        num_layers: of the students.
        depth: which of the teacher's layers students start from in the main grid.
        depths: other choices, for "finetuned" students trained with ``depth_objective``.
        depth_objective: see there.
        rates: learning rates to choose from, for each start and objective, by the score on
            development text of the seen languages, after ``probe_steps`` steps on all training
            sentences with the first seed and the first of ``num_layers``.
        probe_steps: steps of such a probe.
        min_steps: steps that a student is trained at least: epochs are added where there are few
            sentences.
        curve_points: evaluations during a training, at steps that grow by a constant factor, the
            start not counted.
        curve_rows: development sentences of each, taken evenly from labels and languages.
        max_train, max_dev, max_test: sentences a language at most, taken evenly from labels; 0
            takes all. Fractions are of what is taken.
        vocabulary: "used" cuts the students' embeddings to the text's tokens, "all" keeps them.
        keep_students: write the trained students' model folders.
        layer_step_seconds: time of a training step a layer, for predictions before there is any
            measurement.
    """

    starts: tuple[Start, ...] = ("scratch", "embeddings", "pretrained", "finetuned")
    objectives: tuple[Objective, ...] = ("labels", "logit_mse", "kl", "kl_hidden", "hidden")
    fractions: tuple[float, ...] = (1.0, 0.1, 0.01)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_layers: tuple[int, ...] = (6, 3)
    depth: str = "stride"
    depths: tuple[str, ...] = ("first", "last", "first_last", "importance")
    depth_objective: Objective = "kl"
    rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4, 8e-4)
    probe_steps: int = 80
    min_steps: int = 80
    curve_points: int = 8
    curve_rows: int = 200
    max_train: int = 0
    max_dev: int = 0
    max_test: int = 0
    vocabulary: Literal["used", "all"] = "used"
    keep_students: bool = False
    layer_step_seconds: float = 0.02

    def __post_init__(self) -> None:
        self._check_lists()
        for depth in (self.depth, *self.depths):
            checks.one_of(_PLACE, "depth", depth, DEPTHS)
        if self.depth in self.depths or len(set(self.depths)) < len(self.depths):
            raise checks.depth_twice(_PLACE, self.depth, self.depths)
        for key in ("probe_steps", "min_steps", "curve_points", "curve_rows", "layer_step_seconds"):
            checks.positive(_PLACE, key, getattr(self, key))
        for key in ("max_train", "max_dev", "max_test"):
            checks.not_negative(_PLACE, key, getattr(self, key))

    def _check_lists(self) -> None:
        for key in ("starts", "objectives", "fractions", "seeds", "num_layers", "rates"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise checks.not_distinct(_PLACE, key, values)
        for fraction in self.fractions:
            if not 0.0 < fraction <= 1.0:
                raise checks.bad_fraction(_PLACE, fraction)
        for key in ("rates", "num_layers"):
            for value in getattr(self, key):
                checks.positive(_PLACE, key, value)


@dataclass(frozen=True)
class Sections:
    """What a recipe may say."""

    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    finetune: OptimConfig = field(default_factory=OptimConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    loss: LossSpec = field(default_factory=LossSpec)
    train: OptimConfig = field(default_factory=OptimConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


@dataclass(frozen=True)
class StudyRecipe(Sections):
    """A whole recipe, resolved."""

    def __post_init__(self) -> None:
        asked = (*self.study.objectives, self.study.depth_objective)
        if self.task.says_tokens and {"logit_mse", "hidden"} & {*asked}:
            raise checks.objectives_of_classifiers(self.task.kind, asked)
        if self.teacher.finetuned:
            raise checks.teacher_not_pretrained()
        if not self.data.is_built and not self.data.dev:
            raise checks.no_dev_text()
        if self.train.packing or self.data.language_temperature != 1.0:
            raise checks.fed_otherwise()
        if self.train.freeze:
            raise checks.frozen_students(self.train.freeze)
        if "kl_hidden" in self.study.objectives and not self.loss.hidden_weight:
            raise checks.no_hidden_weight()
        _ = self.run_config()  # what no run can be made with is told before anything is

    def run_config(self) -> Config:
        """The run that has all of the shared work, in the folder ``shared`` of the study's own."""
        return Config(
            run=replace(self.run, folder=str(self.folder / "shared")),
            task=self.task,
            data=self.data,
            teacher=self.teacher,
            finetune=self.finetune,
            capture=self.capture,
            student=StudentConfig(vocabulary=self.study.vocabulary),
            loss=LossSpec(  # of the loss, all that decides what is captured
                temperature=self.loss.temperature,
                teacher_temperature=self.loss.teacher_temperature,
            ),
            scratch=ScratchConfig(enabled=False),
            evaluate=self.evaluate,
        )

    @property
    def name(self) -> str:
        """What the study is called: the name of its folder."""
        return Path(self.run.folder).name

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.run.folder)


def load(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> StudyRecipe:
    """Read a study's recipe; arguments and errors as ``train.recipe.load_as``."""
    return load_as(StudyRecipe, recipe, overrides)


def load_whole_grid(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> StudyConfig:
    """The grid as it stands in the recipe, whatever ``overrides`` make of it."""
    others = {k: v for k, v in (overrides or {}).items() if not k.startswith("study.")}
    return load_as(Sections, recipe, others).study
