"""What a copy was made of, tensor by tensor and part by part."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CopiedTensor:
    """One tensor of the student: its name, the teacher's name for it, how it came, its shape."""

    name: str
    source: str
    how: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PartSize:
    """Parameters and bytes of one part of the model, teacher before and student after."""

    part: str
    parameters_before: int
    bytes_before: int
    parameters_after: int
    bytes_after: int


@dataclass(frozen=True)
class CopyReport:
    """The account of a copy.

    Attributes:
        layers: the teacher's layer that each layer of the student is, from 0.
        tensors: every tensor of the student's state_dict, in its order.
        parts: sizes by part; tensors that are tied count once.
        layer_scores: how much each layer of the teacher changes hidden states, where that decided.
    """

    layers: tuple[int, ...]
    tensors: tuple[CopiedTensor, ...]
    parts: tuple[PartSize, ...]
    layer_scores: tuple[float, ...] | None = None

    def to_markdown(self) -> str:
        """Sizes by part, with their sum, then the tensors, as two Markdown tables."""
        layers = " ".join(map(str, self.layers))
        return f"Teacher layers kept: {layers}\n\n{self._sizes()}\n\n{self._origins()}\n"

    def __str__(self) -> str:
        """The same text as to_markdown, which reads well in a terminal too."""
        return self.to_markdown()

    def _sizes(self) -> str:
        total = PartSize(
            "total",
            sum(part.parameters_before for part in self.parts),
            sum(part.bytes_before for part in self.parts),
            sum(part.parameters_after for part in self.parts),
            sum(part.bytes_after for part in self.parts),
        )
        rows = [
            (
                part.part,
                f"{part.parameters_before:,}",
                f"{part.parameters_after:,}",
                f"{part.bytes_before / 1e6:.1f}",
                f"{part.bytes_after / 1e6:.1f}",
            )
            for part in (*self.parts, total)
        ]
        header = ("part", "teacher parameters", "student parameters", "teacher MB", "student MB")
        return _table(header, rows, numbers_from=1)

    def _origins(self) -> str:
        rows = [
            (f"`{row.name}`", f"`{row.source}`", row.how, " x ".join(map(str, row.shape)))
            for row in self.tensors
        ]
        return _table(("student tensor", "teacher tensor", "how", "shape"), rows, numbers_from=3)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers_from: int) -> str:
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        padded = (
            cell.rjust(width) if i >= numbers_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = tuple(
        "-" * (width - 1) + ":" if i >= numbers_from else "-" * width
        for i, width in enumerate(widths)
    )
    return "\n".join(line(cells) for cells in (header, rule, *rows))
