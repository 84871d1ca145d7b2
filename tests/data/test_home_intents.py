"""The home-intent task: split by template, no leaks, balanced, the same in every process."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from mkd_fast.data.home_intents import HomeIntentOptions, build
from mkd_fast.data.splits import check_no_overlap

OPTIONS = HomeIntentOptions(seen=("en", "hu"), unseen=("zh-CN",), vocabulary_per_intent=30, seed=3)


@pytest.fixture(scope="module")
def task():
    return build(OPTIONS)


def test_seen_and_unseen_languages(task):
    assert task.train.languages_present == ("en", "hu")
    assert task.dev.languages_present == ("en", "hu")
    assert task.test.languages_present == ("en", "hu", "zh-CN")


def test_one_label_set_of_about_thirty_intents(task):
    names = task.train.label_names
    assert names == task.dev.label_names == task.test.label_names == tuple(sorted(names))
    assert 25 <= len(names) <= 42
    assert set(task.train.labels) == set(task.test.labels) == set(range(len(names)))


@pytest.mark.parametrize(("part", "limit"), [("train", 20), ("dev", 5), ("test", 10)])
def test_intents_are_capped_in_each_language(task, part, limit):
    text = getattr(task, part)
    counts = Counter(zip(text.languages, text.labels, strict=True))
    assert max(counts.values()) == limit


def test_most_cells_are_full(task):
    counts = Counter(zip(task.train.languages, task.train.labels, strict=True))
    full = sum(count == OPTIONS.train_per_intent for count in counts.values())
    assert full >= 0.9 * len(OPTIONS.seen) * len(task.train.label_names)


def test_templates_are_in_one_part_only(task):
    groups = [set(text.groups) for text in (task.train, task.dev, task.test)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for text in (task.train, task.dev, task.test):
        for group, language, label in zip(text.groups, text.languages, text.labels, strict=True):
            assert group.startswith(f"{language}/{text.label_names[label]}/")


def test_no_sentence_is_in_two_parts_or_twice(task):
    check_no_overlap(task.train.texts + task.dev.texts + task.vocabulary_text, task.test.texts)
    for text in (task.train, task.test):
        assert len(set(zip(text.texts, text.languages, strict=True))) == len(text)


def test_vocabulary_text_covers_unseen_languages(task):
    assert set(task.train.texts) <= set(task.vocabulary_text)
    assert any(re.search("[一-龥]", text) for text in task.vocabulary_text)


def test_sentences_are_clean(task):
    for text in task.train.texts + task.dev.texts + task.test.texts + task.vocabulary_text:
        assert text == text.strip() != ""
        assert not re.search(r"[\[\]{}()<>|;]|\s\s", text), text


def test_another_seed_draws_another_split(task):
    other = build(HomeIntentOptions(seen=("en",), unseen=("zh-CN",), seed=4))
    ours = {group for group in task.test.groups if group.startswith("en/HassTurnOn")}
    theirs = {group for group in other.test.groups if group.startswith("en/HassTurnOn")}
    assert ours != theirs


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_same_in_every_process(task, hash_seed):
    program = (
        "from mkd_fast.data.home_intents import HomeIntentOptions, build;"
        f"task = build({OPTIONS!r});"
        "print(task.train.fingerprint, task.dev.fingerprint, task.test.fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = [text.fingerprint for text in (task.train, task.dev, task.test)]
    assert done.stdout.split() == expected


def test_a_language_without_words():
    with pytest.raises(ValueError, match=r"seen and unseen must be among .*, got ja, tr"):
        HomeIntentOptions(seen=("en", "tr"), unseen=("ja",))


def test_no_seen_language():
    with pytest.raises(ValueError, match="seen must name a language, got none"):
        HomeIntentOptions(seen=())


def test_a_negative_count():
    with pytest.raises(ValueError, match="dev_per_intent must be zero or positive, got -1"):
        HomeIntentOptions(dev_per_intent=-1)


def test_a_language_seen_and_unseen():
    with pytest.raises(ValueError, match="either seen or unseen, got de twice"):
        HomeIntentOptions(seen=("en", "de"), unseen=("de",))


def test_too_few_utterances():
    with pytest.raises(ValueError, match="at least two intents must have 9999 utterances"):
        build(HomeIntentOptions(seen=("hu",), unseen=(), min_utterances=9999))


def test_no_development_sentence_is_in_training(task):
    check_no_overlap(task.train.texts, task.dev.texts)
