"""The fidelity table for people: Markdown tables and a plot, both made from the CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast.benchmarks.fidelity.study import SAMPLED, SPARSE
from mkd_fast.benchmarks.results import Row
from mkd_fast.evaluate.tables import Table, TableRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES = {  # what is drawn, and in which of Okabe and Ito's colours
    "topk, bucket": "#0072B2",
    "topk, renormalize": "#D55E00",
    "topk, drop": "#CC79A7",
    "sampled": "#009E73",
    "hidden, bfloat16": "#E69F00",  # float32 errs by rounding only, far below
}
_INK = "#7a7a7a"  # reads on white and on black


class Numbers:
    """What was measured, found by what it is of."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.teachers = tuple(dict.fromkeys(row["teacher"] for row in rows))

    def values(self, **wanted: str) -> dict[tuple[str, str], float]:
        """Numbers by kind and measure, of the rows with these columns, in their order."""
        return {
            (row["kind"], row["measure"]): float(row["value"])
            for row in self.rows
            if all(row[name] == text for name, text in wanted.items())
        }


def blocks(rows: Sequence[Row]) -> dict[str, str]:
    """The generated parts of docs/fidelity.md by name."""
    found = Numbers(rows)
    per_teacher = {
        "errors": _errors,
        "draws": _draws,
        "students": _students,
        "layers": _layers,
        "languages": _languages,
    }
    made = {
        name: "\n".join(table(found, teacher).to_markdown() for teacher in found.teachers)
        for name, table in per_teacher.items()
    }
    return made | {"budgets": _budgets(rows).to_markdown()}


def _errors(found: Numbers, teacher: str) -> Table:
    stored = found.values(teacher=teacher, student="", temperature="0.0")
    at = {
        (student, temperature): found.values(
            teacher=teacher, student=student, temperature=temperature
        )
        for student in ("copied", "trained")
        for temperature in ("1.0", "2.0")
    }
    cells = (
        ("copied", "1.0", "relative error of the loss"),
        ("copied", "1.0", "gradient's cosine"),
        ("copied", "1.0", "gradient's error"),
        ("trained", "1.0", "relative error of the loss"),
        ("trained", "1.0", "gradient's cosine"),
        ("trained", "1.0", "gradient's error"),
        ("trained", "1.0", "error of the sum"),
        ("trained", "2.0", "relative error of the loss"),
        ("trained", "2.0", "gradient's error"),
    )
    kinds = [kind for kind, measure in at["trained", "1.0"] if measure == cells[2][2]]
    lines = []
    for kind in (kind for kind in kinds if not kind.startswith("layer")):
        keep = kind.partition(", ")[0] if kind.startswith("topk") else kind
        values = [at[cell[:2]].get((kind, cell[2])) for cell in cells]
        texts = [_text(value, cell[2]) for value, cell in zip(values, cells, strict=True)]
        lines.append(TableRow((kind, f"{stored[keep, 'bytes a token']:,.1f}", *texts)))
    header = (
        "kind",
        "bytes a token",
        *("copied: loss off", "cosine", "error"),
        *("trained: loss off", "cosine", "error", "of the sum"),
        *("T = 2: loss off", "error"),
    )
    kl = {student: at[student, "1.0"]["dense", "forward KL x T^2, nats"] for student, _ in at}
    caption = (
        f"**{teacher}**. Dense forward KL: copied student {kl['copied']:.2f} nats, "
        f"trained student {kl['trained']:.2f}"
    )
    return Table(caption, header, (tuple(lines),))


def _text(value: float | None, measure: str) -> str:
    if value is None:
        return ""
    if measure == "relative error of the loss":
        return f"{value:+.1%}" if abs(value) >= 5e-4 else f"{value:+.0e}"
    return f"{value:.4f}" if measure == "gradient's cosine" else f"{value:.3g}"


def _draws(found: Numbers, teacher: str) -> Table:
    """The error of a mean over draws; a top-k has nothing to draw."""
    values = found.values(teacher=teacher, student="trained")
    return _by_last_word(teacher, values, "gradient's error, mean of ")


def _languages(found: Numbers, teacher: str) -> Table:
    values = found.values(teacher=teacher, student="")
    return _by_last_word(teacher, values, "distinct ids a token, ")


def _by_last_word(caption: str, values: dict[tuple[str, str], float], prefix: str) -> Table:
    """Kinds by what follows the prefix in their measures' names."""
    found = {
        (kind, measure.removeprefix(prefix)): f"{value:.3g}"
        for (kind, measure), value in values.items()
        if measure.startswith(prefix)
    }
    columns = dict.fromkeys(column for _, column in found)
    lines = [
        TableRow((kind, *(found.get((kind, column), "same") for column in columns)))
        for kind in dict.fromkeys(kind for kind, _ in found)
    ]
    return Table(f"**{caption}**", ("kind", *columns), (tuple(lines),))


def _students(found: Numbers, teacher: str) -> Table:
    """Held-out KL and perplexity; several seeds as mean and range."""
    measures = ("held-out KL, nats", "perplexity")
    by_target: dict[str, dict[str, list[float]]] = {}
    for row in found.rows:
        if row["teacher"] == teacher and row["measure"] in measures:
            of_target = by_target.setdefault(row["kind"], {name: [] for name in measures})
            of_target[row["measure"]].append(float(row["value"]))
    lines = [
        TableRow((target, *(_spread(values[measure]) for measure in measures)))
        for target, values in by_target.items()
    ]
    return Table(f"**{teacher}**", ("taught by", *measures), (tuple(lines),))


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):,.4g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.4g} to {max(values):,.4g})"


def _layers(found: Numbers, teacher: str) -> Table:
    stored = found.values(teacher=teacher, student="", temperature="0.0")
    errors = found.values(teacher=teacher, student="trained", temperature="0.0")
    measures = ("relative error of the loss", "gradient's cosine", "gradient's error")
    lines = [
        TableRow(
            (
                kind,
                f"{stored[kind, 'bytes a token']:,.0f}",
                *(_text(errors[kind, measure], measure) for measure in measures),
            )
        )
        for kind in dict.fromkeys(kind for kind, _ in errors)
    ]
    header = ("hidden layer", "bytes a token", "loss off", "cosine", "error")
    return Table(f"**{teacher}**", header, (tuple(lines),))


def _budgets(rows: Iterable[Row]) -> Table:
    lines = [
        TableRow(
            (
                row["kind"],
                row["teacher"],
                f"<= {float(row['at_most']):g}",
                f"{float(row['value']):.1f}",
                "holds" if row["holds"] == "True" else "**does not hold**",
            )
        )
        for row in rows
        if row["at_most"]
    ]
    header = ("kind", "teacher", "budget, bytes a token", "measured", "")
    return Table("Everything counted", header, (tuple(lines),))


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Write ``plot`` as SVG that is the same for the same rows."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "mkd_fast", "svg.fonttype": "none"}):
        plot(rows).savefig(path, transparent=True, metadata={"Date": None})


def plot(rows: Sequence[Row]) -> Figure:
    """Bytes a token against the gradient's error at T = 1, a panel for each teacher."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = Numbers(rows)
    inked: Any = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    with mpl.rc_context(inked | {"font.size": 9}):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        panels = figure.subplots(1, len(found.teachers), sharex=True, sharey=True, squeeze=False)[0]
        for axes, teacher in zip(panels, found.teachers, strict=True):
            _draw(axes, found, teacher)
        panels[0].set_ylabel("relative error of the gradient, trained student")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw(axes: Any, found: Numbers, teacher: str) -> None:
    stored = found.values(teacher=teacher, student="", temperature="0.0")
    values = found.values(teacher=teacher, student="trained", temperature="1.0")
    most = max(
        (m for _, m in values if m.startswith("gradient's error, mean of ")),
        key=lambda measure: int(measure.split()[-2]),
    )
    for name, colour in _SERIES.items():
        keeps: Sequence[str] = SAMPLED if name == "sampled" else (name,)
        kinds = keeps
        if name.startswith("topk"):
            keeps, kinds = SPARSE, [name.replace("topk", keep) for keep in SPARSE]
        sizes = [stored[keep, "bytes a token"] for keep in keeps]
        errors = [values[kind, "gradient's error"] for kind in kinds]
        axes.plot(sizes, errors, "o-", color=colour, label=name, markersize=4)
        if name == "sampled":
            of_mean = [values[kind, most] for kind in kinds]
            label = most.replace("gradient's error", "sampled")
            axes.plot(sizes, of_mean, "o--", color=colour, label=label, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="bytes a token")
    axes.set_title(teacher, loc="left", weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=_INK, alpha=0.2)
