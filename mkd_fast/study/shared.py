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

from mkd_fast import progress
from mkd_fast.data import LabelledText, TaggedText, Text, TokenisedText
from mkd_fast.data.splits import balanced_order
from mkd_fast.files import read_json, write_json
from mkd_fast.layer_list import find_layer_list, layers_of
from mkd_fast.student import TokenMap, copy_init
from mkd_fast.study.config import StudyConfig, StudyRecipe
from mkd_fast.study.grid import Sizes
from mkd_fast.teacher.cache.manifest import MANIFEST
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.train import models
from mkd_fast.train.classification import Classification
from mkd_fast.train.corpus import Corpus
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import COPIED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Part:
    """Text of a study as labels, languages and token ids."""

    text: LabelledText | TaggedText
    tokens: TokenisedText

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.text)


def limited(corpus: Corpus, study: StudyConfig) -> Corpus:
    """The part of the text that a study takes."""
    return replace(
        corpus,
        train=_limited(corpus.train, study.max_train),
        dev=_limited(corpus.dev, study.max_dev),
        test=_limited(corpus.test, study.max_test),
    )


def _limited(text: Text | None, most: int) -> LabelledText | TaggedText:
    """At most so many sentences of each language, in the order of the text."""
    assert isinstance(text, (LabelledText, TaggedText)), "the recipe names it, with labels"
    if not most:
        return text
    left, kept = dict.fromkeys(text.languages_present, most), []
    for row in balanced_order(text.strata, text.languages, seed=0):
        if left[text.languages[row]]:
            left[text.languages[row]] -= 1
            kept.append(row)
    return text.select(sorted(kept))


class Shared(Run):
    """The shared work of a study, in the folder ``shared`` of the study's own."""

    def __init__(self, recipe: StudyRecipe) -> None:
        self.recipe = recipe
        self._layers: dict[tuple[str, int], tuple[int, ...]] = {}
        config = recipe.run_config()
        kind = kind_of(config)
        assert isinstance(kind, Classification), "the recipe sees to it"
        self.task = kind
        teacher = models.skeleton_of(resolve_model(config.teacher.model), kind.auto_class)
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

    def part(self, text: Text | None, folder: str | Path | None = None) -> Part:
        """Some text in the students' token ids, or in those of the model in a folder."""
        assert isinstance(text, (LabelledText, TaggedText)), "the recipe names it, with labels"
        tokenizer = models.load_tokenizer(str(folder or self.copied))
        return Part(text, self.task.tokenise(text, tokenizer))

    @cached_property
    def train_part(self) -> Part:
        """What students are trained on."""
        return self.part(self.corpus.train)

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
        """The same of the model before fine-tuning; its head is random."""
        folder = self.folder / "pretrained"
        if not folder.exists():
            source = resolve_model(self.config.teacher.model)
            progress.say(f"study: trimming {source} as the teacher was")
            model = self._loaded(source)
            token_map = TokenMap.load(self.copied)
            keep = None if token_map is None else token_map.keep_token_ids
            every = tuple(range(self.num_teacher_layers))
            copied = copy_init(model, every, keep_token_ids=keep)
            tokenizer = models.load_tokenizer(str(self.copied))
            models.save_folder(folder, copied, tokenizer, token_map)
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
        folder = self.teacher_folder
        curve, test = self.part(self.curve_part.text, folder), self.part(self.corpus.test, folder)
        return self._loaded(folder), curve, test
