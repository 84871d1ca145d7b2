"""Tagged text: users' files and datasets in IOB2, and the words in which bad ones are refused."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from mkd_fast.data.tables import HubSource
from mkd_fast.data.tagged import TaggedText, load_tagged

ROWS = [
    {"tokens": ["Kim", "Larsen", "bor", "i", "Kolding"], "language": "da"},
    {"tokens": ["Han", "sover"], "language": "da"},
    {"tokens": ["Rita", "chegou", "ao", "Porto", "Alegre"], "language": "pt"},
    {"tokens": ["Ela", "dorme"], "language": "pt"},
]
TAGS = [
    ["B-PER", "I-PER", "O", "O", "B-LOC"],
    ["O", "O"],
    ["B-PER", "O", "O", "B-LOC", "I-LOC"],
    ["O", "O"],
]
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def rows_with(change=None, number=0, tags=TAGS):
    rows = [{**row, "tags": list(of)} for row, of in zip(ROWS, tags, strict=True)]
    rows[number] |= change or {}
    return rows


def write(folder, rows, name="text.jsonl"):
    path = folder / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["text.jsonl", "text.parquet"])
def test_files_are_read(tmp_path, name):
    text = load_tagged(write(tmp_path, rows_with(), name))
    assert text.label_names == NAMES
    assert text.sentences == [row["tokens"] for row in ROWS]
    assert text.tag_rows == TAGS
    assert text.tags[0] == [3, 4, 0, 0, 1]
    assert text.languages_present == ("da", "pt")
    assert text.texts[1] == "Han sover"
    assert list(text.rows()) == rows_with()


def test_rows_read_back_the_same(tmp_path):
    text = load_tagged(write(tmp_path, rows_with()))
    again = load_tagged(write(tmp_path, list(text.rows())), label_names=text.label_names)
    assert again == text
    assert again.fingerprint == text.fingerprint
    part = text.select([2, 0])
    assert part.sentences == [ROWS[2]["tokens"], ROWS[0]["tokens"]]
    assert part.label_names == NAMES
    assert part.fingerprint != text.fingerprint


def test_a_dataset_s_class_labels_go_by_their_names(monkeypatch):
    import datasets

    features = Features(
        {
            "words": List(Value("string")),
            "ner": List(ClassLabel(names=NAMES)),
            "lang": Value("string"),
        }
    )
    columns = {
        "words": [row["tokens"] for row in ROWS],
        "ner": [[NAMES.index(tag) for tag in tags] for tags in TAGS],
        "lang": [row["language"] for row in ROWS],
    }
    dataset = Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    source = HubSource("x", text_column="words", label_column="ner", language_column="lang")
    assert load_tagged(source).tag_rows == TAGS


def test_types_that_are_not_asked_for_count_as_outside(tmp_path):
    text = load_tagged(write(tmp_path, rows_with()), entity_types=["LOC"])
    assert text.label_names == ("O", "B-LOC", "I-LOC")
    assert text.tag_rows[0] == ["O", "O", "O", "O", "B-LOC"]
    assert text.num_other_types == 3


def test_tags_that_training_has_not_are_refused_unless_the_types_are_named(tmp_path):
    path = write(tmp_path, rows_with({"tags": ["B-OTH", "I-OTH", "O", "O", "B-LOC"]}))
    message = (
        f"load_tagged: tags of {path} must be of the training text's types, LOC, PER, "
        "got 'B-OTH' in row 1. "
        "Set data.entity_types = ['LOC', 'PER'], and words of other types count as O."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_tagged(path, label_names=NAMES)
    text = load_tagged(path, label_names=NAMES, entity_types=["LOC", "PER"])
    assert text.tag_rows[0] == ["O", "O", "O", "O", "B-LOC"]
    assert text.num_other_types == 2


def test_what_continues_nothing_is_counted(tmp_path):
    tags = [["I-PER", "I-PER", "O", "O", "B-LOC"], ["O", "O"], ["B-PER", "I-LOC", "O", "O", "O"]]
    text = load_tagged(write(tmp_path, rows_with(tags=[*tags, ["O", "O"]])))
    assert text.tag_rows[:3] == tags
    assert text.num_stray == 2  # the second I-PER continues, if only what never began


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        pytest.param(
            {"tags": ["O", "O"]},
            ValueError,
            "every word of {path} must have a tag, got 2 tags for 5 words in row 1.",
            id="fewer tags",
        ),
        pytest.param(
            {"tags": ["O", "O", "LOC", "O", "O"]},
            ValueError,
            "tags of {path} must be IOB2: O, B-TYPE or I-TYPE, got 'LOC' in row 1.",
            id="not IOB2",
        ),
        pytest.param(
            {"tags": ["O", "O", "B-", "O", "O"]},
            ValueError,
            "must be IOB2: O, B-TYPE or I-TYPE, got 'B-' in row 1.",
            id="no type",
        ),
        pytest.param(
            {"tags": None}, ValueError, "column 'tags' of {path} must not be empty", id="no tags"
        ),
        pytest.param(
            {"tags": ["O", None, "O", "O", "O"]},
            ValueError,
            "column 'tags' of {path} must not be empty, got nothing in row 1.",
            id="a word without a tag",
        ),
        pytest.param(
            {"tokens": [], "tags": []},
            ValueError,
            "column 'tokens' of {path} must not be empty, got nothing in row 1.",
            id="no words",
        ),
        pytest.param(
            {"language": " "}, ValueError, "column 'language' of {path} must not", id="no language"
        ),
        pytest.param(
            {"language": "sv"}, ValueError, "got one for 'da'", id="a language with one sentence"
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, change, kind, words):
    path = write(tmp_path, rows_with(change))
    with pytest.raises(kind, match=re.escape(words.format(path=path))):
        load_tagged(path)


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        pytest.param(
            [{**row, "tags": [0] * len(row["tokens"])} for row in ROWS],
            TypeError,
            "column 'tags' of {path} must hold lists of strings, got list<",
            id="numbers without names",
        ),
        pytest.param(
            [{"tokens": "a b", "tags": ["O", "O"], "language": "da"}] * 2,
            TypeError,
            "column 'tokens' of {path} must hold lists of strings, got string",
            id="text instead of words",
        ),
        pytest.param(
            [{"text": "a b", "label": "x", "language": "da"}] * 2,
            ValueError,
            "{path} must have a column 'tokens'",
            id="text of another task",
        ),
        pytest.param(
            [{"tokens": ["a"], "tags": ["O"], "language": "da"}] * 2,
            ValueError,
            "{path} must have an entity of a type that is asked for, got none.",
            id="no entity",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, rows, kind, words):
    path = write(tmp_path, rows)
    with pytest.raises(kind, match=re.escape(words.format(path=path))):
        load_tagged(path)


def test_csv_holds_no_lists(tmp_path):
    path = tmp_path / "text.csv"
    path.write_text("tokens,tags,language\na b,O O,da\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("must end in .jsonl, .parquet, got")):
        load_tagged(path)


def test_the_same_words_labelled_otherwise_have_another_fingerprint():
    text = TaggedText([["a"]], [[0]], ["da"], ("O", "B-X", "I-X"))
    other = TaggedText([["a"]], [[1]], ["da"], ("O", "B-X", "I-X"))
    assert text.fingerprint != other.fingerprint
