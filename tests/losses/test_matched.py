"""Matched layers as kd_loss takes them: how they are flattened, and every error's words."""

import pytest
import torch
from dense_kd_input import normal
from hidden_cases import int8

from mkd_fast import Int8Hidden, LossSpec, kd_loss
from mkd_fast.losses import matched
from mkd_fast.losses.tokens import Tokens

S, T = normal(2, 3, 7, seed=0), normal(2, 3, 7, seed=1)
H, G = normal(2, 3, 4, seed=2), normal(2, 3, 4, seed=3)
WIDE = normal(2, 3, 5, seed=4)
CPU = torch.device("cpu")


def flatten(student, teacher, *, mask=None, projection=None, leading=(2,)):
    tokens = Tokens("kd_loss", torch.Size(leading), CPU)
    return matched.flatten(student, teacher, mask, projection, tokens)


@pytest.mark.parametrize(("leading", "shape"), [((2,), (2, 3, 4)), ((2, 3), (6, 1, 4))])
def test_what_is_not_leading_is_a_position(leading, shape):
    layers = flatten(H, G, leading=leading)
    assert [states.shape for states in (*layers.student, *layers.teacher)] == [shape] * 2
    assert torch.equal(layers.student[0].reshape(H.shape), H)


def test_nothing_is_no_layer():
    layers = flatten(None, None)
    assert (layers.student, layers.teacher, layers.mask) == ((), (), None)


def test_int8_states_keep_their_bytes_and_a_scale_a_position():
    teacher = int8(2, 3, 4, seed=0)
    layers = flatten(H, teacher)
    assert layers.teacher[0].dtype == torch.int8
    assert layers.teacher_scale[0].shape == (2, 3)
    (values,) = layers.teacher_values()
    assert torch.equal(values, teacher.values.float() * teacher.scale[:, :, None])


def test_what_does_not_count_is_cleared():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    cleared = flatten([H * torch.nan, H], [G, G], mask=mask).cleared(torch.tensor([True, False]))
    counts = mask & torch.tensor([[True], [False]])
    for states in (*cleared.student, *cleared.teacher):
        assert not states[~counts].any()
    assert torch.equal(cleared.student[1][counts], H[counts])


def test_projections_of_some_layers():
    weight = normal(4, 5, seed=5).requires_grad_()
    layers = flatten([H, H], [WIDE, G], projection=[weight, None])
    assert torch.equal(layers.student[0], H @ weight)
    assert layers.student[0].requires_grad
    assert torch.equal(layers.student[1], H)


BYTES = int8(2, 3, 4, seed=0)
BAD_INPUT = {
    "one side": (
        ValueError,
        "kd_loss: student_hidden and teacher_hidden go together, one tensor per matched layer, "
        "got 1 and 0 of them. Pass both, or neither and hidden_weight=0.",
        {"student_hidden": H},
    ),
    "not as many": (
        ValueError,
        "go together, one tensor per matched layer, got 2 and 1 of them.",
        {"student_hidden": [H, H], "teacher_hidden": [G]},
    ),
    "weight without layers": (ValueError, "got 0 of them", {"spec": LossSpec(hidden_weight=1.0)}),
    "mask without layers": (
        ValueError,
        "got hidden_mask without hidden states.",
        {"hidden_mask": torch.ones(2, 3, 1).bool()},
    ),
    "student kind": (
        TypeError,
        "student_hidden[1] must be a floating-point tensor with a last dimension, got torch.int64",
        {"student_hidden": [H, H.long()], "teacher_hidden": [G, G]},
    ),
    "teacher kind": (
        TypeError,
        "teacher_hidden[0] must be a floating-point tensor with a last dimension, got list.",
        {"student_hidden": [H], "teacher_hidden": [[1.0]]},
    ),
    "teacher gradient": (
        ValueError,
        "teacher_hidden[0] must not require a gradient",
        {"student_hidden": H, "teacher_hidden": G.clone().requires_grad_()},
    ),
    "scale gradient": (
        ValueError,
        "teacher_hidden[0].scale must not require a gradient",
        {
            "student_hidden": H,
            "teacher_hidden": Int8Hidden(BYTES.values, BYTES.scale.clone().requires_grad_()),
        },
    ),
    "widths": (
        ValueError,
        "kd_loss: student_hidden[0] must have its teacher's shape, (2, 3, 5), got (2, 3, 4). "
        "Project the student's states first where only the widths differ.",
        {"student_hidden": H, "teacher_hidden": WIDE},
    ),
    "leading shape": (
        ValueError,
        "kd_loss: student_hidden[0] must be [..., D] or [..., S, D] with the student's leading "
        "shape, (2, 3), got (6, 4). Reshape it, or index the tokens it belongs to.",
        {"student_hidden": H.view(6, 4), "teacher_hidden": G.view(6, 4)},
    ),
    "no width": (
        ValueError,
        "with the student's leading shape, (2, 3), got (2, 3).",
        {"student_hidden": H[..., 0], "teacher_hidden": G[..., 0]},
    ),
    "too many dimensions": (
        ValueError,
        "with the student's leading shape, (2, 3), got (2, 3, 2, 1, 2).",
        {"student_hidden": H.view(2, 3, 2, 1, 2), "teacher_hidden": G.view(2, 3, 2, 1, 2)},
    ),
    "positions": (
        ValueError,
        "kd_loss: student_hidden[1] must have as many positions as the first layer, 1, got 2. "
        "Match layers of the same sequences.",
        {
            "student_hidden": [H, H.view(2, 3, 2, 2)],
            "teacher_hidden": [G, G.view(2, 3, 2, 2)],
        },
    ),
    "int8 dtype": (
        TypeError,
        "teacher_hidden[0].values must be int8, got torch.int16.",
        {"student_hidden": H, "teacher_hidden": Int8Hidden(BYTES.values.short(), BYTES.scale)},
    ),
    "int8 scale": (
        ValueError,
        "teacher_hidden[0].scale must have the student's leading shape, (2, 3), got (2,).",
        {"student_hidden": H, "teacher_hidden": Int8Hidden(BYTES.values, BYTES.scale[:, 0])},
    ),
    "int8 in some layers": (
        ValueError,
        "kd_loss: teacher_hidden must be Int8Hidden in every matched layer or in none, got 1 of 2. "
        "Pass dequantised() of those.",
        {"student_hidden": [H, H], "teacher_hidden": [G, BYTES]},
    ),
    "number of projections": (
        ValueError,
        "kd_loss: projections must be one matrix [D_s, D_t], or None, for each matched layer, "
        "got 1 for 2 layers. Pass None for layers whose widths agree.",
        {
            "student_hidden": [H, H],
            "teacher_hidden": [G, G],
            "hidden_projection": normal(4, 4, seed=5),
        },
    ),
    "shape of a projection": (
        ValueError,
        "kd_loss: the projection of layer 0 must be a matrix of 4 rows, its student's width, "
        "got (5, 4). Transpose it if it is the weight of a torch.nn.Linear.",
        {
            "student_hidden": H,
            "teacher_hidden": WIDE,
            "hidden_projection": normal(5, 4, seed=5),
        },
    ),
    "mask dtype": (
        TypeError,
        "hidden_mask must be bool, got torch.float32.",
        {"student_hidden": H, "teacher_hidden": G, "hidden_mask": torch.ones(2, 3)},
    ),
    "mask shape": (
        ValueError,
        "hidden_mask must have the student's leading shape, (2, 3, 1), got (2, 1).",
        {"student_hidden": H, "teacher_hidden": G, "hidden_mask": torch.ones(2, 1).bool()},
    ),
    "student's device": (
        ValueError,
        "student_hidden[0] must be on the student's device, cpu, got meta.",
        {"student_hidden": H.to("meta"), "teacher_hidden": G},
    ),
    "scale's device": (
        ValueError,
        "teacher_hidden[0].scale must be on the student's device, cpu, got meta.",
        {"student_hidden": H, "teacher_hidden": Int8Hidden(BYTES.values, BYTES.scale.to("meta"))},
    ),
    "mask's device": (
        ValueError,
        "hidden_mask must be on the student's device, cpu, got meta.",
        {
            "student_hidden": H,
            "teacher_hidden": G,
            "hidden_mask": torch.ones(2, 3, dtype=torch.bool, device="meta"),
        },
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    kind, words, arguments = BAD_INPUT[case]
    with pytest.raises(kind) as error:
        kd_loss(S, T, **arguments)
    assert words in str(error.value)
