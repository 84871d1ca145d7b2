"""A run: its folder, and the stages that fill it, each made once.

A stage is asked for and not called: ``run.cache`` opens what an earlier run has finished, or
makes it, and whatever it needs before it, from its last checkpoint. Of several processes, which
torchrun has started, all train and capture, and rank 0 makes the rest.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast import progress
from mkd_fast.checks import train as checks
from mkd_fast.data import TokenisedText
from mkd_fast.data.batches import EvaluationBatches
from mkd_fast.data.feeding import feeding
from mkd_fast.data.token_files import mapped_tokens
from mkd_fast.evaluate.report import ModelResult, count_parameters, folder_size_bytes
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.files import read_json, write_json
from mkd_fast.layer_list import find_layer_list
from mkd_fast.losses import LossSpec
from mkd_fast.student import TokenMap, scratch_like
from mkd_fast.student.importance import layer_changes
from mkd_fast.student.layers import keep_layers
from mkd_fast.student.report import summary_of
from mkd_fast.teacher.cache import (
    Damage,
    Fingerprints,
    TeacherCache,
    fingerprint_chat_template,
    fingerprint_tokenizer,
)
from mkd_fast.teacher.cache.manifest import MANIFEST
from mkd_fast.teacher.capture import CaptureProgress, capture
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.teacher.repair import repair
from mkd_fast.teacher.shared import resolved_num_parts
from mkd_fast.train import checkpoint, models
from mkd_fast.train import corpus as corpora
from mkd_fast.train.config import Config, OptimConfig
from mkd_fast.train.copying import copied_student, trimmed_tokenizer
from mkd_fast.train.device import choose_device
from mkd_fast.train.finetune import FinetunedTeacher, finetuned_teacher
from mkd_fast.train.folder import claim_folder
from mkd_fast.train.forward import prove_packing
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.loop import FitResult, Task, fit
from mkd_fast.train.parallel import whole_state
from mkd_fast.train.processes import join, own_device
from mkd_fast.train.recipe import to_dict
from mkd_fast.train.schedule import LossSchedule
from mkd_fast.train.task_kinds import Examined, Teaching
from mkd_fast.train.tracking import Tracking

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mkd_fast.teacher.streamed import StreamedTeacher

# The models of a run by the names of their folders, and what tables and plots call them.
TEACHER, COPIED, STUDENT, SCRATCH = "teacher", "copied", "student", "scratch"
# Settings of [data] on which tokens depend.
_DECIDING_TOKENS = ("text_prefix", "max_length", "num_maskings", "mask_share")
ORIGINS = "origins.md"  # in the folder of the copied one
SHOWN_AS = {
    TEACHER: "teacher",
    COPIED: "copied, untrained",
    STUDENT: "trained student",
    SCRATCH: "from scratch",
}


class Run:
    """One recipe's run.

    Args:
        config: the resolved recipe.

    Raises:
        ValueError: the folder holds other files, or the run of another recipe; the message names
            one, or what differs.
        OSError: the folder cannot be written.
        RuntimeError: a tracker is not installed, the device is not there, or there are more
            processes than GPUs.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kind = kind_of(config)
        self.folder = Path(config.run.folder)
        self.device = own_device(choose_device(config.run.device))
        self.processes = join(self.device)
        if self.processes.size > 1 and config.loss.reduction != "mean":
            raise checks.reduction_of_parts(config.loss.reduction)
        self.metrics_path = self.folder / "metrics.jsonl"
        trackers = config.run.trackers if self.processes.is_first else ()
        self.tracking = Tracking(trackers, self.folder, to_dict(config))
        if self.processes.is_first:
            claim_folder(self.folder, config)
        self.processes.wait_for_all()

    @cached_property
    def corpus(self) -> corpora.Corpus:
        """The text."""
        folder = self.folder / "data"

        def make() -> corpora.Corpus:
            progress.say("data: collecting text")
            data, seed = self.config.data, self.config.run.seed
            corpus = corpora.make(data, seed, self._known_labels(), self.kind.read)
            corpora.save(corpus, folder)
            return corpus

        corpus = self.processes.made_once(lambda: corpora.load(folder, self.kind.read), make)
        unseen = " ".join(corpus.unseen) or "no other"
        progress.say(
            f"data: {len(corpus.train):,} training sentences in {' '.join(corpus.seen)}; "
            f"{len(corpus.test):,} test sentences, also in {unseen}"
            + (f"; {len(labels)} labels" if (labels := corpus.train.label_names) else "")
        )
        if leaked := corpus.num_leaked:
            progress.say(f"data: WARNING, {leaked:,} test sentences also occur in training")
        return corpus

    def _known_labels(self) -> tuple[str, ...] | None:
        teacher = self.config.teacher
        return self.kind.labels_of(resolve_model(teacher.model)) if teacher.finetuned else None

    @cached_property
    def kept_layers(self) -> tuple[int, ...]:
        """The teacher's layers that the student consists of."""
        settings = self.config.student
        return self._choose_layers(settings.depth, settings.num_layers or None)

    def _choose_layers(
        self, depth: str | tuple[int, ...], num_layers: int | None
    ) -> tuple[int, ...]:
        name = resolve_model(self.config.teacher.model)
        teacher = models.skeleton_of(name, self.kind.auto_class)
        hidden_size = self.config.student.hidden_size
        if self.config.matches_states and hidden_size not in (0, teacher.config.hidden_size):
            raise checks.states_of_two_widths(hidden_size)
        layer_list = find_layer_list("copy_init", teacher)
        scores = self.layer_changes if depth == "importance" else None
        return keep_layers(teacher, layer_list, depth, num_layers, scores).layers

    @property
    def layer_scores(self) -> tuple[float, ...] | None:
        """What the layers were chosen by, where their importance decided."""
        return self.layer_changes if self.config.student.depth == "importance" else None

    @cached_property
    def layer_changes(self) -> tuple[float, ...]:
        """How much each of the teacher's layers does to training text."""
        path, folder = self.folder / "layer_scores.json", self.teacher_folder

        def rank() -> list[float]:
            teacher = models.to_device(self._loaded(folder), self.device)
            batches = self._calibration
            with progress.bar("rank layers", len(batches.rows)) as bar:
                shown = bar.over(batches, lambda batch: len(batch.sample_ids))
                found = layer_changes(teacher, shown, find_layer_list("copy_init", teacher))
            write_json(path, found)
            return list(found)

        return tuple(self.processes.made_once(lambda: read_json(path), rank))

    @property
    def _calibration(self) -> EvaluationBatches:
        """Training text that layers are ranked on and units chosen by."""
        num_texts = self.config.student.calibration_texts
        return EvaluationBatches(self.teacher_text, self.config.capture.batch_size, num_texts)

    @cached_property
    def finetuned(self) -> FinetunedTeacher | None:
        """The teacher this package fine-tuned; None where the recipe names one that is ready."""
        if self.config.teacher.finetuned:
            return None
        model = resolve_model(self.config.teacher.model)
        # A depth that the teacher does not have is told before it is trained.
        depth, num_layers = self.config.student.depth, self.config.student.num_layers or None
        self._choose_layers("first" if depth == "importance" else depth, num_layers)
        return finetuned_teacher(
            model,
            self.corpus.train,
            self.kind,
            self.config,
            self.device,
            SHOWN_AS[TEACHER],
            self._tokens,
            sinks=(self.tracking.write,),
            processes=self.processes,
        )

    @cached_property
    def teacher_folder(self) -> str:
        """The fine-tuned teacher: a model folder, or the name of a hub model that is one."""
        if self.finetuned is None:
            return resolve_model(self.config.teacher.model)
        return str(self.finetuned.folder)

    @cached_property
    def teacher_text(self) -> TokenisedText:
        """The training text in the teacher's token ids."""
        tokens = self._tokens(models.load_tokenizer(self.teacher_folder))
        if lost := self.kind.what_is_lost(tokens):
            progress.say(f"data: in training, {lost}")
        return tokens

    def _tokens(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        make: Callable[[], TokenisedText] | None = None,
        **also: str,
    ) -> TokenisedText:
        """The training text in some tokenizer's ids, from the files that hold them.

        Args:
            tokenizer: of teacher or student.
            make: how they are made, if not by tokenising.
            also: what they are then made of.
        """
        corpus, kind, config = self.corpus, self.kind, self.config
        what = {
            "text": corpus.train.fingerprint,
            "tokenizer": fingerprint_tokenizer(tokenizer),
            "chat_template": fingerprint_chat_template(tokenizer),
            "task": config.task.kind,
            "settings": [getattr(config.data, name) for name in _DECIDING_TOKENS],
            "seed": config.run.seed,
            **also,
        }
        return mapped_tokens(
            self.folder / "tokens",
            what,
            make or (lambda: kind.tokenise(corpus.train, tokenizer)),
            lambda why: progress.say(f"data: {why}"),
        )

    def _loaded(self, folder: str | Path) -> "PreTrainedModel":
        return self.kind.load(str(folder), self.corpus.train.label_names)

    @cached_property
    def matched_layers(self) -> tuple[tuple[int, int], ...]:
        """Pairs of hidden states (student's, teacher's): behind each layer and its original."""
        if not self.config.matches_states:
            return ()
        return tuple((ours + 1, theirs + 1) for ours, theirs in enumerate(self.kept_layers))

    @cached_property
    def cache(self) -> TeacherCache:
        """The teacher's outputs for the training text."""
        settings, path = self.config.capture, self.folder / "cache"
        with self._teaching("capture") as teaching:
            take_part = partial(
                capture,
                path=path,
                keep=settings.keep,
                hidden_layers=[theirs for _, theirs in self.matched_layers],
                hidden_dtype=settings.hidden_dtype,
                temperatures=(self.config.loss.resolved_teacher_temperature,),
                shard_bytes=settings.shard_megabytes << 20,
                **teaching,
            )
            if resolved_num_parts(path, None, teaching["batches"], resume=True) > 1:
                cache = take_part()
            else:
                cache = self.processes.made_once(
                    lambda: take_part() if (path / MANIFEST).exists() else None, take_part
                )
        summary = cache.summary()
        parts = ", ".join(f"{part} {size:,.0f}" for part, size in summary.bytes_per_token.items())
        progress.say(
            f"capture: {summary.num_samples:,} samples, {summary.num_tokens:,} tokens, "
            f"{summary.num_bytes / 1e6:,.0f} MB; bytes a token: {parts}"
        )
        return cache

    def repair(self, path: Path) -> tuple[Damage, ...]:
        """Make a damaged cache of the run's teacher and text as it was; what was damaged."""
        with self._teaching("repair") as teaching:
            return repair(path, **teaching)

    @contextmanager
    def _teaching(self, name: str) -> Iterator[dict[str, Any]]:
        """The teacher and its text, as ``capture`` and ``repair`` take them, and a bar."""
        tokenizer = models.load_tokenizer(self.teacher_folder)
        with (
            self._captured_teacher() as teacher,
            progress.bar(name, len(self.teacher_text)) as bar,
        ):

            def show(state: CaptureProgress) -> None:
                bar.update(state.num_samples, f"{state.num_tokens:,} tokens")

            yield {
                "teacher_model": teacher,
                "batches": EvaluationBatches(self.teacher_text, self.config.capture.batch_size),
                "fingerprints": Fingerprints(
                    tokenizer=fingerprint_tokenizer(tokenizer),
                    chat_template=fingerprint_chat_template(tokenizer),
                    dataset=self.teacher_text.fingerprint,
                ),
                "device": self.device,
                "progress": show,
            }

    @contextmanager
    def _captured_teacher(self) -> Iterator["PreTrainedModel | StreamedTeacher"]:
        """The teacher in memory, or streamed in as much as ``[capture] max_memory`` allows."""
        num_bytes = self.config.capture.max_memory_bytes
        if num_bytes is None:
            yield self._loaded(self.teacher_folder)
            return
        with self.kind.stream(self.teacher_folder, self.device, num_bytes) as streamed:
            progress.say(
                f"capture: layer by layer, {streamed.num_layers} of them, in {num_bytes:,} bytes"
            )
            yield streamed

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
            None if self.config.student.width == "uniform" else self._calibration,
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
        schedule: LossSchedule,
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
