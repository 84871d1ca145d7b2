"""The text of a run: read or built once, then kept as plain files that a person can open."""

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from mkd_fast.checks import train as checks
from mkd_fast.data import HubSource, Text, load_text
from mkd_fast.data.splits import normalised
from mkd_fast.files import make_folder, read_json, write_atomically, write_json
from mkd_fast.train.config import DataConfig

T = TypeVar("T", bound=Text)


class Read(Protocol):
    """``load_text``, or what reads the text of another task."""

    def __call__(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> Text:
        """Text under known labels, or training text that defines them."""
        ...


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and tests.

    Attributes:
        train: in the seen languages.
        dev: in the seen languages, for choices that must not look at ``test``; None where the
            source has none.
        test: in seen and unseen languages; no sentence of it occurs in ``train``.
        vocabulary_text: unlabelled sentences, of every language where there are some, by which
            the student's vocabulary is chosen. Never test text.
    """

    train: Text
    test: Text
    vocabulary_text: list[str]
    dev: Text | None = None

    @property
    def num_leaked(self) -> int:
        """Test sentences that also occur in training, letter case and spaces aside."""
        trained_on = set(map(normalised, self.train.texts))
        return sum(normalised(text) in trained_on for text in self.test.texts)

    @property
    def seen(self) -> tuple[str, ...]:
        """Languages that are trained on."""
        return self.train.languages_present

    @property
    def unseen(self) -> tuple[str, ...]:
        """Languages that are only tested."""
        return tuple(sorted(set(self.test.languages_present) - set(self.seen)))


def make(
    config: DataConfig,
    seed: int,
    label_names: Sequence[str] | None = None,
    read: Read = load_text,
) -> Corpus:
    """Build or read the text that ``[data]`` asks for.

    Args:
        config: the section.
        seed: of the split and the sentences that are built.
        label_names: of a teacher that is a classifier already; None takes the text's.
        read: the task's reader of files and datasets.
    """
    if config.source == "home_text":
        return _home_text(config, seed)
    if config.source == "home_intents":
        corpus = _home_intents(config, seed)  # which refuses text that leaks
        if label_names is not None and tuple(label_names) != corpus.train.label_names:
            raise checks.labels_of_another_task(label_names, corpus.train.label_names)
        return corpus
    train = read(_source(config, "train"), label_names=label_names)
    test = read(_source(config, "test"), label_names=train.label_names)
    dev = read(_source(config, "dev"), label_names=train.label_names) if config.dev else None
    seen = set(config.seen or train.languages_present) - set(config.unseen)
    unseen = set(config.unseen or test.languages_present) - seen
    vocabulary_text = [*train.texts, *_lines(config.vocabulary_text)]
    train = _in_languages(train, seen)
    test = _in_languages(test, unseen | seen & set(test.languages_present))
    if dev is not None:
        dev = _in_languages(dev, seen & set(dev.languages_present))
    return Corpus(train, test, vocabulary_text, dev)


def _lines(path: str) -> list[str]:
    """The lines of a text file, none where no file is named."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise checks.no_vocabulary_text(path, error) from error


def _home_intents(config: DataConfig, seed: int) -> Corpus:
    from mkd_fast.data.home_intents import HomeIntentOptions, build

    options = HomeIntentOptions(
        train_per_intent=config.train_per_intent,
        dev_per_intent=config.dev_per_intent,
        test_per_intent=config.test_per_intent,
        seed=seed,
    )
    if config.seen:
        options = replace(options, seen=config.seen)
    if config.unseen:
        options = replace(options, unseen=config.unseen)
    built = build(options)
    return Corpus(built.train, built.test, built.vocabulary_text, built.dev)


def _home_text(config: DataConfig, seed: int) -> Corpus:
    from mkd_fast.data import home_text

    seen, unseen = config.seen or home_text.SEEN, config.unseen or home_text.UNSEEN
    built = home_text.build(seen, unseen, seed=seed)
    return Corpus(built.train, built.test, built.vocabulary_text, built.dev)


def _source(config: DataConfig, part: str) -> str | HubSource:
    for key in (part,) if config.source == "files" else (part, "hub_name"):
        if not getattr(config, key):
            raise checks.data_not_named(config.source, key)
    if config.source == "files":
        return str(getattr(config, part))
    return HubSource(
        config.hub_name,
        config.hub_config,
        getattr(config, part),
        config.text_column,
        config.label_column,
        config.language_column,
    )


def _in_languages(text: T, languages: Set[str]) -> T:
    absent = sorted(languages - set(text.languages_present))
    if absent or not languages:
        raise checks.language_without_text(absent, text.languages_present)
    return text.select(row for row, name in enumerate(text.languages) if name in languages)


def save(corpus: Corpus, folder: Path) -> None:
    """Write the parts as JSONL, vocabulary.json and labels.json; labels.json comes last."""
    make_folder(folder)
    for name in ("train", "dev", "test"):
        text, path = getattr(corpus, name), folder / f"{name}.jsonl"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            _write_jsonl(text, path)
    write_json(folder / "vocabulary.json", corpus.vocabulary_text)
    write_json(folder / "labels.json", list(corpus.train.label_names))


def discard(folder: Path) -> None:
    """Make ``load`` find nothing."""
    (folder / "labels.json").unlink(missing_ok=True)


def load(folder: Path, read: Read = load_text) -> Corpus | None:
    """What ``save`` wrote, or None where it did not come to its end."""
    label_names = read_json(folder / "labels.json")
    if label_names is None:
        return None
    train, dev, test = (
        read(path, label_names=label_names) if path.exists() else None
        for path in (folder / f"{name}.jsonl" for name in ("train", "dev", "test"))
    )
    assert train is not None
    assert test is not None
    return Corpus(train, test, read_json(folder / "vocabulary.json"), dev)


def _write_jsonl(text: Text, path: Path) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in text.rows())
    write_atomically(path, [line.encode() for line in lines])
