"""A plan for people."""

from collections.abc import Sequence

from mkd_fast.train.planning.advice import Advice
from mkd_fast.train.planning.stages import StagePeak


def shown(peaks: Sequence[StagePeak], memory_bytes: int | None) -> str:
    """A table: a row for each part, a column for each stage."""
    parts = dict.fromkeys(part for peak in peaks for part, size in peak.parts.items() if size)
    rows = [["MiB", *(peak.stage for peak in peaks)], ["at its", *(peak.moment for peak in peaks)]]
    rows += [[part, *(_mib(peak.parts.get(part, 0)) for peak in peaks)] for part in parts]
    rows.append(["peak", *(_mib(peak.num_bytes) for peak in peaks)])
    if memory_bytes is not None:
        fits = ("fits" if peak.num_bytes <= memory_bytes else "DOES NOT FIT" for peak in peaks)
        rows.append([f"in {_mib(memory_bytes)}", *fits])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def told(advice: Advice, memory_bytes: int) -> str:
    """What was tried for a stage, and the line to paste."""
    stage, before = advice.before.stage, advice.before.num_bytes
    lines = [f"{stage}: {_mib(before - memory_bytes)} MiB too much"]
    lines += [
        f"  {_mib(added.peak.num_bytes):>8} MiB  {added.change}  ({added.change.cost})"
        for added in advice.added
    ]
    settings, total = " ".join(map(str, advice.chosen)), _mib(advice.peak.num_bytes)
    if advice.peak.num_bytes <= memory_bytes:
        lines.append(f"  it fits, in {total} MiB, with: {settings}")
    else:
        nearest = f"nearest, {total} MiB, with: {settings or 'none'}"
        lines.append(f"  no setting is known to make it fit; {nearest}")
    return "\n".join(lines)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f}"
