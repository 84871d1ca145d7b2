"""``hidden_loss``: the hidden-state term by itself."""

from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses import matched, rows
from mkd_fast.losses.loss import Impl, of_rows
from mkd_fast.losses.spec import HiddenDistance, LossSpec, Reduction
from mkd_fast.losses.tokens import Tokens


def hidden_loss(
    student_hidden: matched.Hidden,
    teacher_hidden: matched.TeacherHidden,
    *,
    distance: HiddenDistance = "mse",
    mask: Tensor | None = None,
    hidden_mask: Tensor | None = None,
    num_tokens: Tensor | float | None = None,
    projection: matched.Projection | None = None,
    reduction: Reduction = "mean",
    impl: Impl | None = None,
) -> Tensor:
    """Distance of a student's hidden states from its teacher's, averaged over matched layers.

    ``"mse"`` is the mean of (h_s W - h_t)^2 over the width, ``"cosine"`` is 1 - cos(h_s W, h_t)
    with lengths of at least 1e-8. It is what ``kd_loss`` adds as its hidden term, from the same
    op, without logits.

        loss = hidden_loss(student.hidden_states[1:], teacher.hidden_states[2::2])

    What a token is follows from ``hidden_mask``: without it every vector is one; with it a token
    is a sequence ``[S, D]``, whose value is the mean over its positions that count.

    | given | tokens | ``mask`` |
    | --- | --- | --- |
    | ``[..., D]`` | ``[...]`` | ``[...]`` |
    | ``[..., S, D]`` and ``hidden_mask`` ``[..., S]`` | ``[...]`` | ``[...]`` |

    So for padded batches ``[B, S, D]``, ``mask=attention_mask.bool()`` gives the mean over all
    positions, and ``hidden_mask=attention_mask.bool()`` the mean over sentences of their means.

    Args:
        student_hidden: one tensor, or one a matched layer, float32, bfloat16, float16 (or
            float64: eager), all with the same dimensions but the last. Receives a gradient.
        teacher_hidden: the same shapes, or Int8Hidden in every layer; never receives a gradient.
        distance: ``"mse"`` or ``"cosine"``.
        mask: bool, True for tokens that count; all of them if None.
        hidden_mask: bool, the positions of a token that count.
        num_tokens: denominator of "mean" instead of the tokens that count.
        projection: W_l ``[D_s, D_t]``, one a matched layer (None where the widths agree). It is
            the caller's, and receives a gradient.
        reduction: ``"mean"`` over tokens that count, ``"sum"``, or ``"none"``.
        impl: None takes the fused path where it exists for this device and input, else eager;
            "fused" and "eager" never fall back.

    Returns:
        float32 (float64 for float64 states) ``[]``, or one value a token with "none". Where
        nothing counts, value and gradients are 0.

    Raises:
        ValueError, TypeError: arguments that do not go together; the message says which and how.
        RuntimeError: ``impl="fused"`` where there is no such kernel; the message says why.
    """
    layers = matched.as_layers(student_hidden)
    if not layers:
        raise checks.hidden_missing("hidden_loss", "hidden", "0 of them")
    checks.floating_point("hidden_loss", "student_hidden[0]", layers[0])
    leading_shape = layers[0].shape[:-1]
    if hidden_mask is not None:
        if hidden_mask.shape != leading_shape:
            raise checks.leading_shape_mismatch(
                "hidden_loss", "hidden_mask", leading_shape, hidden_mask.shape
            )
        leading_shape = leading_shape[:-1]
    no_logits = layers[0].new_empty((*leading_shape, 0))
    spec = LossSpec(kd_weight=0.0, hidden_weight=1.0, hidden_distance=distance, reduction=reduction)
    flat = rows.flatten(
        no_logits,
        no_logits,
        None,
        layers,
        teacher_hidden,
        tokens=Tokens("hidden_loss", leading_shape, no_logits.device),
        num_columns=0,
        spec=spec,
        mask=mask,
        vocab_size=None,
        num_tokens=num_tokens,
        hidden_mask=hidden_mask,
        hidden_projection=projection,
    )
    return of_rows(flat, spec, impl).loss
