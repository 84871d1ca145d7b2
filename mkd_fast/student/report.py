"""What a copy was made of, tensor by tensor and part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

EVERY_TENSOR = "## Every tensor"


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
    """The account of a copy; printed, its summary.

    Attributes:
        layers: the teacher's layer that each layer of the student is, from 0.
        layer_list: the name of the list of layers, in both.
        tensors: every tensor of the student's state_dict, in its order.
        parts: sizes by part; tensors that are tied count once.
        layer_scores: how much each layer of the teacher changes hidden states, where that decided.
    """

    layers: tuple[int, ...]
    layer_list: str
    tensors: tuple[CopiedTensor, ...]
    parts: tuple[PartSize, ...]
    layer_scores: tuple[float, ...] | None = None

    def __str__(self) -> str:
        """Sizes by part, scores of layers if any, and groups of tensors, as Markdown tables."""
        layers = " ".join(map(str, self.layers))
        tables = (self._sizes(), *self._scores(), self._groups())
        return f"Teacher layers kept: {layers}\n\n" + "\n\n".join(tables) + "\n"

    def to_markdown(self) -> str:
        """The summary, and then every tensor."""
        rows = [
            (f"`{row.name}`", f"`{row.source}`", row.how, " x ".join(map(str, row.shape)))
            for row in self.tensors
        ]
        header = ("student tensor", "teacher tensor", "how", "shape")
        return f"{self}\n{EVERY_TENSOR}\n\n{_table(header, rows, numbers_from=3)}\n"

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

    def _scores(self) -> list[str]:
        if self.layer_scores is None:
            return []
        rows = [
            (str(layer), f"{score:.4f}", "yes" if layer in self.layers else "")
            for layer, score in enumerate(self.layer_scores)
        ]
        return [_table(("teacher layer", "change of hidden states", "kept"), rows, numbers_from=0)]

    def _groups(self) -> str:
        """Tensors of all layers, or of one module beside them, that came in the same way."""
        groups: dict[tuple[str, str, str], list[CopiedTensor]] = {}
        for row in self.tensors:
            how = "tied" if row.how.startswith("tied to ") else row.how
            groups.setdefault((*self._group(row.name), how), []).append(row)
        rows = [
            (*key, f"{len(group)}", "" if key[-1] == "tied" else f"{_parameters(group):,}")
            for key, group in groups.items()
        ]
        header = ("of the student", "of the teacher", "how", "tensors", "parameters")
        return _table(header, rows, numbers_from=3)

    def _group(self, name: str) -> tuple[str, str]:
        """The group of a tensor, and where it is from: the child of what holds the layers too."""
        if name.startswith(f"{self.layer_list}."):
            return f"`{self.layer_list}.*`", f"layers {' '.join(map(str, self.layers))}"
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        group = next(
            prefix for prefix in prefixes if not f"{self.layer_list}.".startswith(f"{prefix}.")
        )
        return f"`{group}`", "the same"


def _parameters(tensors: Sequence[CopiedTensor]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)


def summary_of(markdown: str) -> str:
    """The summary at the beginning of a report that was kept as Markdown."""
    return markdown.partition(f"\n{EVERY_TENSOR}\n")[0]


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
