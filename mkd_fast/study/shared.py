"""What all students of a study have in common, each made once and kept on disk.

A study's shared work is a run's (``train.run.Run``) up to the point where students differ: text,
fine-tuned teacher, its outputs, and a copy of the whole teacher with the trimmed vocabulary. Every
start is a part of that copy, or of the same copy of the model before fine-tuning, so all students
read the same tokens and are equally large.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mkd_fast import progress
from mkd_fast.checks import study as checks
from mkd_fast.data import LabelledText, TaggedText, Text, TokenisedText
from mkd_fast.data.chats import Chats
from mkd_fast.data.plain import RunningText
from mkd_fast.data.splits import balanced_order
from mkd_fast.data.tokens import NO_LABEL, Pieces
from mkd_fast.files import read_json, write_json
from mkd_fast.layer_list import find_layer_list, layers_of
from mkd_fast.student import copy_init
from mkd_fast.study.config import StudyConfig, StudyRecipe
from mkd_fast.study.grid import Sizes
from mkd_fast.study.spoken import TeacherSaid
from mkd_fast.teacher.cache.manifest import MANIFEST
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.train import models
from mkd_fast.train.corpus import Corpus
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.language_model import LanguageModel
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import COPIED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

StudyText = LabelledText | TaggedText | RunningText


@dataclass(frozen=True, eq=False)
class Part:
    """Text of a study as labels, languages and token ids.

    Args:
        text: what a person reads.
        tokens: the same in a model's token ids.
        teacher_said: of a language model's text that is tested, what its teacher says there.
    """

    text: StudyText
    tokens: TokenisedText
    teacher_said: TeacherSaid | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.text)

    def rows_by_language(self) -> dict[str, NDArray[np.int64]]:
        """Numbers of each language's texts, in their order."""
        languages = np.array(self.text.languages)
        return {name: np.flatnonzero(languages == name) for name in self.text.languages_present}

    def groups_by_language(self) -> dict[str, list[str]]:
        """For each language, what each text is not independent of: itself where none is named."""
        groups = self.text.groups
        return {
            language: [str(row) if groups is None else groups[row] for row in rows.tolist()]
            for language, rows in self.rows_by_language().items()
        }

    def labels_by_language(self) -> dict[str, NDArray[np.int64]]:
        """For each language, the tokens that are to be said."""
        tokens = self.tokens
        assert isinstance(tokens, Pieces), "it is a language model's text"
        texts = np.repeat(tokens.texts, tokens.lengths)
        texts[tokens.labels == NO_LABEL] = -1
        return {
            language: tokens.labels[np.isin(texts, rows)]
            for language, rows in self.rows_by_language().items()
        }


def limited(corpus: Corpus, study: StudyConfig) -> Corpus:
    """The part of the text that a study takes."""
    return replace(
        corpus,
        train=_limited(corpus.train, study.max_train),
        dev=_limited(corpus.dev, study.max_dev),
        test=_limited(corpus.test, study.max_test),
    )


def _limited(text: Text | None, most: int) -> StudyText:
    """At most so many sentences of each language, in the order of the text."""
    text = _of_a_study(text)
    if not most:
        return text
    left, kept = dict.fromkeys(text.languages_present, most), []
    for row in balanced_order(text.strata, text.languages, seed=0):
        if left[text.languages[row]]:
            left[text.languages[row]] -= 1
            kept.append(row)
    return text.select(sorted(kept))


def _of_a_study(text: Text | None) -> StudyText:
    if isinstance(text, Chats):
        raise checks.no_study_of_chats()
    assert isinstance(text, StudyText), "the recipe names it"
    return text


class Shared(Run):
    """The shared work of a study, in the folder ``shared`` of the study's own."""

    def __init__(self, recipe: StudyRecipe) -> None:
        self.recipe = recipe
        self._layers: dict[tuple[str, int], tuple[int, ...]] = {}
        config = recipe.run_config()
        auto_class = kind_of(config).auto_class
        teacher = models.skeleton_of(resolve_model(config.teacher.model), auto_class)
        self.num_teacher_layers = len(layers_of(teacher, find_layer_list("study", teacher)))
        every = tuple(range(self.num_teacher_layers))
        super().__init__(replace(config, student=replace(config.student, depth=every)))

    @cached_property
    def corpus(self) -> Corpus:
        """The text, as much as the study takes."""
        return limited(super().corpus, self.recipe.study)

    @staticmethod
    def is_made(folder: Path) -> bool:
        """Whether a study's folder has all of it."""
        shared = folder / "shared"
        return (shared / "cache" / MANIFEST).exists() and (shared / COPIED).exists()

    def layers(self, depth: str, num_layers: int) -> tuple[int, ...]:
        """The teacher's layers of a choice."""
        known = (depth, num_layers)
        if known not in self._layers:
            self._layers[known] = self._choose_layers(depth, num_layers)
        return self._layers[known]

    @cached_property
    def matched_layers(self) -> tuple[tuple[int, int], ...]:
        """Pairs of hidden states (of the whole teacher twice), one for each that is captured."""
        study = self.recipe.study
        if not {"kl_hidden", "hidden"} & {*study.objectives, study.depth_objective}:
            return ()
        kept = {
            layer
            for depth in (study.depth, *study.depths)
            if depth == study.depth or study.depth_objective in ("kl_hidden", "hidden")
            for num_layers in study.num_layers
            for layer in self.layers(depth, num_layers)
        }
        return tuple((layer + 1, layer + 1) for layer in sorted(kept))

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerFast":
        """The students'."""
        return models.load_tokenizer(str(self.copied))

    @cached_property
    def _teacher_tokenizer(self) -> "PreTrainedTokenizerFast":
        return models.load_tokenizer(self.teacher_folder)

    def part(self, text: Text | None) -> Part:
        """Some text that models are tested on, in the students' token ids."""
        text = _of_a_study(text)
        if isinstance(self.kind, LanguageModel):
            return self._spoken_part(text, self.kind)
        return Part(text, self.kind.tokenise(text, self._tokenizer))

    def _spoken_part(self, text: StudyText, kind: LanguageModel) -> Part:
        full = kind.examined(text, self._teacher_tokenizer)
        tokens = kind.student_text(text, full, self._tokenizer, self.token_map)
        theirs = replace(full, labels=tokens.labels)
        teacher = models.to_device(self._loaded(self.teacher_folder), self.device)
        batch_size = self.recipe.evaluate.batch_size
        part = Part(text, tokens, TeacherSaid.of(teacher, theirs, batch_size, self.token_map))
        if absent := [name for name, of in part.labels_by_language().items() if not len(of)]:
            raise checks.language_without_tokens(absent)
        return part

    def _for_teacher(self, part: Part) -> Part:
        """The same in the teacher's token ids: with the same places hidden, if any are."""
        if isinstance(self.kind, LanguageModel):
            full = self.kind.examined(part.text, self._teacher_tokenizer)
            return replace(part, tokens=replace(full, labels=part.tokens.labels))
        return Part(part.text, self.kind.tokenise(part.text, self._teacher_tokenizer))

    @cached_property
    def train_part(self) -> Part:
        """What students are trained on."""
        text, theirs = _of_a_study(self.corpus.train), self.teacher_text
        return Part(text, self.kind.student_text(text, theirs, self._tokenizer, self.token_map))

    @cached_property
    def test_part(self) -> Part:
        """What students are tested on."""
        return self.part(self.corpus.test)

    @cached_property
    def dev_part(self) -> Part:
        """What learning rates are chosen by."""
        return self.part(self.corpus.dev)

    @cached_property
    def curve_part(self) -> Part:
        """The sentences of the development text by which trainings are watched."""
        dev = self.dev_part.text
        order = balanced_order(dev.strata, dev.languages, seed=0)
        return self.part(dev.select(sorted(order[: self.recipe.study.curve_rows])))

    @cached_property
    def sizes(self) -> Sizes:
        """What the time of a cell depends on."""
        return Sizes.of(self.corpus)

    @cached_property
    def finetuned_parent(self) -> "PreTrainedModel":
        """The whole fine-tuned teacher, with the students' vocabulary."""
        return self._loaded(self.copied)

    @cached_property
    def pretrained_parent(self) -> "PreTrainedModel":
        """The same of the model before fine-tuning; a head that it has not is random."""
        folder = self.folder / "pretrained"
        if not folder.exists():
            source = resolve_model(self.config.teacher.model)
            progress.say(f"study: trimming {source} as the teacher was")
            model = self.kind.load(source, self.corpus.train.label_names, new_head_seed=0)
            token_map = self.token_map
            keep = None if token_map is None else token_map.keep_token_ids
            every = tuple(range(self.num_teacher_layers))
            copied = copy_init(model, every, keep_token_ids=keep)
            models.save_folder(folder, copied, self._tokenizer, token_map)
        return self._loaded(folder)

    @cached_property
    def head_names(self) -> tuple[str, ...]:
        """Names of the parameters that fine-tuning added to the pretrained model."""
        path = self.folder / "head.json"
        if (found := read_json(path)) is None:
            source = resolve_model(self.config.teacher.model)
            found = models.new_parameters(
                source, self.corpus.train.label_names, auto_class=self.kind.auto_class
            )
            write_json(path, found)
        return tuple(found)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the text, the teacher and the students' vocabulary.

        A teacher that was fine-tuned here is known by all that it was made of, not by its bits:
        another machine's differ in rounding, and rows of both are of one study.
        """
        corpus, finetuned = self.corpus, self.finetuned
        assert corpus.dev is not None, "the recipe names it"
        return {
            "train": corpus.train.fingerprint,
            "dev": corpus.dev.fingerprint,
            "test": corpus.test.fingerprint,
            "tokens": self.train_part.tokens.fingerprint,
            "test_tokens": self.test_part.tokens.fingerprint,
            "teacher": self.teacher_fingerprint if finetuned is None else finetuned.home.name,
        }

    @property
    def teacher_fingerprint(self) -> str:
        """What identifies the teacher's weights, bit for bit."""
        return str(self.cache.manifest.plan.fingerprints.teacher)

    def teacher_parts(self) -> tuple["PreTrainedModel", Part, Part]:
        """The fine-tuned teacher itself, and curve and test text in its own token ids."""
        curve, test = map(self._for_teacher, (self.curve_part, self.test_part))
        return self._loaded(self.teacher_folder), curve, test
