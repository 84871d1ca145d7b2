"""What can be kept of a teacher, a kind a module: how it is made, stored, and handed to a loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.kinds.dense import DTYPES, Dense
from mkd_fast.teacher.cache.kinds.id_sets import MOST_IDS
from mkd_fast.teacher.cache.kinds.rows import (
    Arrays,
    LogitsKind,
    LogitsRows,
    LogitsTarget,
    Origin,
    Read,
    Stored,
)
from mkd_fast.teacher.cache.kinds.sampled import Sampled, uniform_numbers
from mkd_fast.teacher.cache.kinds.states import LAST, STATE_DTYPES, States, layer_name
from mkd_fast.teacher.cache.kinds.topk import TopK

if TYPE_CHECKING:
    from mkd_fast.teacher.cache.format import TensorSpec
    from mkd_fast.teacher.cache.manifest import Plan

__all__ = [
    "DTYPES",
    "HIDDEN",
    "LAST",
    "STATE_DTYPES",
    "Arrays",
    "Dense",
    "LogitsKind",
    "LogitsRows",
    "LogitsTarget",
    "Origin",
    "Read",
    "Sampled",
    "States",
    "Stored",
    "TopK",
    "are_of_plan",
    "layer_name",
    "logits_kinds",
    "matched_states",
    "parse_keep",
    "uniform_numbers",
]

HIDDEN = "hidden"
_DTYPE_NAMES = {stored: name for name, (stored, _) in DTYPES.items()}


def parse_keep(keep: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds that ``keep`` names.

    Raises:
        ValueError: none, one twice, or one that there is not.
    """
    kinds = (keep,) if isinstance(keep, str) else tuple(keep)
    for kind in kinds:
        if not isinstance(kind, str):
            raise checks.unknown_keep(keep)
        _split(kind)
    if len(set(kinds)) < max(len(kinds), 1):
        raise checks.unknown_keep(keep)
    return kinds


def _split(kind: str) -> tuple[str, int]:
    """The kind's name, and its K or N."""
    name, _, count = kind.partition(":")
    is_whole = count.isascii() and count.isdecimal() and not count.startswith("0")
    if name == "topk" and is_whole:
        return name, int(count)
    if name == "sampled" and is_whole and int(count) <= MOST_IDS:
        return name, int(count)
    if kind in ("logits", HIDDEN):
        return kind, 0
    raise checks.unknown_keep(kind)


def logits_kinds(plan: "Plan", num_columns: int) -> tuple[LogitsKind, ...]:
    """What a plan keeps that is made of logits.

    Args:
        plan: of the capture.
        num_columns: real columns of the logits.

    Raises:
        ValueError: more columns are to be kept than there are.
    """
    kinds: list[LogitsKind] = []
    for kind in plan.keep:
        name, count = _split(kind)
        if name == "topk":
            if count > num_columns:
                raise checks.kept_more_than_columns(count, num_columns)
            kinds.append(TopK(count, num_columns, plan.temperatures))
        elif name == "sampled":
            drawn_at = plan.temperatures[0], plan.proposal_exponent
            kinds.append(Sampled(count, num_columns, *drawn_at))
        elif name == "logits":
            kinds.append(Dense(num_columns, plan.logits_dtype))
    return tuple(kinds)


def are_of_plan(tensors: Sequence["TensorSpec"], plan: "Plan", num_columns: int) -> bool:
    """Whether these are the tensors that a capture of the plan stores.

    Args:
        tensors: as a manifest lists them.
        plan: of the capture.
        num_columns: real columns of the logits.

    Raises:
        ValueError, KeyError, IndexError: the plan is none that a capture can have.
    """
    found = {spec.name: spec for spec in tensors}
    states = list(matched_states(plan).values())
    if HIDDEN in plan.keep:
        dtype = plan.last_hidden_dtype or _DTYPE_NAMES[found[LAST].dtype]
        states.insert(0, States(LAST, dtype))
    fixed = {spec for of in states for spec in of.specs(found[of.name].width)}
    kinds = logits_kinds(plan, num_columns)
    wanted = (
        fixed | {spec for kind in kinds for spec in kind.specs(axis)}
        for axis in ("sample", "token")
    )
    return len(found) == len(tensors) and set(tensors) in wanted


def matched_states(plan: "Plan") -> dict[int, States]:
    """The layers that a plan keeps, by their number."""
    return {number: States(layer_name(number), plan.hidden_dtype) for number in plan.hidden_layers}
