"""The text of a run: from users' files, by language, and kept so that it reads back the same."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mkd_fast.data import LabelledText
from mkd_fast.train import corpus as corpora
from mkd_fast.train.config import DataConfig

AWKWARD = ["a\u2028b", "c\x85d", 'quo"te', "back\\slash", "new\nline", "tab\tand \x0b"]


def text(rows):
    labels = sorted({label for _, label, _ in rows})
    return LabelledText(
        [text for text, _, _ in rows],
        [labels.index(label) for _, label, _ in rows],
        [language for _, _, language in rows],
        tuple(labels),
    )


@pytest.fixture
def files(tmp_path):
    """Training text in de, en, fr; test text in en, fr, sw, th."""
    from tiny_job import write_rows

    def write(name, languages):
        rows = [
            {"text": f"{name} {language} {label} {n}", "label": label, "language": language}
            for language in languages
            for label in ("off", "on")
            for n in range(2)
        ]
        return str(write_rows(tmp_path / f"{name}.jsonl", rows))

    return {
        "train": write("train", ["de", "en", "fr"]),
        "test": write("test", ["en", "fr", "sw", "th"]),
    }


@pytest.mark.parametrize(
    ("languages", "seen", "unseen"),
    [
        ({}, "de en fr", "sw th"),
        ({"seen": ("de", "en")}, "de en", "fr sw th"),
        ({"unseen": ("sw",)}, "de en fr", "sw"),
        ({"unseen": ("fr", "sw")}, "de en", "fr sw"),  # what is unseen is not trained on
        ({"seen": ("en",), "unseen": ("th",)}, "en", "th"),
    ],
)
def test_languages_seen_and_unseen(files, languages, seen, unseen):
    corpus = corpora.make(DataConfig(**files, **languages), seed=0)
    assert corpus.seen == tuple(seen.split())
    assert corpus.unseen == tuple(unseen.split())
    tested = {"en", "fr", "sw", "th"} & {*seen.split(), *unseen.split()}
    assert set(corpus.test.languages_present) == tested  # de has no test text, and needs none
    assert len(corpus.vocabulary_text) == 12  # the training text of every language
    assert corpus.num_leaked == 0
    assert corpus.train.label_names == corpus.test.label_names == ("off", "on")


@pytest.mark.parametrize(
    ("languages", "fact"),
    [
        ({"seen": ("en", "xx")}, "(de, en, fr), got xx."),
        ({"unseen": ("sw", "xx", "yy")}, "(en, fr, sw, th), got xx, yy."),
        ({"unseen": ("de", "en", "fr")}, "(de, en, fr), got none at all."),
    ],
)
def test_languages_without_text(files, languages, fact):
    with pytest.raises(ValueError, match=re.escape(f"languages must occur in the text {fact}")):
        corpora.make(DataConfig(**files, **languages), seed=0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"source": "files", "test": "t.jsonl"}, "data.train"),
        ({"source": "hub", "train": "train", "test": "test"}, "data.hub_name"),
        ({"source": "hub", "hub_name": "somebody/something"}, "data.train"),
    ],
)
def test_a_source_must_be_named(settings, key):
    message = f'{key} must be given with source = "{settings["source"]}", got none.'
    with pytest.raises(ValueError, match=re.escape(message)):
        corpora.make(DataConfig(**settings), seed=0)


def test_test_files_must_be_named(files):
    with pytest.raises(ValueError, match=re.escape("data.test must be given")):
        corpora.make(DataConfig(train=files["train"]), seed=0)


def test_the_hub_is_asked_with_the_recipe_s_names():
    asked = []

    def read(source, *, label_names=None):
        asked.append((source, label_names))
        return text([("a", "on", "en"), ("b", "off", "en")])

    config = DataConfig(
        source="hub",
        hub_name="AmazonScience/massive",
        hub_config="all_1.1",
        train="train",
        test="validation",
        text_column="utt",
        label_column="intent",
        language_column="locale",
    )
    corpora.make(config, seed=0, read=read)
    (train, no_labels), (test, labels) = asked
    names = (train.name, train.config, train.text_column, train.label_column, train.language_column)
    assert names == ("AmazonScience/massive", "all_1.1", "utt", "intent", "locale")
    assert (train.split, test.split) == ("train", "validation")
    assert (no_labels, labels) == (None, ("off", "on"))


def test_labels_of_a_ready_teacher_decide(files):
    corpus = corpora.make(DataConfig(**files), seed=0, label_names=("on", "dim", "off"))
    assert corpus.train.label_names == ("on", "dim", "off")
    with pytest.raises(ValueError, match="'off'"):
        corpora.make(DataConfig(**files), seed=0, label_names=("on", "dim"))


@pytest.mark.parametrize("languages", [{}, {"seen": ("en",), "unseen": ("nl",)}])
def test_home_intents_are_built_as_the_recipe_asks(monkeypatch, languages):
    built = SimpleNamespace(
        train=text([("a", "on", "en")]),
        dev=text([("d", "on", "en")]),
        test=text([("b", "on", "nl")]),
        vocabulary_text=["c"],
    )
    asked = []
    monkeypatch.setattr(
        "mkd_fast.data.home_intents.build", lambda options: asked.append(options) or built
    )
    config = DataConfig(
        source="home_intents",
        train_per_intent=3,
        dev_per_intent=4,
        test_per_intent=2,
        **languages,
    )
    corpus = corpora.make(config, seed=5)
    assert (corpus.train, corpus.test, corpus.vocabulary_text) == (built.train, built.test, ["c"])
    assert corpus.dev is built.dev
    (options,) = asked
    assert (options.train_per_intent, options.dev_per_intent) == (3, 4)
    assert (options.test_per_intent, options.seed) == (2, 5)
    default = type(options)()
    assert options.seen == languages.get("seen", default.seen)
    assert options.unseen == languages.get("unseen", default.unseen)


def test_a_ready_teacher_of_another_task_is_refused(monkeypatch):
    rows = text([("a", "off", "en"), ("b", "on", "en")])
    built = SimpleNamespace(train=rows, dev=rows, test=rows, vocabulary_text=[])
    monkeypatch.setattr("mkd_fast.data.home_intents.build", lambda options: built)
    config = DataConfig(source="home_intents")
    assert corpora.make(config, 0, label_names=("off", "on")).train is rows
    for labels in (("on", "off"), ("off", "on", "dim")):  # the order is that of the logits
        with pytest.raises(ValueError, match="must have the text's labels, off, on, got"):
            corpora.make(config, 0, label_names=labels)


def test_leaks_are_counted():
    train = text([("Turn it ON.", "on", "en"), ("off", "off", "en")])
    test = text([("turn  it on", "on", "en"), ("other", "off", "en"), ("OFF!", "off", "de")])
    assert corpora.Corpus(train, test, []).num_leaked == 2


@pytest.fixture
def awkward():
    train = text([(line, "on" if n % 2 else "off", "en") for n, line in enumerate(AWKWARD)])
    return corpora.Corpus(train, train.select([0, 1]), [*AWKWARD, "another"])


def test_what_is_saved_reads_back_the_same(tmp_path, awkward):
    corpora.save(awkward, tmp_path / "data")
    found = corpora.load(tmp_path / "data")
    assert found.train.texts == AWKWARD
    assert found.train.fingerprint == awkward.train.fingerprint
    assert found.test.fingerprint == awkward.test.fingerprint
    assert found.vocabulary_text == awkward.vocabulary_text


def test_development_text_and_groups_are_kept(tmp_path, awkward):
    groups = [f"g{n}" for n in range(len(AWKWARD))]
    train = replace(awkward.train, groups=groups)
    corpora.save(replace(awkward, train=train, dev=train.select([2, 1])), tmp_path)
    found = corpora.load(tmp_path)
    assert found.train.groups == groups
    assert (found.dev.texts, found.dev.groups) == ([AWKWARD[2], AWKWARD[1]], ["g2", "g1"])
    corpora.save(awkward, tmp_path)  # of a source without it
    found = corpora.load(tmp_path)
    assert (found.dev, found.train.groups) == (None, None)


def test_development_text_is_that_of_seen_languages(files, tmp_path):
    corpus = corpora.make(DataConfig(**files, dev=files["train"], seen=("en",)), seed=0)
    assert corpus.dev.languages_present == ("en",)
    assert corpora.make(DataConfig(**files), seed=0).dev is None
    with pytest.raises(ValueError, match=r"languages must occur in the text .*, got none at all"):
        corpora.make(DataConfig(**files, dev=files["test"], seen=("de",)), seed=0)


def test_what_is_not_finished_does_not_count(tmp_path, awkward, monkeypatch):
    folder = tmp_path / "data"
    assert corpora.load(folder) is None

    def stop(path, content):
        if path.name == "labels.json":
            raise KeyboardInterrupt
        path.write_text("half")

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            corpora.save(awkward, folder)
    assert corpora.load(folder) is None
    corpora.save(awkward, folder)
    assert corpora.load(folder).train.fingerprint == awkward.train.fingerprint


def test_saving_leaves_other_files_alone(tmp_path, awkward):
    (tmp_path / "mine.txt").write_text("mine")
    corpora.save(awkward, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_discarded_text_is_made_anew(tmp_path, awkward):
    corpora.save(awkward, tmp_path)
    corpora.discard(tmp_path)
    assert corpora.load(tmp_path) is None
    corpora.discard(tmp_path)


def test_vocabulary_text_is_that_of_training_in_any_language_and_of_the_named_file(tmp_path):
    lines = ["καλημέρα σας", "jó napot"]
    (tmp_path / "more.txt").write_text("\n".join(lines), encoding="utf-8")
    rows = [
        {"text": f"{language} sentence {number}", "label": "ab"[number % 2], "language": language}
        for language in ("en", "de")
        for number in range(4)
    ]
    for name in ("train", "test"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(
        train=str(tmp_path / "train.jsonl"),
        test=str(tmp_path / "test.jsonl"),
        seen=("en",),
        vocabulary_text=str(tmp_path / "more.txt"),
    )
    corpus = corpora.make(config, seed=0)
    assert corpus.seen == ("en",)
    assert corpus.vocabulary_text == [row["text"] for row in rows] + lines
    with pytest.raises(ValueError, match="vocabulary_text must be a UTF-8 text file"):
        corpora.make(replace(config, vocabulary_text=str(tmp_path / "none.txt")), seed=0)
