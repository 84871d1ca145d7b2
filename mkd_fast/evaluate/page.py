"""A report as a list of blocks, written once as Markdown and once as a page that needs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mkd_fast.evaluate.tables import Table


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Prose:
    """A paragraph, or with ``items`` a list; plain text."""

    text: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure: the stem of its file, what it shows, and itself as an SVG element."""

    stem: str
    what: str
    svg: str


Block = Heading | Prose | Picture | Table

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; color: #555; padding-bottom: 0.4rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #1b1b1b; } tbody + tbody td { border-top: 2px solid #bbb; }
.wide { overflow-x: auto; margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
"""


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are files beside it."""
    return "\n".join([f"# {title}\n", *map(_markdown, blocks)])


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page with its pictures and style in it."""
    body = "\n".join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}\n"
        case Prose(text, items):
            return "\n".join([text, *(f"- {item}" for item in items)]).lstrip("\n") + "\n"
        case Picture(stem, what, _):
            return f"![{what}]({stem}.svg)\n"
        case Table():
            return block.to_markdown()


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Prose(text, items):
            paragraph = f"<p>{escape(text)}</p>" if text else ""
            entries = "".join(f"<li>{escape(item)}</li>" for item in items)
            return paragraph + (f"<ul>{entries}</ul>" if items else "")
        case Picture(_, what, svg):
            return f'<figure class="wide" role="img" aria-label="{escape(what)}">{svg}</figure>'
        case Table():
            return _html_table(block)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in table.header)
    sections = []
    for section in table.sections:
        rows = []
        for row in section:
            tag = "th" if row.strong else "td"
            rows.append(f"<tr>{''.join(f'<{tag}>{escape(c)}</{tag}>' for c in row.cells)}</tr>")
        sections.append(f"<tbody>{''.join(rows)}</tbody>")
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>{''.join(sections)}</table></div>"
    )
