"""Arguments of the loss ops themselves, below ``kd_loss``."""

from typing import Any

import torch
from dense_kd_input import normal

OPTIONS = {
    "divergence": "forward_kl", "alpha": 0.3, "beta": 0.5,
    "temperature": 1.0, "teacher_temperature": 1.0, "logit_scale": 1.0, "teacher_logit_scale": 1.0,
    "softcap": 0.0, "teacher_softcap": 0.0,
    "kd_scale": 1.0, "kd_weight": 1.0, "ce_weight": 0.5, "hidden_weight": 0.1,
    "hidden_distance": "mse", "vocab_size": 60, "ignore_index": -100, "reduction": "mean",
    "needs_grad_student": True, "needs_grad_hidden": True,
}  # fmt: skip


def op_arguments(**changes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of ``dense_kd``: 4 tokens, 60 columns, one matched layer of 3 positions."""
    labels = torch.tensor([0, -100, 2, 3])
    hidden, teacher_hidden = normal(4, 3, 8, seed=3), normal(4, 3, 8, seed=4)
    positional = (
        normal(4, 60, seed=0), normal(4, 60, seed=1), labels, None, None,
        [hidden], [teacher_hidden], [], None,
    )  # fmt: skip
    return positional, OPTIONS | changes
