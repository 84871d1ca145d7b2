"""Running text split by integration, in all languages alike."""

import json

import fake_pip
import pytest

from mkd_fast.data.home_text import build
from mkd_fast.data.splits import normalised
from mkd_fast.train import corpus as corpora
from mkd_fast.train.config import DataConfig

NAMES = [f"part{number:02d}" for number in range(20)]
LANGUAGES = ("en", "de", "sw")


def strings(language, name):
    """Two sentences of its own, and one that all say, each as loudly as it can."""
    own = {"a": f"The {name} is on.", "b": f"The {name} is off."}
    if language != "en":  # a translation that is as in English counts as none
        own = {key: f"{language}: {text}" for key, text in own.items()}
    return {**own, "c": f"Well done, {language}" + "!" * (1 + NAMES.index(name))}


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    files = {
        f"homeassistant/components/{name}/translations/{language}.json": json.dumps(
            strings(language, name)
        )
        for language in LANGUAGES
        for name in NAMES
    }
    return fake_pip.serve(monkeypatch, {"homeassistant": files})


@pytest.fixture
def built(wheel):
    return build(("en", "de"), ("sw",), seed=3)


def test_an_integration_is_in_one_part_whatever_the_language(built):
    parts = [set(part.groups) for part in (built.train, built.dev, built.test)]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert set.union(*parts) == set(NAMES)


def test_only_test_text_is_in_unseen_languages(built):
    assert set(built.train.languages) == set(built.dev.languages) == {"en", "de"}
    assert set(built.test.languages) == set(LANGUAGES)
    assert any(text.startswith("sw:") for text in built.vocabulary_text)
    assert not set(built.vocabulary_text) & set(built.test.texts)


def test_what_is_trained_on_is_not_tested(built):
    known = set(map(normalised, built.train.texts))
    for part in (built.dev, built.test):
        assert len(part)
        assert not known & set(map(normalised, part.texts))


def test_the_split_is_the_seed_s(wheel, built):
    again, other = (build(("en", "de"), ("sw",), seed=seed) for seed in (3, 4))
    assert again.test == built.test
    assert set(other.test.groups) != set(built.test.groups)


def test_a_corpus_keeps_its_groups_on_disk(wheel, tmp_path):
    from mkd_fast.data.plain import load_running

    made = corpora.make(DataConfig(source="home_text", seen=("en",), unseen=("sw",)), 0)
    assert (made.seen, made.unseen) == (("en",), ("sw",))
    corpora.save(made, tmp_path / "data")
    assert corpora.load(tmp_path / "data", load_running) == made
