"""A study's report: its questions answered in words, tables and figures, from its rows alone."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast.evaluate import page
from mkd_fast.evaluate.drawing import to_svg
from mkd_fast.evaluate.page import Block, Heading, Picture, Prose
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.files import make_folder, writing_into
from mkd_fast.study import figures, summaries
from mkd_fast.study.questions import Answer, ask
from mkd_fast.study.resampling import NUM_RESAMPLES, Resampling
from mkd_fast.study.results import SEEN, UNSEEN, StudyResults, read_results
from mkd_fast.study.summaries import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = {
    "sequence_classification": "Sequence classification",
    "token_classification": "Token classification",
    "masked_lm": "Masked language modelling",
    "causal_lm": "Causal language modelling",
}
RAW = ("cells.jsonl", "probes.jsonl", "teacher.json", "groups.json", "study.json")
# Of the authors' model cards: XLM-R base on MASSIVE, 52 languages, 12 -> 6 layers.
PUBLISHED = (
    ("teacher", "84.4", "81.9"),
    ("copied from the fine-tuned teacher, labels only", "83.7", "81.1"),
    ("scratch, distilled (4 seeds)", "82.6-82.8", "80.2-80.4"),
    ("scratch, labels only (3 runs)", "80.4-80.6", "77.3-77.4"),
)


def write_report(folder: Path, out: Path) -> None:
    """Make report.md, index.html and the figures from a study's folder.

    Args:
        folder: what ``mkd-fast study`` wrote.
        out: where the report goes; the raw rows are copied beside it where that is elsewhere.

    Raises:
        ValueError: there is nothing to report, or rows of another version.
        OSError: a file cannot be read or written.
    """
    results = read_results(folder)
    blocks = tuple(report(results))
    title = f"Privileged students: {results.name}"
    make_folder(out)
    with writing_into(out):
        for block in blocks:
            if isinstance(block, Picture):
                (out / f"{block.stem}.svg").write_text(block.svg, encoding="utf-8")
        (out / "report.md").write_text(page.to_markdown(title, blocks), encoding="utf-8")
        (out / "index.html").write_text(page.to_html(title, blocks), encoding="utf-8")
        for name in RAW:
            if (folder / name).exists() and folder.resolve() != out.resolve():
                shutil.copyfile(folder / name, out / name)


def report(results: StudyResults) -> Iterator[Block]:
    """Everything, in the order in which it is read."""
    answers = ask(results, Resampling(results))
    objective = "kl" if "kl" in results.present("objective") else results.present("objective")[0]
    fraction, num_layers = results.main_fraction, results.present("num_layers")[0]
    yield Prose(_what_was_run(results))
    yield Heading("What it says")
    yield Prose(
        f"With {fraction:.0%} of the text, where no share of it is named.",
        items=tuple(_verdicts(answers)),
    )
    if floor := summaries.at_chance(results, fraction):
        yield Prose(
            f"At chance, or nearly: {'; '.join(floor)}. In as many steps these learnt next to"
            " nothing of the seen languages. Differences from them say that they need more, not how"
            " far they would come."
        )
    yield Heading("Surprises")
    for what, chosen in (
        ("Sure, and on the other side of what was expected:", "is_surprise"),
        ("Expected, and not shown:", "is_not_shown"),
    ):
        found = tuple(_verdicts([answer for answer in answers if getattr(answer, chosen)]))
        yield Prose(what, items=found or ("nothing.",))
    yield Heading("Is copying worth more than distilling?")
    yield summaries.overview(results, fraction)
    yield _picture("heat_map", "Score by start and objective", figures.heat_map(results, fraction))
    if results.says_tokens:
        yield summaries.beside(results, fraction)
    yield Heading("How fast does each start learn?")
    yield summaries.speed(results, objective, num_layers)
    curves = figures.learning_curves(results, objective, num_layers)
    yield _picture("learning_curves", "Development score by step", curves)
    yield Heading("What is kept in unseen languages?")
    yield summaries.by_language(results, objective, fraction, num_layers)
    if results.present("fraction")[-1] < fraction:
        yield from _with_little_text(results, objective)
    if len(results.present("depth")) > 1:
        yield Heading("Which layers to copy?")
        for some in results.present("fraction"):
            yield summaries.by_depth(results, objective, some)
    yield Heading("Size against quality")
    size = figures.size_and_quality(results, objective, fraction)
    yield _picture("size", "Parameters against the score", size)
    yield Heading("All comparisons")
    yield Prose(
        "Intervals and p-values come from test examples (whole templates or documents, where"
        " examples are parts of them) and seeds, resampled"
        f" {NUM_RESAMPLES:,} times, crossed and paired; languages and models stay as they are."
        " Of one seed, they speak of other sentences and not of other seeds; of three, what seeds"
        " do is known roughly. p-values are two-sided and adjusted for all rows (Holm); ≤: no"
        " resample was on the other side of 0."
    )
    yield summaries.answers(answers)
    yield Heading("Learning rates")
    yield Prose(
        "Chosen for each start and objective on development text of the seen languages, after a"
        " short training on all of the text with one seed. Where the choice is at an end of what"
        " was tried, a better rate may lie beyond."
    )
    yield summaries.learning_rates(results)
    yield Heading("Published figures")
    yield Prose(
        "Another task and another teacher, so to be compared in kind only: XLM-R base on MASSIVE,"
        " 52 languages, half depth, from the authors' model cards (arXiv 2406.16524)."
    )
    rows = tuple(TableRow(row) for row in PUBLISHED)
    yield Table("Accuracy / macro-F1, %", ("run", "accuracy", "macro-F1"), (rows,))


def _with_little_text(results: StudyResults, objective: str) -> Iterator[Block]:
    least, depths = results.present("fraction")[-1], results.present("num_layers")
    yield Heading("What is left with little text?")
    yield Prose(
        f"Kept: what a start scores above chance with {least:.0%} of the text, as a share"
        f" of that with {results.main_fraction:.0%}. A start that with this is not half as far"
        " above chance as the teacher has learnt too little for a share to say anything: —."
    )
    for num_layers in depths:
        yield summaries.by_fraction(results, objective, num_layers)
    curves = figures.data_curves(results, objective, depths[0])
    yield _picture("data_curves", "Score by share of the text", curves)


def _what_was_run(results: StudyResults) -> str:
    teacher = results.teacher
    scores = ", ".join(
        f"{100 * teacher.score(languages):.1f} % in {len(languages)} {group} languages"
        for group in (SEEN, UNSEEN)
        if (languages := results.languages(group))
    )
    done, planned = len(results.cells), results.num_planned
    state = f"All {planned} cells" if done == planned else f"{done} of {planned} cells so far"
    failed = f", {results.num_failed} of them failed," if results.num_failed else ""
    hours = sum(cell.seconds for cell in results.cells) / 3600
    missing = "; ".join(_missing(results))
    scored, chance = NAMES[results.metric], "chance is"
    if results.says_tokens:
        scored += " (the likeliest is the true one; every model is asked for the same)"
        chance = "who always says the commonest finds"
    return (
        f"{TASKS[results.task]}, scored by {scored}; {chance} {100 * results.chance:.1f} %. All of"
        f" the text are {results.num_train:,} training sentences, and there are"
        f" {results.num_test:,} to test on. The fine-tuned teacher has"
        f" {teacher.parameters / 1e6:.1f} million parameters and scores {scores}."
        f" {state}{failed} with {summaries.seeds(len(results.seeds))} are in this report; they"
        f" trained for {hours:.1f} hours, {', '.join(_steps(results))}."
        + (f" Of the grid there is nothing yet of: {missing}." if missing else "")
    )


def _steps(results: StudyResults) -> Iterator[str]:
    """How many steps students took, for each share of the text."""
    for fraction in results.present("fraction"):
        steps = {cell.steps for cell in results.cells if cell.arm.fraction == fraction}
        yield f"{' or '.join(map(str, sorted(steps)))} steps on {fraction:.0%} of the text"


def _missing(results: StudyResults) -> Iterator[str]:
    """Values of the grid that no cell has yet."""
    for field, planned in results.planned.items():
        there = results.seeds if field == "seed" else results.present(field)
        for value in planned:
            if value not in there:
                yield _value(field, value)


def _value(field: str, value: Any) -> str:
    if field == "fraction":
        return f"{value:.0%} of the text"
    if field == "num_layers":
        return f"{value} layers"
    return f"{field} {NAMES.get(value, value)}"


def _verdicts(answers: Sequence[Answer]) -> Iterator[str]:
    """One line a comparison, both groups of languages in it."""
    whats = list(dict.fromkeys(answer.what for answer in answers))
    for what in whats:
        found = "; ".join(answer.sentence() for answer in answers if answer.what == what)
        yield f"{what}: {found}."


def _picture(stem: str, what: str, figure: "Figure") -> Picture:
    return Picture(stem, what, to_svg(figure))
