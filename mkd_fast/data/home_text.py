"""A split of real running text without a hub: sentences of ``running_text``, by integration.

An integration says about the same in each of its languages. So the split goes by integration, of
all languages alike: 20 % of them are tested, 10 % are for development, the rest is for training. A
sentence that occurs in two parts of a language, letter case and spaces aside, stays in the training
text alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mkd_fast.data.plain import RunningText
from mkd_fast.data.running_text import named_documents
from mkd_fast.data.splits import normalised, split_names

SEEN, UNSEEN = ("de", "en", "fr", "ru", "zh"), ("cs", "es", "ja", "tr")
TEST_SHARE, DEV_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class HomeText:
    """Parts of the text, a sentence each, in groups by integration.

    Attributes:
        train: of the seen languages.
        dev: likewise.
        test: of all.
        vocabulary_text: training sentences of all languages.
    """

    train: RunningText
    dev: RunningText
    test: RunningText
    vocabulary_text: list[str]


def build(seen: Sequence[str] = SEEN, unseen: Sequence[str] = UNSEEN, *, seed: int = 0) -> HomeText:
    """Split the sentences of some languages.

    Args:
        seen: languages that are trained on.
        unseen: languages that are only tested.
        seed: of the split.

    Raises:
        ValueError: a language that the package lacks.
        RuntimeError: pip could not fetch exactly the pinned wheel.
    """
    documents = named_documents((*seen, *unseen))
    names = {name for texts in documents.values() for name in texts}
    tested, watched, trained = split_names(names, (TEST_SHARE, DEV_SHARE), seed=f"home_text/{seed}")
    whole = _sentences(documents, trained)
    known = set(_what_is_said(whole))
    dev, test = (
        part.select(row for row, said in enumerate(_what_is_said(part)) if said not in known)
        for part in (_sentences(documents, watched), _sentences(documents, tested))
    )
    return HomeText(_in(whole, seen), _in(dev, seen), test, whole.texts)


def _sentences(documents: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> RunningText:
    """What these integrations say in every language, a sentence a text."""
    rows = [
        (sentence, language, name)
        for language, texts in documents.items()
        for name in names
        for sentence in texts.get(name, "").splitlines()
    ]
    texts, languages, groups = (list(column) for column in zip(*rows, strict=True))
    return RunningText(texts, languages, groups=groups)


def _what_is_said(text: RunningText) -> Iterator[tuple[str, str]]:
    return zip(text.languages, map(normalised, text.texts), strict=True)


def _in(text: RunningText, languages: Collection[str]) -> RunningText:
    return text.select(row for row, name in enumerate(text.languages) if name in languages)
