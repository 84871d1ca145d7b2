"""Runs side by side in one page: what differs, how they learnt, and what came out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mkd_fast.evaluate.drawing import to_svg
from mkd_fast.evaluate.page import Block, Heading, Picture, Prose, to_html
from mkd_fast.evaluate.plots import loss_curves
from mkd_fast.evaluate.scores import LanguageScore, Measure
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.files import make_folder, write_atomically
from mkd_fast.sharing.card import with_interval
from mkd_fast.sharing.record import Row, RunRecord

_STUDENT = "student"
_TRAINED_AS = "trained student"  # in metric rows
_NONE = "—"


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Compare runs in one HTML page that needs nothing beside it.

    Args:
        folders: of runs, finished or not; the first is what the others are compared with.
        out: the page; its folder is made if need be.

    Raises:
        ValueError: a folder is no run's.
        OSError: the page cannot be written.
    """
    runs = {str(folder): RunRecord.read(folder, "report") for folder in folders}
    names = _short_names(list(runs))
    page = to_html("Runs compared", tuple(_blocks(dict(zip(names, runs.values(), strict=True)))))
    make_folder(out.parent)
    write_atomically(out, [page.encode()])


def difference(
    ours: Sequence[LanguageScore], theirs: Sequence[LanguageScore], measure: str
) -> tuple[float, float, float]:
    """Mean difference over languages and its 95 % interval, from the scores' own intervals.

    Each score stands for an estimate of its own; the distances to the bounds add in squares:
    low = d - sqrt(sum((p - low_p)^2 + (high_q - q)^2)) / n. Models tested on the same text err
    together, so the interval is rather too wide than too narrow.

    Args:
        ours: of one model, a score a language.
        theirs: of the other, the same languages in the same order.
        measure: name of the headline, whose intervals these are.

    Source: Zou and Donner (2008), "Construction of confidence limits about effect measures".
    """
    below = above = total = 0.0
    for ps, qs in zip(ours, theirs, strict=True):
        p, q = ps.values[measure], qs.values[measure]
        total += p - q
        below += (p - ps.interval[0]) ** 2 + (qs.interval[1] - q) ** 2
        above += (ps.interval[1] - p) ** 2 + (q - qs.interval[0]) ** 2
    num = len(ours)
    mean = total / num
    return mean, mean - math.sqrt(below) / num, mean + math.sqrt(above) / num


def _short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, or the whole path where two share it."""
    last = [Path(folder).resolve().name for folder in folders]
    return last if len(set(last)) == len(last) else list(folders)


def _blocks(runs: Mapping[str, RunRecord]) -> Iterator[Block]:
    yield Prose(items=tuple(f"{name}: {run.state}" for name, run in runs.items()))
    yield Heading("What differs")
    yield from _settings(runs)
    yield Heading("What came out")
    yield _overview(runs)
    yield from _languages(runs)
    yield Heading("How they learnt")
    rows = [
        {**row, "model": name}
        for name, run in runs.items()
        for row in run.rows
        if row["model"] == _TRAINED_AS
    ]
    if not rows:
        yield Prose("No run has logged a step of its student yet.")
        return
    figure = loss_curves(rows, list(runs))
    yield Picture("loss_curves", "Training losses of the students", to_svg(figure))
    yield Prose(
        "Losses of runs with other losses, temperatures or teachers are of other scales: compare"
        " their shapes, and the scores above."
    )


def _settings(runs: Mapping[str, RunRecord]) -> Iterator[Block]:
    flat = [
        {
            f"{section}.{key}": value
            for section, of in run.settings.items()
            for key, value in of.items()
        }
        for run in runs.values()
    ]
    names = dict.fromkeys(name for settings in flat for name in settings)
    differing = [
        TableRow((name, *cells))
        for name in names
        if name != "run.folder"
        and len(set(cells := [str(settings.get(name, _NONE)) for settings in flat])) > 1
    ]
    if differing:
        yield Table("Settings that differ", ("setting", *runs), (tuple(differing),))
    else:
        yield Prose("No setting.")


def _overview(runs: Mapping[str, RunRecord]) -> Table:
    lines = {
        "mean, seen languages": [_mean(run, "seen") for run in runs.values()],
        "mean, unseen languages": [_mean(run, "unseen") for run in runs.values()],
        "megabytes on disk": [_figure(run.size_bytes(_STUDENT), 1e6) for run in runs.values()],
        "steps": [_last(run.rows, "step") for run in runs.values()],
        "seconds of training": [_figure(run.fit(_STUDENT).get("seconds")) for run in runs.values()],
        "tokens/s, median of rows": [_speed(run.rows) for run in runs.values()],
        "share of time waiting for data": [_waiting(run.rows) for run in runs.values()],
    }
    rows = tuple(TableRow((name, *cells)) for name, cells in lines.items())
    return Table("The trained students", ("", *runs), (rows,))


def _languages(runs: Mapping[str, RunRecord]) -> Iterator[Block]:
    scored = {name: run.scores[_STUDENT] for name, run in runs.items() if _STUDENT in run.scores}
    if not scored:
        yield Prose("No student is scored yet.")
        return
    measures = {scores.measures[0] for scores in scored.values()}
    if len(measures) > 1:
        yield Prose("The runs are of tasks with other measures: their scores do not compare.")
        return
    (measure,) = measures
    by_language = {
        name: {score.language: score for score in (*scores.seen, *scores.unseen)}
        for name, scores in scored.items()
    }
    languages = dict.fromkeys(language for found in by_language.values() for language in found)
    rows = tuple(
        TableRow(
            (
                language,
                *(
                    with_interval(measure, found[language]) if language in found else _NONE
                    for found in by_language.values()
                ),
            )
        )
        for language in languages
    )
    caption = f"{measure.title}{', %' * measure.is_share}; in brackets the 95 % interval"
    yield Table(caption, ("language", *scored), (rows,))
    yield from _differences(runs, by_language, measure)


def _differences(
    runs: Mapping[str, RunRecord],
    by_language: Mapping[str, Mapping[str, LanguageScore]],
    measure: Measure,
) -> Iterator[Block]:
    """Of each run to the first, where both were tested on the same text."""
    first, *others = by_language
    scale, lines = 100 if measure.is_share else 1, []
    for name in others:
        if _test_text(runs[name]) != _test_text(runs[first]):
            yield Prose(f"{name} was tested on other text than {first}: no difference is told.")
            continue
        shared = [lang for lang in by_language[first] if lang in by_language[name]]
        if not shared:
            continue
        ours, theirs = ([by_language[run][lang] for lang in shared] for run in (name, first))
        cells = [f"{scale * value:+.3g}" for value in difference(ours, theirs, measure.name)]
        lines.append(TableRow((f"{name} - {first}", str(len(shared)), *cells)))
    if lines:
        header = ("difference", "languages", "mean", "low", "high")
        caption = (
            f"Differences of {measure.title}{', points' * measure.is_share}, with a 95 % interval"
            " over other test text (not other seeds); rather too wide, for the text is the same"
        )
        yield Table(caption, header, (tuple(lines),))


def _test_text(run: RunRecord) -> bytes:
    path = run.folder / "data" / "test.jsonl"
    return path.read_bytes() if path.exists() else b""


def _mean(run: RunRecord, group: str) -> str:
    scores = run.scores.get(_STUDENT)
    mean = None if scores is None else getattr(scores, f"{group}_mean")
    if scores is None or mean is None:
        return _NONE
    measure = scores.measures[0]
    value = mean.values[measure.name]
    return f"{100 * value:.1f} %" if measure.is_share else f"{value:.3f}"


def _figure(value: float | None, scale: float = 1.0) -> str:
    return _NONE if value is None else f"{value / scale:,.1f}"


def _of_student(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row["model"] == _TRAINED_AS and key in row]


def _last(rows: Sequence[Row], key: str) -> str:
    found = _of_student(rows, key)
    return f"{found[-1]:,}" if found else _NONE


def _speed(rows: Sequence[Row]) -> str:
    found = sorted(_of_student(rows, "tokens_per_s"))
    return f"{found[len(found) // 2]:,.0f}" if found else _NONE


def _waiting(rows: Sequence[Row]) -> str:
    found = _of_student(rows, "wait_share")
    return f"{sum(found) / len(found):.1%}" if found else _NONE
