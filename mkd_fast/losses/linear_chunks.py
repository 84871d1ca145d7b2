"""How ``linear_kd_loss`` cuts tokens into chunks, and the work that is in them.

A chunk holds its rows' logits of either side (a dense teacher's are there already) and their
gradient: ``row_bytes`` a row. It needs many rows, since the weight and the float32 sum of its
gradient go through memory once a chunk: 8 to 20 bytes an entry, for 6 c operations with c rows.
"""

import itertools
import math

import torch

from mkd_fast.losses.rows import RowTeacher
from mkd_fast.losses.targets import TeacherHead

# N tokens, V vocabulary, D width

# Memory is plentiful where matrix products outrun it most.
_DEFAULT_CPU_BYTES = 512 << 20
_DEFAULT_DEVICE_BYTES = 2 << 30


def row_bytes(
    teacher: RowTeacher, num_columns: int, dtype: torch.dtype, *, needs_grad: bool
) -> int:
    """Bytes of a chunk's logits and gradient, a row; ``dtype`` is that of the student's logits."""
    per_logit = dtype.itemsize * (2 if needs_grad else 1)
    if isinstance(teacher, TeacherHead):
        per_logit += teacher.weight.dtype.itemsize
    return num_columns * per_logit


def bounds(
    num_tokens: int, bytes_of_row: int, max_chunk_bytes: int | None, device: torch.device
) -> list[tuple[int, int]]:
    """The first and last row of each chunk: as few as fit the budget, of equal length."""
    if max_chunk_bytes is None:
        max_chunk_bytes = _DEFAULT_CPU_BYTES if device.type == "cpu" else _DEFAULT_DEVICE_BYTES
    most_rows = max(1, max_chunk_bytes // max(bytes_of_row, 1))
    num_chunks = max(1, math.ceil(num_tokens / most_rows))
    begins = [num_tokens * i // num_chunks for i in range(num_chunks + 1)]
    return list(itertools.pairwise(begins))


def flops(num_tokens: int, width: int, num_columns: int, *, teacher_width: int = 0) -> int:
    """Operations of the matrix products of loss and gradients: logits, and a product a gradient."""
    return 2 * num_tokens * num_columns * (3 * width + teacher_width)
