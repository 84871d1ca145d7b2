"""A table of text, shown as Markdown or in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class TableRow:
    """Cells as text, one for each column; a strong row is a heading or a mean."""

    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text; its sections are sets of rows that belong together."""

    caption: str
    header: tuple[str, ...]
    sections: tuple[tuple[TableRow, ...], ...]

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, caption first, numbers to the right."""
        rows = [row for section in self.sections for row in section]
        lines = [_escaped(self.header), ("---", *("---:" for _ in self.header[1:]))]
        lines += [_strong(row.cells) if row.strong else _escaped(row.cells) for row in rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.caption}\n\n{body}\n"

    def to_rich(self) -> RichTable:
        """The table for a terminal: `rich.print(table.to_rich())`."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.caption,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column(Text(self.header[0]), no_wrap=True)
        for number, title in enumerate(self.header[1:], start=1):
            rows = (row for section in self.sections for row in section)
            widest = max((len(row.cells[number]) for row in rows), default=0)
            table.add_column(Text(title), justify="right", min_width=widest)
        for section in self.sections:
            for row in section:
                table.add_row(*map(Text, row.cells), style="bold" if row.strong else None)
            table.add_section()
        return table


def _escaped(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _strong(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"**{cell}**" if cell else "" for cell in _escaped(cells))
