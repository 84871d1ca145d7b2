import json
import re
from pathlib import Path

import numpy as np
import pytest
from study_rows import GROUP_SIZE, NUM_GROUPS, SEEN, UNSEEN, arm, write_cells, write_study

from mkd_fast.study.results import STARTS, Arm, Point, read_results

NUM = NUM_GROUPS * GROUP_SIZE


def test_a_score_is_the_mean_over_languages_of_the_share_of_right_answers(tmp_path: Path) -> None:
    row = write_study(tmp_path, [arm()], lambda _, language: 0.8 if language == "en" else 0.3)[0]
    bits = {x: bin(int(row["correct"][x], 16)).count("1") for x in (*SEEN, *UNSEEN)}
    results = read_results(tmp_path)
    cell = results.by_arm[Arm(**arm())][0]
    assert cell.score(SEEN) == pytest.approx(sum(bits[x] for x in SEEN) / NUM / len(SEEN))
    assert cell.score(["en"]) == bits["en"] / NUM
    assert [len(cell.sums[x].whole) for x in SEEN] == [NUM_GROUPS] * len(SEEN)
    assert results.seeds == (0, 1, 2)
    assert (results.num_planned, results.num_failed) == (3, 0)
    assert results.chance == 1 / 4
    assert results.planned["depth"] == ("stride", "first", "last")
    assert (cell.learning_rate, cell.rates) == (3e-4, (1e-4, 3e-4))


def test_span_f1_is_of_the_sums_over_sentences(tmp_path: Path) -> None:
    row = write_study(tmp_path, [arm()], lambda *_: 0.6, seeds=(0,), metric="span_f1")[0]
    counts = {name: np.array(row["correct"]["de"][name]) for name in ("tp", "fp", "fn")}
    counts["fp"][:7] = 1
    row["correct"]["de"] = {name: values.tolist() for name, values in counts.items()}
    write_cells(tmp_path, [row])
    tp, fp, fn = (counts[name].sum() for name in ("tp", "fp", "fn"))
    found = read_results(tmp_path).cells[0].score(["de"])
    assert found == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert read_results(tmp_path).chance == 0.0


def test_tokens_that_were_found_are_a_share_of_all(tmp_path: Path) -> None:
    row = write_study(tmp_path, [arm()], lambda *_: 0.6, seeds=(0,), metric="masked_accuracy")[0]
    counts = row["correct"]["de"]
    counts["tokens"][:9] = [5] * 9
    write_cells(tmp_path, [row])
    results = read_results(tmp_path)
    share = sum(counts["right"]) / sum(counts["tokens"])
    assert results.cells[0].score(["de"]) == pytest.approx(share)
    assert results.cells[0].scores["de"]["perplexity"] == row["scores"]["de"]["perplexity"]
    assert (results.says_tokens, results.chance) == (True, 0.1)


def test_a_folder_that_does_not_say_what_chance_is_has_classes(tmp_path: Path) -> None:
    write_study(tmp_path, [arm()], lambda *_: 0.5)
    info = json.loads((tmp_path / "study.json").read_text())
    del info["chance"]
    (tmp_path / "study.json").write_text(json.dumps(info))
    assert read_results(tmp_path).chance == 1 / 4
    assert not read_results(tmp_path).says_tokens


def test_rows_of_an_older_grid_and_failed_ones_are_left_out(tmp_path: Path) -> None:
    rows = write_study(tmp_path, [arm()], lambda *_: 0.5)
    failed = {"key": rows[1]["key"], "error": "loss was nan"}
    write_cells(tmp_path, [{**rows[0], "key": "of an older grid"}, failed, rows[2]])
    results = read_results(tmp_path)
    assert [cell.seed for cell in results.cells] == [2]
    assert (results.num_planned, results.num_failed) == (3, 1)


@pytest.mark.parametrize(
    ("dev", "steps"),
    [
        pytest.param(0.3, 15.0, id="between two points"),
        pytest.param(0.4, 20.0, id="at a point"),
        pytest.param(0.0, 0.0, id="from the start"),
        pytest.param(0.9, None, id="never"),
    ],
)
def test_steps_to_a_score_are_interpolated(tmp_path: Path, dev: float, steps: float | None) -> None:
    write_study(tmp_path, [arm()], lambda *_: 0.5)
    cell = read_results(tmp_path).cells[0]
    curve = (Point(0, 0.0), Point(10, 0.2), Point(20, 0.4), Point(40, 0.6))
    object.__setattr__(cell, "curve", curve)
    assert cell.steps_to(dev) == (pytest.approx(steps) if steps is not None else None)


def test_values_are_shown_in_the_order_of_the_tables(tmp_path: Path) -> None:
    arms = [arm(start=s, fraction=f) for f in (0.01, 1.0) for s in ("finetuned", "scratch")]
    write_study(tmp_path, arms, lambda *_: 0.5, seeds=(0,))
    results = read_results(tmp_path)
    assert results.present("start") == ("scratch", "finetuned")
    assert results.present("fraction") == (1.0, 0.01)


@pytest.mark.parametrize(
    ("shares", "main"),
    [
        pytest.param((0.01, 0.01, 1.0), 0.01, id="most cells"),
        pytest.param((0.01, 0.1, 0.1, 0.01), 0.1, id="of as many the largest"),
        pytest.param((0.1,), 0.1, id="the only one"),
    ],
)
def test_the_main_share_of_the_text_is_that_of_most_cells(
    tmp_path: Path, shares: tuple[float, ...], main: float
) -> None:
    arms = [arm(start=s, fraction=f) for f, s in zip(shares, STARTS, strict=False)]
    write_study(tmp_path, arms, lambda *_: 0.5, seeds=(0,))
    assert read_results(tmp_path).main_fraction == main


def test_a_study_without_a_finished_cell_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, [arm()], lambda *_: 0.5)
    write_cells(tmp_path, [])
    with pytest.raises(ValueError, match=re.escape("study report: the study's folder must hold")):
        read_results(tmp_path)


def test_a_row_of_another_version_is_refused(tmp_path: Path) -> None:
    row = write_study(tmp_path, [arm()], lambda *_: 0.5)[0]
    del row["learning_rate"]
    write_cells(tmp_path, [row])
    with pytest.raises(ValueError, match=r"rows must be those .* KeyError 'learning_rate'"):
        read_results(tmp_path)
