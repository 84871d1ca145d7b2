"""The part of a run that no student is in yet: text, teacher, the layers to be kept."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mkd_fast import progress
from mkd_fast.checks import recipe as checks
from mkd_fast.data import TokenisedText
from mkd_fast.data.batches import EvaluationBatches
from mkd_fast.data.token_files import mapped_tokens
from mkd_fast.files import read_json, write_json
from mkd_fast.layer_list import find_layer_list
from mkd_fast.student.importance import layer_changes
from mkd_fast.student.layers import keep_layers
from mkd_fast.teacher.cache import fingerprint_chat_template, fingerprint_tokenizer
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.train import corpus as corpora
from mkd_fast.train import models
from mkd_fast.train.config import Config
from mkd_fast.train.device import choose_device
from mkd_fast.train.finetune import FinetunedTeacher, finetuned_teacher
from mkd_fast.train.folder import claim_folder
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.processes import join, own_device
from mkd_fast.train.recipe import to_dict
from mkd_fast.train.run_names import SHOWN_AS, TEACHER
from mkd_fast.train.tracking import Tracking

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Settings of [data] on which tokens depend.
_DECIDING_TOKENS = ("text_prefix", "max_length", "num_maskings", "mask_share")


class TeacherStages:
    """A run up to where its teacher is asked.

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
