"""A real multilingual task without a hub: spoken home commands and their intents.

Sentences are drawn from the templates that home-assistant-intents ships for about 60 languages
(``templates``), with slots filled in the language (``home_words``, 16 locales). They stand in
for a data set like MASSIVE and are easier: these are grammars, which accept more than people
say, and the unit of information is the template, not the row.

The split goes by template: 25 % of an intent's templates are tested, 10 % are for development,
the rest is for training; by skeleton where an intent has fewer than three templates. A test
sentence whose skeleton another template brought into training as well is left out, and so is
such a development sentence. A sentence that two intents of a language share is left out everywhere.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mkd_fast.checks import data as checks
from mkd_fast.data.home_words import known_locales
from mkd_fast.data.splits import check_no_overlap, in_turns, normalised, split_by_group
from mkd_fast.data.templates import LocaleTemplates
from mkd_fast.data.text import LabelledText

TEST_SHARE, DEV_SHARE = 0.25, 0.10
# Below this many templates an intent is split by skeleton.
_MIN_TEMPLATES = 3
# Walks over the templates of an intent: many where there are few templates.
_WALKS_PER_INTENT, _MIN_WALKS_PER_TEMPLATE = 250, 3


@dataclass(frozen=True)
class HomeIntentOptions:
    """What to draw. The counts are upper limits per intent and language.

    Args:
        seen: languages that are trained on.
        unseen: languages that are only tested.
        train_per_intent: training sentences.
        dev_per_intent: development sentences (seen languages).
        test_per_intent: test sentences.
        vocabulary_per_intent: unlabelled sentences from training templates.
        min_utterances: an intent is in the label set if each language has so many sentences.
        seed: decides the split and the walks.

    Raises:
        ValueError: no seen language, one without words, one both seen and unseen, or a
            negative count.
    """

    seen: tuple[str, ...] = ("de", "en", "es", "fr", "pl")
    unseen: tuple[str, ...] = ("el", "hu", "it", "nl", "pt-BR", "ro", "ru", "zh-CN")
    train_per_intent: int = 20
    dev_per_intent: int = 5
    test_per_intent: int = 10
    vocabulary_per_intent: int = 60
    min_utterances: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seen:
            raise checks.no_seen_language()
        for name in (
            "train_per_intent",
            "dev_per_intent",
            "test_per_intent",
            "vocabulary_per_intent",
            "min_utterances",
        ):
            checks.not_negative("HomeIntentOptions", name, getattr(self, name))
        locales = (*self.seen, *self.unseen)
        if unknown := sorted(set(locales) - set(known_locales())):
            raise checks.unknown_locale(unknown, known_locales())
        if twice := sorted({locale for locale in locales if locales.count(locale) > 1}):
            raise checks.locale_seen_and_unseen(twice)


@dataclass(frozen=True)
class HomeIntents:
    """The task: ``train`` and ``dev`` in the seen languages, ``test`` in all.

    ``groups`` of each are the names of the templates (or skeletons) the rows came from.
    ``vocabulary_text`` are unlabelled sentences of training templates in all languages, to
    choose the vocabulary that a student keeps.
    """

    train: LabelledText
    dev: LabelledText
    test: LabelledText
    vocabulary_text: list[str]


@dataclass(frozen=True)
class _Row:
    text: str
    skeleton: str
    group: str
    locale: str
    intent: str


# Rows by part ("test", "dev", "train"), locale and intent.
_Cells = dict[tuple[str, str, str], list[_Row]]


def build(options: HomeIntentOptions | None = None) -> HomeIntents:
    """Draw the task; the same options give the same task in any process.

    Raises:
        RuntimeError: a package of the extra ``intents`` is not installed.
        ValueError: fewer than two intents have ``min_utterances`` in every language.
    """
    options = options or HomeIntentOptions()
    seen, locales = sorted(options.seen), sorted((*options.seen, *options.unseen))
    rows = {locale: _rows_by_intent(locale, options.seed) for locale in locales}
    intents = _common_intents(rows, options.min_utterances)
    cells = _split(rows, intents, options.seed)
    _drop_known(cells, "test", by=("dev", "train"))
    _drop_known(cells, "dev", by=("train",))

    def draw(part: str, languages: list[str], limit: int) -> list[_Row]:
        return [
            row
            for locale in languages
            for intent in intents
            for row in cells[part, locale, intent][:limit]
        ]

    train = draw("train", seen, options.train_per_intent)
    dev = draw("dev", seen, options.dev_per_intent)
    test = draw("test", locales, options.test_per_intent)
    vocabulary = [row.text for row in draw("train", locales, options.vocabulary_per_intent)]
    check_no_overlap((row.text for row in [*train, *dev]), (row.text for row in test))
    check_no_overlap(vocabulary, (row.text for row in test))
    return HomeIntents(
        _labelled(train, intents), _labelled(dev, intents), _labelled(test, intents), vocabulary
    )


def _rows_by_intent(locale: str, seed: int) -> dict[str, list[_Row]]:
    """Walk over all templates of a locale; each sentence once, and only if one intent has it."""
    templates = LocaleTemplates(locale)
    rows = {
        intent: list(_rows(templates, intent, random.Random(f"{seed}/{locale}/{intent}")))
        for intent in templates.intents
    }
    num_intents = Counter(key for found in rows.values() for key in {_key(row) for row in found})
    return {
        intent: [row for row in _distinct(found) if num_intents[_key(row)] == 1]
        for intent, found in rows.items()
    }


def _rows(templates: LocaleTemplates, intent: str, rng: random.Random) -> Iterator[_Row]:
    of_intent = templates.intents[intent]
    num_walks = max(_WALKS_PER_INTENT // len(of_intent), _MIN_WALKS_PER_TEMPLATE)
    by_skeleton = len(of_intent) < _MIN_TEMPLATES
    for template in of_intent:
        for _ in range(num_walks):
            said = templates.say(template, rng)
            group = f"{template.name}: {said.skeleton}" if by_skeleton else template.name
            yield _Row(said.text, said.skeleton, group, templates.locale, intent)


def _key(row: _Row) -> str:
    return normalised(row.text)


def _distinct(rows: Iterable[_Row]) -> list[_Row]:
    return list({_key(row): row for row in rows}.values())


def _common_intents(rows: dict[str, dict[str, list[_Row]]], minimum: int) -> tuple[str, ...]:
    """The intents with enough sentences in every language, sorted."""
    everywhere = set.intersection(
        *(
            {intent for intent, found in by_intent.items() if len(found) >= minimum}
            for by_intent in rows.values()
        )
    )
    if len(everywhere) < 2:
        raise checks.no_common_intents(minimum)
    return tuple(sorted(everywhere))


def _split(rows: dict[str, dict[str, list[_Row]]], intents: tuple[str, ...], seed: int) -> _Cells:
    """Split each intent of each locale by group, and mix the groups of each part."""
    cells: _Cells = {}
    for locale, by_intent in rows.items():
        for intent in intents:
            split_seed = f"{seed}/{locale}/{intent}"
            groups = [row.group for row in by_intent[intent]]
            dealt = split_by_group(groups, (TEST_SHARE, DEV_SHARE), seed=split_seed)
            for part, numbers in zip(("test", "dev", "train"), dealt, strict=True):
                found = [by_intent[intent][number] for number in numbers]
                cells[part, locale, intent] = _mixed(found, random.Random(split_seed))
    return cells


def _drop_known(cells: _Cells, dropped: str, by: tuple[str, ...]) -> None:
    """Drop the rows of a part that other parts give away.

    Afterwards no sentence of such a row is in these parts of any locale, and no skeleton of one
    in these parts of its own locale and intent.
    """
    taken = [row for (part, *_), found in cells.items() if part in by for row in found]
    texts = {_key(row) for row in taken}
    skeletons = {(row.locale, row.intent, normalised(row.skeleton)) for row in taken}
    for (part, locale, intent), found in cells.items():
        if part == dropped:
            found[:] = [
                row
                for row in found
                if _key(row) not in texts
                and (locale, intent, normalised(row.skeleton)) not in skeletons
            ]


def _mixed(rows: list[_Row], rng: random.Random) -> list[_Row]:
    """Order the rows so that every prefix of them holds each group about equally often."""
    by_group: dict[str, list[_Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    groups = [by_group[name] for name in sorted(by_group)]
    for group in groups:
        rng.shuffle(group)
    rng.shuffle(groups)
    return in_turns(groups)


def _labelled(rows: list[_Row], intents: tuple[str, ...]) -> LabelledText:
    return LabelledText(
        texts=[row.text for row in rows],
        labels=[intents.index(row.intent) for row in rows],
        languages=[row.locale for row in rows],
        label_names=intents,
        groups=[row.group for row in rows],
    )
