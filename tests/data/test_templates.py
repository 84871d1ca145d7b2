"""The random walk: every branch is reached, nothing of the template syntax is left over."""

import random
import sys

import pytest

from mkd_fast.data import home_words, templates
from mkd_fast.data.templates import LocaleTemplates

NUM_WALKS = 200


def locale_with(monkeypatch, sentence, *, domain=None, **content):
    """A locale with one template, of the intent ``Act``."""
    block = {"sentences": [sentence], "requires_context": {"domain": domain or []}}
    content = {
        "intents": {"Act": {"data": [block]}},
        "expansion_rules": {},
        "lists": {},
        **content,
    }
    monkeypatch.setattr(templates, "_read_locale", lambda _: content)
    return LocaleTemplates("en")


def all_walks(locale):
    rng = random.Random(0)
    return {locale.say(locale.intents["Act"][0], rng) for _ in range(NUM_WALKS)}


def all_texts(locale):
    return {said.text for said in all_walks(locale)}


@pytest.mark.parametrize(
    ("sentence", "texts"),
    [
        ("go (up|down)", {"go up", "go down"}),
        ("go [right] now", {"go now", "go right now"}),
        ("lamp[s] on", {"lamp on", "lamps on"}),
        (
            "(go;now;please)",
            {
                "go now please",
                "go please now",
                "now go please",
                "now please go",
                "please go now",
                "please now go",
            },
        ),
        ("<verb> it", {"turn it", "do turn it"}),
        ("to {level}%", {"to 10%", "to 30%", "to 50%"}),
        ("be {state}", {"be open", "be shut", "be shut tight"}),
    ],
)
def test_every_branch_is_reached(monkeypatch, sentence, texts):
    locale = locale_with(
        monkeypatch,
        sentence,
        expansion_rules={"verb": "[do] turn"},
        lists={
            "level": {"range": {"from": 10, "to": 50, "step": 20}},
            "state": {"values": ["open", {"in": "shut [tight]", "out": "closed"}]},
        },
    )
    assert all_texts(locale) == texts


def test_the_skeleton_keeps_slots_and_choices(monkeypatch):
    locale = locale_with(monkeypatch, "(open|shut) the {area}")
    walks = all_walks(locale)
    assert {said.skeleton for said in walks} == {"open the {area}", "shut the {area}"}
    assert {said.text.split(" the ")[1] for said in walks} == set(home_words.words_of("en")["area"])


@pytest.mark.parametrize("domain", ["lock", ["lock", "vacuum"]])
def test_names_fit_the_domain_of_the_template(monkeypatch, domain):
    words = home_words.words_of("en")
    expected = set(words["lock"]) | (set() if domain == "lock" else set(words["vacuum"]))
    assert all_texts(locale_with(monkeypatch, "{name}", domain=domain)) == expected


def test_languages_without_spaces(monkeypatch):
    locale = locale_with(monkeypatch, "打开 [ 这里 ] 灯", settings={"ignore_whitespace": True})
    assert all_texts(locale) == {"打开灯", "打开这里灯"}


def test_a_slot_without_words_is_an_error(monkeypatch):
    locale = locale_with(monkeypatch, "wind the {clock}")
    with pytest.raises(ValueError, match="en/Act/0000 must have words in en, got none for 'clock'"):
        all_walks(locale)


@pytest.mark.parametrize("module", ["hassil", "home_assistant_intents"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=r"must be installed.*pip install 'mkd_fast\[intents\]'"):
        LocaleTemplates("en")


@pytest.mark.parametrize("module", ["babel", "emoji"])
def test_missing_word_packages_name_the_extra(monkeypatch, module):
    home_words.words_of.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=r"must be installed.*pip install 'mkd_fast\[intents\]'"):
        home_words.words_of("en")


@pytest.mark.parametrize("locale", home_words.known_locales())
def test_every_locale_has_all_words(locale):
    words = home_words.words_of(locale)
    assert set(words) == set(home_words.words_of("en"))
    for name, found in words.items():
        assert len(found) >= 2, name
        assert all(word and word == word.strip() for word in found), name
        assert len(set(found)) == len(found), name
