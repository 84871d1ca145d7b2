"""load_text: the three formats, datasets, label sets, and every way a file can be wrong."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from mkd_fast.data.tables import HubSource
from mkd_fast.data.text import LabelledText, load_text

ROWS = [
    {"text": "turn it on", "label": "on", "language": "en"},
    {"text": "mach es aus", "label": "off", "language": "de"},
    {"text": "turn, it\noff", "label": "off", "language": "en"},
    {"text": "mach „es“ an", "label": "on", "language": "de"},
]
EXPECTED = LabelledText(
    texts=[row["text"] for row in ROWS],
    labels=[1, 0, 0, 1],
    languages=["en", "de", "en", "de"],
    label_names=("off", "on"),
)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows):
    lines = [",".join(rows[0])]
    lines += [",".join('"' + str(cell) + '"' for cell in row.values()) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("suffix", "write"),
    [(".jsonl", write_jsonl), (".csv", write_csv), (".parquet", write_parquet)],
)
def test_each_format_gives_the_same_text(tmp_path, suffix, write):
    assert load_text(write(tmp_path / f"train{suffix}", ROWS)) == EXPECTED


def test_a_string_path_works_as_a_path(tmp_path):
    assert load_text(str(write_jsonl(tmp_path / "train.jsonl", ROWS))) == EXPECTED


def test_large_strings_are_text(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    large = pa.schema([(name, pa.large_string()) for name in table.column_names])
    pyarrow.parquet.write_table(table.cast(large), tmp_path / "large.parquet")
    assert load_text(tmp_path / "large.parquet") == EXPECTED


def test_integer_labels_are_sorted_by_value(tmp_path):
    rows = [{**ROWS[0], "label": label} for label in (10, 9, 100, 9)]
    text = load_text(write_jsonl(tmp_path / "train.jsonl", rows))
    assert text.label_names == ("9", "10", "100")
    assert text.labels == [1, 0, 2, 0]


def test_csv_labels_that_look_like_booleans_are_names(tmp_path):
    rows = [{**ROWS[0], "label": label} for label in ("true", "false")]
    text = load_text(write_csv(tmp_path / "train.csv", rows))
    assert text.label_names == ("false", "true")


def test_evaluation_text_keeps_the_known_label_order(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", ROWS[:1])
    text = load_text(path, label_names=("maybe", "on", "off"))
    assert text.labels == [1]
    assert text.label_names == ("maybe", "on", "off")


def test_a_dataset_is_read_through_its_column_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    renamed = [{"utt": r["text"], "intent": r["label"], "locale": r["language"]} for r in ROWS]
    write_jsonl(folder / "train.jsonl", renamed)
    source = HubSource(
        str(folder), text_column="utt", label_column="intent", language_column="locale"
    )
    assert load_text(source) == EXPECTED


def test_class_labels_and_a_fixed_language(monkeypatch):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])}
    )
    rows = {"text": ["eins", "zwei"], "label": [0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    text = load_text(HubSource("some/name", language="de"))
    assert text.languages == ["de", "de"]
    assert text.label_names == ("a", "z")
    assert text.labels == [1, 0]


def test_an_unreachable_dataset_says_so(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"'some/name'.*no route to the hub"):
        load_text("some/name")


def test_select_keeps_groups_and_names():
    text = LabelledText(["a", "b", "c"], [0, 1, 0], ["x", "y", "x"], ("p", "q"), ["g", "h", "i"])
    chosen = text.select([2, 1])
    assert chosen == LabelledText(["c", "b"], [0, 1], ["x", "y"], ("p", "q"), ["i", "h"])
    assert chosen.languages_present == ("x", "y")


def test_fingerprint_changes_with_content_and_order_only():
    fingerprint = EXPECTED.fingerprint
    assert EXPECTED.select(range(4)).fingerprint == fingerprint
    assert EXPECTED.select([1, 0, 2, 3]).fingerprint != fingerprint
    assert EXPECTED.select(range(3)).fingerprint != fingerprint


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source must be a file.*nowhere\.jsonl"):
        load_text(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"empty{suffix}"
    path.touch()
    with pytest.raises(ValueError, match=f"empty{suffix} must have at least one row, got none"):
        load_text(path)


def test_csv_with_a_header_only(tmp_path):
    path = tmp_path / "head.csv"
    path.write_text("text,label,language\n")
    with pytest.raises(ValueError, match=r"head\.csv must have at least one row"):
        load_text(path)


@pytest.mark.parametrize("column", ["text", "label", "language"])
def test_missing_column(tmp_path, column):
    rows = [{name: value for name, value in row.items() if name != column} for row in ROWS]
    with pytest.raises(ValueError, match=f"must have a column '{column}', got the columns"):
        load_text(write_csv(tmp_path / "train.csv", rows))


def test_unknown_label_names_file_row_and_nearest(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [ROWS[0], {**ROWS[1], "label": "turn_of"}])
    with pytest.raises(ValueError, match=r"test\.jsonl.*'turn_of' in row 2.*mean 'turn_off'"):
        load_text(path, label_names=("on", "turn_off"))


def test_training_language_with_one_example(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match="at least two examples, got one for 'de'"):
        load_text(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_not_utf8_names_line_and_byte(tmp_path, suffix):
    path = tmp_path / f"latin{suffix}"
    path.write_bytes("text,label,language\ngrün,a,de\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=rf"latin{suffix} must be UTF-8, got byte 0xfc in line 2 at byte 2"
    ):
        load_text(path)


def test_parquet_that_is_not_utf8(tmp_path):
    raw = pa.array([b"gr\xfcn", b"blau"])
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = pa.table({"text": texts, "label": ["a", "b"], "language": ["de", "de"]})
    pyarrow.parquet.write_table(table, tmp_path / "latin.parquet")
    with pytest.raises(ValueError, match=r"column 'text' of .*latin\.parquet must be UTF-8"):
        load_text(tmp_path / "latin.parquet")


@pytest.mark.parametrize("column", ["text", "label", "language"])
@pytest.mark.parametrize("cell", ["", "  ", None])
def test_empty_cell(tmp_path, column, cell):
    path = write_jsonl(tmp_path / "train.jsonl", [*ROWS, {**ROWS[0], column: cell}])
    with pytest.raises(ValueError, match=f"column '{column}' of .* must not be empty.*row 5"):
        load_text(path)


def test_empty_integer_label(tmp_path):
    rows = [{**ROWS[0], "label": 1}, {**ROWS[0], "label": None}]
    with pytest.raises(ValueError, match=r"column 'label' of .* must not be empty.*row 2"):
        load_text(write_jsonl(tmp_path / "train.jsonl", rows))


@pytest.mark.parametrize(("column", "also"), [("text", ""), ("label", " or integers")])
def test_column_of_another_kind(tmp_path, column, also):
    path = write_jsonl(tmp_path / "train.jsonl", [{**row, column: 0.5} for row in ROWS])
    with pytest.raises(TypeError, match=f"'{column}' of .* must hold strings{also}, got double"):
        load_text(path)


def test_broken_json(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"train\.jsonl must be valid jsonl, got"):
        load_text(path)


def test_unknown_suffix(tmp_path):
    path = tmp_path / "train.xlsx"
    path.touch()
    with pytest.raises(ValueError, match=r"name must end in \.jsonl, \.csv, \.parquet, got"):
        load_text(path)


def test_a_column_of_groups_is_read_where_there_is_one(tmp_path):
    rows = [{"text": f"t{n}", "label": "a", "language": "en", "group": f"g{n}"} for n in range(2)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_text(path).groups == ["g0", "g1"]
    path.write_text("".join(json.dumps({**row, "group": 3}) + "\n" for row in rows))
    with pytest.raises(TypeError, match=r"column 'group' of .* must hold strings"):
        load_text(path)
