"""Cases of the hidden-state term, each named after the reason it exists, for every kernel of it."""

from typing import Any

import torch
from dense_kd_input import BF16, F16, F32, case, normal
from torch import Tensor

from mkd_fast import Int8Hidden

HIDDEN_MASK = torch.arange(12).remainder(3).view(4, 3).bool()  # the first position never counts
MASK = torch.tensor([True, False, True, True, False, True])


def int8(*shape: int, seed: int) -> Int8Hidden:
    """States in eight bits, all 255 values among them, with a scale a row."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    return Int8Hidden(values, normal(*shape[:-1], seed=seed, size=0.02).abs() + 0.01)


def hidden_states(
    *shapes: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)
) -> dict[str, Any]:
    """Arguments for a matched layer of each shape; an int8 teacher has scales."""
    student, teacher = dtypes
    return {
        "hidden_weight": 0.3,
        "student_hidden": [normal(*s, seed=3 + i, dtype=student) for i, s in enumerate(shapes)],
        "teacher_hidden": [
            int8(*s, seed=5 + i) if teacher == torch.int8 else normal(*s, seed=5 + i, dtype=teacher)
            for i, s in enumerate(shapes)
        ],
    }


def with_hidden(
    *shape: int, dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32), **fields: Any
) -> dict[str, Any]:
    """Two matched layers of hidden states beside small logits."""
    return case(shape[0], 7, **fields) | hidden_states(shape, shape, dtypes=dtypes)


def changed(arguments: dict[str, Any], side: str, row: int, value: float) -> dict[str, Any]:
    """Arguments in which a row of one side's first layer is a multiple of itself."""
    arguments[side][0][row] *= value
    return arguments


def between(states: Tensor) -> Tensor:
    """The same states in memory that holds NaN between rows and between positions."""
    wide = torch.full((len(states), states.shape[1] + 1, states.shape[2] + 5), torch.nan)
    view = wide.to(states.dtype)[:, 1:, 5:]
    return view.copy_(states)


def spread() -> dict[str, Any]:
    arguments = with_hidden(4, 3, 33)
    for side in ("student_hidden", "teacher_hidden"):
        arguments[side] = [between(states) for states in arguments[side]]
    return arguments


def same_direction(factor: float) -> dict[str, Any]:
    arguments = with_hidden(6, 70, hidden_distance="cosine")
    arguments["teacher_hidden"] = [factor * states for states in arguments["student_hidden"]]
    return arguments


DISTANCES = ("mse", "cosine")

CASES: dict[str, dict[str, Any]] = {
    **{
        name.format(distance): with_hidden(*shape, hidden_distance=distance, **fields)
        for distance in DISTANCES
        for name, shape, fields in (
            ("hidden {}", (6, 33), {}),
            ("hidden {} of fewer columns than a register", (6, 3), {}),
            ("hidden {} over several blocks", (6, 2500), {"reduction": "mean"}),
            ("hidden {} of mixed dtypes", (6, 64), {"dtypes": (BF16, F16)}),
            ("hidden {} of a wider teacher", (6, 64), {"dtypes": (F16, F32)}),
            ("hidden {} of positions", (4, 3, 33), {}),
            ("hidden {} of masked positions", (4, 3, 33), {"hidden_mask": HIDDEN_MASK}),
            ("hidden {} of int8 states", (6, 33), {"dtypes": (F32, torch.int8)}),
            ("hidden {} of int8 states, bf16", (4, 3, 70), {"dtypes": (BF16, torch.int8)}),
            ("hidden {} of int8 states, f16", (6, 5), {"dtypes": (F16, torch.int8)}),
            ("hidden {}, masked tokens", (6, 33), {"mask": MASK}),
        )
    },
    "hidden states without weight": with_hidden(6, 33) | {"hidden_weight": 0.0},
    "hidden states with memory between them": spread(),
    "hidden states of the same direction": same_direction(3.0),
    "hidden states of opposite directions": same_direction(-0.5),
    "hidden cosine, no student": changed(
        with_hidden(6, 33, hidden_distance="cosine"), "student_hidden", 1, 0.0
    ),
    "hidden cosine, no teacher": changed(
        with_hidden(6, 33, hidden_distance="cosine"), "teacher_hidden", 1, 0.0
    ),
    "hidden cosine, a student too short": changed(
        with_hidden(6, 33, hidden_distance="cosine"), "student_hidden", 1, 1e-10
    ),
}

# Gradients of more than 4 MB, whose rows begin at any address or at multiples of 64 bytes.
LARGE_CASES: dict[str, dict[str, Any]] = {
    "hidden states, gradient past the caches": with_hidden(1100, 1024),
    "hidden states, gradient past the caches, unaligned": with_hidden(1100, 1031),
    "hidden cosine, gradient past the caches": with_hidden(
        2200, 1024, dtypes=(BF16, F32), hidden_distance="cosine"
    ),
}
