"""A run: its folder, and the stages that fill it, each made once.

A stage is asked for and not called: ``run.cache`` opens what an earlier run has finished, or
makes it, and whatever it needs before it, from its last checkpoint. Of several processes, which
torchrun has started, all train and capture, and rank 0 makes the rest.

    TeacherStages   text, teacher, layers to be kept                  run_teacher.py
    CacheStages     and what the teacher says                         run_cache.py
    Run             and the student, its training, everyone's scores

None of them knows a stage of those below it.
"""

import gc
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast import progress
from mkd_fast.data.feeding import feeding
from mkd_fast.evaluate.report import ModelResult, count_parameters, folder_size_bytes
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.files import read_json, write_json
from mkd_fast.losses import LossSpec
from mkd_fast.student import TokenMap, scratch_like
from mkd_fast.student.report import summary_of
from mkd_fast.train import checkpoint, models
from mkd_fast.train.copying import copied_student, trimmed_tokenizer
from mkd_fast.train.forward import prove_packing
from mkd_fast.train.loop import FitResult, Task, fit
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.parallel import whole_state
from mkd_fast.train.run_cache import CacheStages
from mkd_fast.train.run_names import COPIED, SCRATCH, SHOWN_AS, TEACHER
from mkd_fast.train.schedule import CONSTANT, LossSchedule
from mkd_fast.train.task_kinds import Examined, Teaching

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORIGINS = "origins.md"  # in the folder of the copied one


class Run(CacheStages):
    """One recipe's run; made as ``TeacherStages``."""

    @cached_property
    def copied(self) -> Path:
        """The student as copied from the fine-tuned teacher, before any training."""
        folder = self.folder / COPIED
        if folder.exists():
            return folder
        _ = self.teacher_folder  # all train it, and rank 0 copies
        return self.processes.made_once(lambda: folder if folder.exists() else None, self._copy)

    def _copy(self) -> Path:
        folder = self.folder / COPIED
        tokenizer = models.load_tokenizer(self.teacher_folder)
        token_map = None
        if self.config.student.vocabulary == "used":
            written = self.kind.written(self.corpus.train, tokenizer)
            tokenizer, token_map = trimmed_tokenizer(tokenizer, self.corpus, written, self.config)
        student, report = copied_student(
            self._loaded(self.teacher_folder),
            self.kept_layers,
            self.config.student,
            token_map,
            self._calibration if self.config.student.chooses_units_by_text else None,
        )
        report = replace(report, layer_scores=self.layer_scores)
        origins = {ORIGINS: report.to_markdown()}
        models.save_folder(folder, student, tokenizer, token_map, origins)
        before = sum(part.parameters_before for part in report.parts)
        after = sum(part.parameters_after for part in report.parts)
        progress.say(
            f"student: layers {' '.join(map(str, report.layers))} of the teacher, "
            f"{after:,} of its {before:,} parameters "
            f"({COPIED}/{ORIGINS}: where each tensor came from)"
        )
        return folder

    @property
    def origins(self) -> str:
        """Where the copied student came from, in short."""
        return summary_of((self.copied / ORIGINS).read_text(encoding="utf-8"))

    @cached_property
    def token_map(self) -> TokenMap | None:
        """The student's vocabulary within the teacher's; None where it is the same."""
        return TokenMap.load(self.copied)

    def trained(self, name: str) -> Path:
        """The folder of a trained model: STUDENT, which starts as copied, or SCRATCH."""
        folder = self.folder / name
        if folder.exists():
            return folder
        self.tracking.start()  # a fault of it is told before hours of work
        checkpoint_path = self.folder / "checkpoints" / f"{name}.pt"
        config, spec, schedule = self.config.train, self.config.loss, self.config.loss_schedule
        model = self._loaded(self.copied)
        if name == SCRATCH:
            model = scratch_like(model, self.config.run.seed)
            if self.kind.starts_at_label_shares:
                models.start_at_label_shares(model, self.teacher_text.labels)
            scratch = self.config.scratch
            config = replace(config, learning_rate=scratch.learning_rate, freeze=())
            spec = replace(spec, hidden_weight=scratch.hidden_weight)
            schedule = replace(schedule, hidden_weight=None)
        result = fit(
            models.to_device(model, self.device),
            self._distill_task(model, config, spec, schedule),
            config,
            name=SHOWN_AS[name],
            checkpoint_path=checkpoint_path,
            metrics_path=self.metrics_path,
            sinks=(self.tracking.write,),
            seed=self.config.run.seed,
            processes=self.processes,
        )
        state = whole_state(model)

        def save() -> Path:
            write_json(self.folder / "fits" / f"{name}.json", vars(result))
            tokenizer = models.load_tokenizer(str(self.copied))
            models.save_folder(folder, model, tokenizer, self.token_map, state=state)
            checkpoint.discard(checkpoint_path)
            return folder

        return self.processes.made_once(lambda: folder if folder.exists() else None, save)

    def _distill_task(
        self,
        model: "PreTrainedModel",
        config: OptimConfig,
        spec: LossSpec,
        schedule: LossSchedule = CONSTANT,
    ) -> Task:
        teaching = Teaching(
            self.teacher_text,
            self.cache,
            spec,
            self.matched_layers if schedule.most_hidden_weight(spec) else (),
            self.token_map,
            schedule,
        )
        gc.collect()  # the teacher that made the cache
        tokenizer = models.load_tokenizer(str(self.copied))
        text = self.teacher_text
        if self.token_map is not None:
            text = self._tokens(
                tokenizer,
                lambda: self.kind.student_text(
                    self.corpus.train, self.teacher_text, tokenizer, self.token_map
                ),
                teacher_text=self.teacher_text.fingerprint,
            )
        prove_packing(model, text, config.packing)
        fed = feeding(
            config.packing,
            self.config.data.language_temperature,
            self.corpus.train.languages,
            text,
        )
        seed = self.config.run.seed
        return self.kind.distill_task(text, config.batch_size, seed, teaching, fed)

    def model_folder(self, name: str) -> str:
        """Where a model of the run lives, made if need be."""
        if name == TEACHER:
            return self.teacher_folder
        return str(self.copied if name == COPIED else self.trained(name))

    def result(self, name: str) -> ModelResult:
        """Scores per language, size and cost of one model."""
        path = self.folder / "scores" / f"{name}.json"
        folder = self.model_folder(name)
        model = self._loaded(folder)

        def examine() -> dict[str, Any]:
            examined = Examined(
                SHOWN_AS[name],
                models.to_device(model, self.device),
                folder,
                self.corpus.test,
                self.corpus.seen,
                self.config.evaluate.batch_size,
                self.teacher_folder,
                self.token_map,
            )
            scores = self.kind.score(examined).to_dict()
            write_json(path, scores)
            return scores

        scores = self.processes.made_once(lambda: read_json(path), examine)
        return ModelResult(
            ModelScores.from_dict(scores),
            count_parameters(model),
            folder_size_bytes(Path(folder)),
            self._train_seconds(name),
        )

    def _train_seconds(self, name: str) -> float | None:
        if name == TEACHER:
            return None if self.finetuned is None else self.finetuned.fit.seconds
        fitted = read_json(self.folder / "fits" / f"{name}.json")
        return None if fitted is None else FitResult(**fitted).seconds

    def metric_rows(self) -> list[dict[str, Any]]:
        """Metric rows of every model trained for this run, the teacher's among them."""
        paths = [self.metrics_path]
        if self.finetuned is not None:
            paths.insert(0, self.finetuned.metrics_path)
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        return [json.loads(line) for text in texts for line in text.splitlines()]
