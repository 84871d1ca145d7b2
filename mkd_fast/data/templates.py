"""Sentence templates of home-assistant-intents, and a random walk over them.

A template is a tree that ``hassil`` parses: alternatives ``(a|b)``, optional parts ``[a]``,
permutations ``(a;b)``, rules ``<rule>`` and slots ``{list}``. hassil's own expansion enumerates
all of it and leaves wildcards open; the walk takes one branch of each choice at random, puts
numbers in digits, and fills wildcards with words of the language (``home_words``).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mkd_fast.checks import data as checks
from mkd_fast.data import home_words

if TYPE_CHECKING:
    from hassil.expression import Expression


# A stretch of a walk: its text, and what stands for it in the skeleton.
Piece = tuple[str, str]


@dataclass(frozen=True)
class Utterance:
    """A sentence, and its ``skeleton``: the same walk with the names of its slots left in."""

    text: str
    skeleton: str


@dataclass(frozen=True)
class Template:
    """One sentence template; ``name`` is ``locale/intent/number``.

    ``domains`` are the kinds of device that its slot ``{name}`` may name.
    """

    name: str
    source: str
    domains: tuple[str, ...]


class LocaleTemplates:
    """The templates of one locale by intent, and the walk over them.

    Raises:
        RuntimeError: home-assistant-intents or hassil is not installed.
    """

    def __init__(self, locale: str) -> None:
        content = _read_locale(locale)
        self.locale = locale
        self._kinds = _hassil_expressions()
        self.intents = {
            intent: list(_templates(f"{locale}/{intent}", blocks["data"]))
            for intent, blocks in sorted(content["intents"].items())
        }
        self._rules: dict[str, str] = content["expansion_rules"]
        self._lists: dict[str, dict[str, Any]] = content["lists"]
        self._words = home_words.words_of(locale)
        # Chinese is written without spaces; its templates have them for readability.
        self._space = "" if content.get("settings", {}).get("ignore_whitespace") else " "

    def say(self, template: Template, rng: random.Random) -> Utterance:
        """Walk over a template once.

        Raises:
            ValueError: a slot that neither the package nor ``home_words`` has words for.
        """
        pieces: list[Piece] = []
        self._walk(_parse(template.source), template, rng, pieces)
        return Utterance(
            text=self._tidy("".join([text for text, _ in pieces])),
            skeleton=self._tidy("".join([skeleton for _, skeleton in pieces])),
        )

    def _tidy(self, text: str) -> str:
        return self._space.join(text.split())

    def _walk(
        self, tree: "Expression", template: Template, rng: random.Random, pieces: list[Piece]
    ) -> None:
        """Append the pieces of one walk over the tree."""
        kinds = self._kinds
        if isinstance(tree, kinds.TextChunk):
            pieces.append((tree.original_text, tree.original_text))
        elif isinstance(tree, kinds.RuleReference):
            self._walk(_parse(self._rules[tree.rule_name]), template, rng, pieces)
        elif isinstance(tree, kinds.ListReference):
            word = self._word_for(tree.list_name, template, rng)
            pieces.append((word, f"{{{tree.list_name}}}"))
        elif isinstance(tree, kinds.Alternative):
            self._walk(rng.choice(tree.items), template, rng, pieces)
        elif isinstance(tree, kinds.Group):
            shuffled = isinstance(tree, kinds.Permutation)
            for item in rng.sample(tree.items, len(tree.items)) if shuffled else tree.items:
                self._walk(item, template, rng, pieces)

    def _word_for(self, list_name: str, template: Template, rng: random.Random) -> str:
        content = self._lists.get(list_name, {})
        if "range" in content:
            numbers = content["range"]
            return str(rng.randrange(numbers["from"], numbers["to"] + 1, numbers.get("step", 1)))
        if "values" in content:
            value = rng.choice(content["values"])
            pieces: list[Piece] = []
            source = value if isinstance(value, str) else value["in"]
            self._walk(_parse(source), template, rng, pieces)
            return "".join([text for text, _ in pieces])
        return rng.choice(self._open_words(list_name, template))

    def _open_words(self, list_name: str, template: Template) -> list[str]:
        if list_name == "name":
            words = home_words.name_words(self.locale, template.domains)
        else:
            words = self._words.get(list_name, [])
        if not words:
            raise checks.no_words_for_slot(self.locale, list_name, template.name)
        return words


def _templates(prefix: str, blocks: list[dict[str, Any]]) -> Iterator[Template]:
    numbered = ((block, source) for block in blocks for source in block["sentences"])
    for number, (block, source) in enumerate(numbered):
        domains = block.get("requires_context", {}).get("domain", [])
        domains = [domains] if isinstance(domains, str) else domains
        yield Template(f"{prefix}/{number:04d}", source, tuple(domains))


def _hassil_expressions() -> ModuleType:
    try:
        from hassil import expression
    except ImportError as error:
        raise checks.missing_intents_extra("hassil") from error
    return expression


@cache
def _parse(source: str) -> "Expression":
    from hassil.parse_expression import parse_sentence

    return parse_sentence(source).expression


def _read_locale(locale: str) -> dict[str, Any]:
    try:
        folder = resources.files("home_assistant_intents")
    except ImportError as error:
        raise checks.missing_intents_extra("home-assistant-intents") from error
    file = folder / "data" / f"{locale}.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
