"""Words that fill the open slots of the home-intent templates, in the language of the template.

Three sources: ``home_words.toml`` beside this file, typed in by hand for 16 locales (rooms,
people, device names and so on); Babel's locale data (countries, as places of weather); and the
names that the emoji package gives to foods and household things, where it has the language. A
locale that is not in the file is not offered at all.
"""

import tomllib
from functools import cache
from importlib import resources

from mkd_fast.checks import data as checks

COUNTRIES = ("AU", "BR", "CA", "CH", "DE", "EG", "ES", "FI", "FR", "GR", "IN", "IT", "JP", "MX")
THINGS = "🍌🍇🍉🍋🍍🍎🍐🍓🍕🍚🍝🍞🍯🥑🥒🥔🥕🥖🥚🥛🥜🥥🧀🧄🧅🧂🧴🧽🪥🪣🔑🔋✂🧸🎁"
# Lists and domains of the templates that go by another name in the file.
_SHARED = {
    "button": "switch",
    "input_boolean": "switch",
    "input_button": "switch",
    "sensor": "binary_sensor",
    "search_query": "search",
    "shopping_list_item": "item",
    "timer_command": "command",
    "timer_name": "item",
    "todo_list_item": "item",
}


@cache
def _typed_in() -> dict[str, dict[str, list[str]]]:
    source = resources.files("mkd_fast.data").joinpath("home_words.toml")
    tables = tomllib.loads(source.read_text(encoding="utf-8"))
    return {
        locale: {name: words.split(", ") for name, words in table.items()}
        for locale, table in tables.items()
    }


def known_locales() -> list[str]:
    """The locales whose slots can be filled, sorted."""
    return sorted(_typed_in())


@cache
def words_of(locale: str) -> dict[str, list[str]]:
    """All words of a locale by list or device domain, each list in a fixed order.

    Raises:
        RuntimeError: Babel or emoji is not installed.
    """
    words = {name: list(typed) for name, typed in _typed_in()[locale].items()}
    words["weather"] = _country_names(locale)
    words["item"] = list(dict.fromkeys([*words["item"], *_thing_names(locale)]))
    return words | {name: words[shared] for name, shared in _SHARED.items()}


def name_words(locale: str, domains: tuple[str, ...]) -> list[str]:
    """The device names that fit the domains which a template is written for."""
    words = words_of(locale)
    fitting = [word for domain in domains for word in words.get(domain, ())]
    return list(dict.fromkeys(fitting))


def _country_names(locale: str) -> list[str]:
    try:
        from babel import Locale
    except ImportError as error:
        raise checks.missing_intents_extra("Babel") from error
    territories = Locale.parse(locale, sep="-").territories
    return [territories[code] for code in COUNTRIES]


def _thing_names(locale: str) -> list[str]:
    try:
        import emoji
    except ImportError as error:
        raise checks.missing_intents_extra("emoji") from error
    language = locale.split("-")[0]
    if language not in emoji.LANGUAGES:
        return []
    names = (emoji.demojize(thing, language=language) for thing in THINGS)
    return [name.strip(":").replace("_", " ") for name in names if name.startswith(":")]
