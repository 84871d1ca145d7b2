"""Arguments of kd_loss for tests of its dense kernels, wherever these run."""

from typing import Any

import torch
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# Of every op's cases, which add their own of alpha_beta.
COMMON_DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward_kl": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jeffreys": {"divergence": "jeffreys"},
    "jsd": {"divergence": "jsd", "beta": 0.3},
    "skew_forward_kl": {"divergence": "skew_forward_kl", "beta": 0.1},
    "skew_reverse_kl": {"divergence": "skew_reverse_kl", "beta": 0.1},
    "tvd": {"divergence": "tvd"},
}


def normal(*shape: int, seed: int, dtype: torch.dtype = F32, size: float = 3.0) -> Tensor:
    """Normal numbers; their standard deviation is ``size``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * size).to(dtype)


def case(
    num_rows: int,
    num_columns: int,
    *,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    size: float = 3.0,
    has_labels: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Arguments of kd_loss: random logits of either side, labels with every fifth one ignored."""
    arguments = {
        "student_logits": normal(num_rows, num_columns, seed=0, dtype=dtypes[0], size=size),
        "teacher": normal(num_rows, num_columns, seed=1, dtype=dtypes[1], size=size),
        "reduction": "none",
    }
    if has_labels:
        limit = fields.get("vocab_size", num_columns)
        labels = torch.randint(limit, (num_rows,), generator=torch.Generator().manual_seed(2))
        labels[2::5] = fields.get("ignore_index", -100)
        arguments |= {"labels": labels, "ce_weight": 0.5}
    return arguments | fields
