"""Running text out of a translated package: what counts as text, and in which order."""

import json

import fake_pip
import pytest

from mkd_fast.data import running_text as module
from mkd_fast.data.running_text import running_text

ENGLISH = {
    "lamp": {
        "title": "Lamp",
        "config": {
            "step": {"user": {"description": "Enter the  address\nof the lamp."}},
            "error": {"a": "No lamp found.", "b": "No lamp found.", "c": "Not yet translated!"},
        },
    },
    "car": {
        "x": "See [the help](https://a.b).",
        "y": "Is {name} moving?",
        "z": "Is the car locked?",
        "again": "No lamp found.",
    },
}
FRENCH = {"lamp": {"a": "Aucune lampe trouvée.", "b": "Not yet translated!"}}
CHINESE = {"car": {"z": "车锁了吗？"}, "lamp": {"a": "未找到灯。"}}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands of a pip that has three languages."""
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path))
    files = {
        f"homeassistant/components/{integration}/translations/{language}.json": json.dumps(strings)
        for language, texts in {"en": ENGLISH, "fr": FRENCH, "zh-Hans": CHINESE}.items()
        for integration, strings in texts.items()
    }
    files["homeassistant/components/car/manifest.json"] = "no translation"
    return fake_pip.serve(monkeypatch, {"homeassistant": files})


def test_sentences_by_integration_each_once(commands):
    # "car" before "lamp"; no labels, no links, nothing to fill in; "No lamp found." once.
    assert running_text(["en"]) == {
        "en": [
            "Is the car locked?\nNo lamp found.",
            "Enter the address of the lamp.\nNot yet translated!",
        ]
    }


def test_other_languages_hold_no_english(commands):
    texts = running_text(["zh", "fr"])
    assert texts == {"zh": ["车锁了吗？", "未找到灯。"], "fr": ["Aucune lampe trouvée."]}
    assert list(texts) == ["zh", "fr"]
    assert running_text(["zh-Hans"])["zh-Hans"] == texts["zh"]


@pytest.mark.parametrize(("max_bytes", "documents"), [(0, 0), (14, 0), (15, 1), (29, 1), (30, 2)])
def test_a_language_stops_before_it_is_too_long(commands, max_bytes, documents):
    assert len(running_text(["zh"], max_bytes=max_bytes)["zh"]) == documents


def test_the_wheel_is_fetched_once(commands, tmp_path):
    running_text(["en"])
    running_text(["fr"])
    assert len(commands) == 1
    version = module.WHEEL.version
    assert [path.name for path in (tmp_path / "text").iterdir()] == [f"homeassistant-{version}.whl"]


def test_a_language_that_is_not_there(commands):
    with pytest.raises(ValueError, match=r"languages must be among en, fr, zh-Hans, got 'xx'"):
        running_text(["en", "xx"])
