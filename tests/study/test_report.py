import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import pytest
from study_rows import SEEN, UNSEEN, arm, write_cells, write_study

from mkd_fast.study import figures, summaries
from mkd_fast.study.questions import ask, questions
from mkd_fast.study.report import write_report
from mkd_fast.study.resampling import Resampling
from mkd_fast.study.results import Arm, StudyResults, read_results

GRID = [
    arm(start=start, objective=objective, fraction=fraction, num_layers=num_layers)
    for start in ("scratch", "embeddings", "pretrained", "finetuned")
    for objective in ("labels", "logit_mse", "kl", "kl_hidden", "hidden")
    for fraction in (1.0, 0.01)
    for num_layers in (6, 3)
]
DEPTHS = [arm(depth=depth, fraction=f) for depth in ("first", "last") for f in (1.0, 0.01)]
GROUPS = (SEEN, UNSEEN)
GAIN = {"scratch": 0.0, "embeddings": 0.1, "pretrained": 0.25, "finetuned": 0.35}


def quality(fields: Any, language: str) -> float:
    """Copies are better; KL is worse than labels, which nobody expects."""
    gain = GAIN[fields["start"]] + (0.0 if fields["objective"] == "kl" else 0.06)
    return 0.4 + gain - 0.1 * (fields["depth"] == "first")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, GRID + DEPTHS, quality)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> StudyResults:
    return read_results(folder)


def test_the_arms_of_a_pair_differ_in_one_thing(results: StudyResults) -> None:
    against = "copied and trained on labels alone, against scratch and distilled (KL)"
    for question in questions(results):
        assert question.pairs, question.what
        for ours, theirs in question.pairs:
            differing = [
                n for n in Arm.__dataclass_fields__ if getattr(ours, n) != getattr(theirs, n)
            ]
            assert len(differing) == (2 if question.what == against else 1), question.what


def test_answers_find_what_was_put_in(results: StudyResults) -> None:
    answers = {(a.what, a.group): a for a in ask(results, Resampling(results))}
    copied = answers["copied from the fine-tuned teacher, instead of scratch", "unseen"]
    assert copied.is_sure
    assert copied.found.low < GAIN["finetuned"] < copied.found.high
    assert not copied.is_surprise
    distilled = answers["distilling (KL) instead of labels, from any start", "seen"]
    assert distilled.found.value < 0
    assert distilled.is_surprise
    assert answers["layers by first instead of stride, copied", "seen"].found.value < 0


def test_what_was_expected_and_not_shown_is_no_surprise(results: StudyResults) -> None:
    answer = ask(results, Resampling(results))[0]
    unsure, other = replace(answer, adjusted_p=0.2), replace(answer, expected=-1)
    assert (answer.is_surprise, answer.is_not_shown) == (False, False)
    assert (unsure.is_surprise, unsure.is_not_shown) == (False, True)
    assert (other.is_surprise, other.is_not_shown) == (True, False)
    assert not replace(unsure, expected=0).is_not_shown
    assert unsure.sentence().endswith("(not sure)")


def test_choices_that_come_to_the_same_layers_are_one_question(tmp_path: Path) -> None:
    depths = ("stride", "first", "importance", "last")
    write_study(tmp_path, [arm(depth=depth) for depth in depths], quality)
    asked = [q.what for q in questions(read_results(tmp_path)) if q.what.startswith("layers")]
    assert asked == [
        "layers by first instead of stride, copied",
        "layers by importance or last instead of stride, copied",
    ]


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    write_study(tmp_path, [arm(), arm(start="scratch")], quality, seeds=(0,))
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "2 cells with one seed are in this report" in text
    assert "in seen / unseen languages, %: one seed\n" in text
    assert "in unseen languages (one seed)." in text
    assert "All of the text are 1,200 training sentences, and there are 1,000 to test on." in text
    assert "they trained for 0.0 hours, 80 steps on 100% of the text." in text
    missing = "nothing yet of: start embeddings copied; start copied, pretrained model; objective"
    assert missing in text
    assert text.index("; seed 1; seed 2;") > text.index("1% of the text; ")


def test_arms_of_fewer_seeds_than_others_say_so(tmp_path: Path) -> None:
    rows = write_study(tmp_path, [arm(), arm(start="scratch")], quality)
    write_cells(tmp_path, rows[:4])
    shown = summaries.overview(read_results(tmp_path), 1.0)
    scratch, copied = (section[0].cells[1] for section in shown.sections[1:])
    assert shown.caption.endswith("%: mean of 3 seeds ± their standard deviation")
    assert scratch.endswith(" (one seed)")
    assert "seed" not in copied
    by_language = summaries.by_language(read_results(tmp_path), "kl", 1.0, 6)
    assert by_language.sections[0][0].cells[2].endswith(" (one seed)")


def test_a_copy_is_shown_before_it_is_trained_too(results: StudyResults, tmp_path: Path) -> None:
    _, copied = summaries.overview(results, 1.0).sections[0]
    assert copied.cells == ("copied, fine-tuned teacher, untrained", *["30.0 / 20.0"] * 2)
    write_study(tmp_path, [arm(start="scratch")], quality)
    _, copied = summaries.overview(read_results(tmp_path), 1.0).sections[0]
    assert copied.cells[1] == "—"


def test_what_is_kept_is_counted_from_chance_and_only_where_something_was_learnt(
    tmp_path: Path,
) -> None:
    """Chance is 25 % and the teacher at 90 %, so that 57.5 % is half of the way."""
    scores = {"scratch": (0.3, 0.4), "pretrained": (0.75, 0.5), "finetuned": (0.75, 0.05)}

    def of_text(fields: Any, language: str) -> float:
        return scores[fields["start"]][fields["fraction"] < 1]

    arms = [arm(start=start, fraction=f) for start in scores for f in (1.0, 0.01)]
    write_study(tmp_path, arms, of_text)
    results = read_results(tmp_path)
    table = summaries.by_fraction(results, "kl", 6)
    kept = {row.cells[0]: row.cells[-1] for row in table.sections[0]}
    whole, some = (
        [
            fmean(cell.score(group) for cell in results.by_arm[Arm(**of)].values())
            for group in GROUPS
        ]
        for of in (arm(start="pretrained"), arm(start="pretrained", fraction=0.01))
    )
    shares = (f"{(y - 0.25) / (x - 0.25):.0%}" for x, y in zip(whole, some, strict=True))
    assert table.header[-1] == "kept at 1%"
    assert kept == {
        "scratch": "— / —",
        "copied, pretrained model": " / ".join(shares),
        "copied, fine-tuned teacher": "0% / 0%",
    }


def test_who_has_learnt_next_to_nothing_is_named(tmp_path: Path) -> None:
    """Chance is 25 % and the teacher at 90 %, so that 31.5 % is a tenth of the way."""
    scores = {"scratch": 0.26, "pretrained": 0.4, "finetuned": 0.7}
    arms = [arm(start=start) for start in scores]
    write_study(tmp_path, arms, lambda fields, _: scores[fields["start"]])
    assert summaries.at_chance(read_results(tmp_path), 1.0) == ["scratch, KL, 6 layers"]
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "At chance, or nearly: scratch, KL, 6 layers. In as many steps" in text
    write_study(tmp_path, arms[1:], lambda fields, _: scores[fields["start"]])
    write_report(tmp_path, tmp_path)
    assert "At chance" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("span_f1", "Span F1, %"),
        ("accuracy", "Accuracy, %"),
        ("masked_accuracy", "Masked tokens found, %"),
    ],
)
def test_a_score_has_its_name(tmp_path: Path, metric: str, shown: str) -> None:
    write_study(tmp_path, [arm()], quality, seeds=(0,), metric=metric)
    assert summaries.by_language(read_results(tmp_path), "kl", 1.0, 6).caption == shown


def test_of_language_models_perplexity_and_kl_stand_beside_the_score(tmp_path: Path) -> None:
    arms = [arm(), arm(start="scratch"), arm(start="scratch", num_layers=3)]
    rows = write_study(tmp_path, arms, quality, seeds=(0,), metric="masked_accuracy")
    table = summaries.beside(read_results(tmp_path), 1.0)
    (teacher,), (scratch,), (copied,) = table.sections
    assert table.header[1:3] == ("perplexity, 6 layers", "KL to the teacher, 6 layers")
    assert teacher.cells == ("teacher", *["11 / 11", "0.10 / 0.10"] * 2)
    found = [
        mean([rows[1]["scores"][x][name] for x in group])
        for name, mean in (("perplexity", geometric_mean), ("kl_to_teacher", fmean))
        for group in (SEEN, UNSEEN)
    ]
    assert scratch.cells[1] == f"{found[0]:.0f} / {found[1]:.0f}"
    assert scratch.cells[2] == f"{found[2]:.2f} / {found[3]:.2f}"
    assert copied.cells[3:] == ("—", "—")  # there is no such student of three layers
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Masked language modelling, scored by masked tokens found (the likeliest is the" in text
    assert "; who always says the commonest finds 10.0 %. All of the text" in text
    assert "| KL to the teacher, 3 layers |" in text
    assert "Sequence classification" not in text


def test_rates_at_an_end_of_those_tried_are_marked(tmp_path: Path) -> None:
    rows = write_study(tmp_path, [arm(start=s) for s in ("scratch", "finetuned")], quality)
    rows[3:] = [{**row, "learning_rate": 1e-4} for row in rows[3:]]
    write_cells(tmp_path, rows)
    table = summaries.learning_rates(read_results(tmp_path))
    assert [row.cells[1] for row in table.sections[0]] == ["3e-04 ↑", "1e-04 ↓"]
    assert summaries._rate(1.2e-3, (4e-4, 1.2e-3)) == "1.2e-03 ↑"


def test_a_p_value_at_its_least_is_shown_as_a_bound(results: StudyResults) -> None:
    answer = ask(results, Resampling(results))[0]
    other = replace(answer, found=replace(answer.found, is_floor=False))
    shown = [row.cells[4] for row in summaries.answers([answer, other]).sections[0]]
    assert answer.found.is_floor
    assert shown == [f"≤ {answer.adjusted_p:.2g}", f"{answer.adjusted_p:.2g}"]


def test_an_unfinished_grid_has_a_report_with_gaps(tmp_path: Path) -> None:
    few = [arm(), arm(start="scratch"), arm(start="scratch", fraction=0.01)]
    write_study(tmp_path, few, quality)
    table = summaries.by_fraction(read_results(tmp_path), "kl", 6)
    cells = {row.cells[0]: row.cells[1:] for row in table.sections[0]}
    assert cells["copied, fine-tuned teacher"][1:] == ("—", "—")
    assert "—" not in cells["scratch"]
    write_report(tmp_path, tmp_path / "out")


def test_a_few_first_cells_with_all_of_the_text_do_not_become_the_main_ones(
    tmp_path: Path,
) -> None:
    starts = ("scratch", "finetuned")
    much = [arm(start=start, fraction=f) for start in starts for f in (0.1, 0.01)]
    write_study(tmp_path, [*much, arm(objective="labels")], quality)
    results = read_results(tmp_path)
    pairs = [pair for question in questions(results) for pair in question.pairs]
    assert {arm.fraction for pair in pairs for arm in pair} == {0.1, 0.01}
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "With 10% of the text, where no share of it is named." in text
    assert "| start, objective (10% of the text) |" in text
    assert "with 1% of the text, as a share of that with 10%." in text
    assert "| 100% of the text | 10% of the text | 1% of the text | kept at 1% |" in text
    table = summaries.by_fraction(results, "kl", 6)
    kept = {row.cells[0]: row.cells[-1] for row in table.sections[0]}
    assert "%" in kept["copied, fine-tuned teacher"]


def test_where_the_main_share_is_the_least_nothing_is_kept(tmp_path: Path) -> None:
    arms = [arm(start="scratch", fraction=0.01), arm(fraction=0.01), arm()]
    write_study(tmp_path, arms, quality)
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "With 1% of the text, where no share of it is named." in text
    assert "kept at" not in text
    assert "at 1% of the text: " not in text


@pytest.mark.parametrize("metric", ["accuracy", "masked_accuracy"])
def test_titles_and_labels_fit_into_figures_of_a_single_panel(tmp_path: Path, metric: str) -> None:
    write_study(tmp_path, [arm(), arm(objective="labels")], quality, metric=metric)
    results = read_results(tmp_path)
    drawn = (figures.heat_map(results, 1.0), figures.learning_curves(results, "kl", 6))
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [figure._suptitle, *(axes.yaxis.label for axes in figure.axes)]  # type: ignore[attr-defined]
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y0 >= 0
            assert box.y1 <= figure.bbox.y1


class Tags(HTMLParser):
    """What is open, and what pages it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.asked += [str(v) for k, v in attributes if k in ("src", "href") and v and v[0] != "#"]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing(folder: Path, tmp_path: Path) -> None:
    write_report(folder, tmp_path)
    tags = Tags()
    tags.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert not tags.open
    assert not tags.asked
    assert {"table", "svg", "h2"} <= tags.seen


def test_the_markdown_shows_every_figure_and_the_rows_lie_beside_it(
    folder: Path, tmp_path: Path
) -> None:
    write_report(folder, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\((\w+\.svg)\)", markdown))
    assert shown == {path.name for path in tmp_path.glob("*.svg")}
    assert len(shown) == 4
    for name in ("cells.jsonl", "study.json", "teacher.json", "groups.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    again = tmp_path / "again"
    write_report(tmp_path, again)
    assert (again / "index.html").read_bytes() == (tmp_path / "index.html").read_bytes()
