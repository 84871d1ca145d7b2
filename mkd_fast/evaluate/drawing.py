"""How this project's plots look: colours, markers, style and the legend below the panels.

Nothing here touches global state: no pyplot, no backend. Colours are Okabe and Ito's, which people
with any kind of colour blindness tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = ("D", "o", "s", "^", "v", "P", "X")
DOTS_PER_INCH = 160
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.5,
}


def legend_below(figure: Figure, models: Sequence[str] = ()) -> None:
    """One legend for all panels, beneath them; of markers for `models`, else of what is drawn."""
    from matplotlib.lines import Line2D

    keys: dict[str, Any] = {
        model: Line2D([], [], color=colour(number), marker=marker(number), linestyle="none")
        for number, model in enumerate(models)
    }
    for axes in () if models else figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        keys |= dict(zip(labels, handles, strict=True))
    if keys:
        letters_in_a_line = 12 * figure.get_figwidth()
        num_columns = int(letters_in_a_line / (4 + max(map(len, keys))))
        figure.legend(
            list(keys.values()),
            list(keys),
            loc="outside lower center",
            ncols=min(len(keys), max(1, num_columns)),
        )


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure whose panels keep clear of each other; call it within `house_style`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.03)
    return Figure(figsize=(width_inches, height_inches), layout=layout)


def house_style() -> AbstractContextManager[None]:
    """Fonts, spines and grid, for what is drawn within."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    import matplotlib

    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mkd_fast", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def colour(number: int) -> str:
    """The colour of the model in this place, from 0."""
    return _COLOURS[number % len(_COLOURS)]


def marker(number: int) -> str:
    """The marker of the model in this place, from 0."""
    return _MARKERS[number % len(_MARKERS)]
