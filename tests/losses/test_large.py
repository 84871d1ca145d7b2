"""More than 2^31 logits: every address is 64 bits wide."""

import mmap
from pathlib import Path

import pytest
import torch
from dense_kd_input import BF16, normal

from mkd_fast import SampledTeacher, kd_loss

NUM_ROWS, NUM_COLUMNS = 70_000, 32_000  # 2.24e9 logits
LAST = slice(-3, None)  # rows behind the 2^31st logit
NEEDED_BYTES = 7 << 30  # the gradient's 4.5 GB and room to breathe; the logits are pages of zeros


def available_bytes() -> int:
    """What the system can still hand out; 0 where it does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def zeros(num_rows: int, num_columns: int) -> torch.Tensor:
    """Of bfloat16, in pages that take no memory until they are written to."""
    pages = mmap.mmap(-1, num_rows * num_columns * BF16.itemsize)
    return torch.frombuffer(pages, dtype=BF16).view(num_rows, num_columns)


@pytest.fixture
def _one_thread():
    """So that no row of a small call is split, which changes its rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.skipif(available_bytes() < NEEDED_BYTES, reason="less than 7 GiB of memory are free")
def test_the_last_of_two_billion_logits_are_those_of_a_small_call():
    mask = torch.zeros(NUM_ROWS, dtype=torch.bool)
    mask[LAST] = True
    student = zeros(NUM_ROWS, NUM_COLUMNS)
    student[LAST] = normal(3, NUM_COLUMNS, seed=0, dtype=BF16)
    assert student[:-3].numel() > 2**31
    teacher = normal(1, NUM_COLUMNS, seed=1, dtype=BF16).expand(NUM_ROWS, NUM_COLUMNS)
    results = []
    for rows in (slice(None), LAST):
        logits = student[rows].requires_grad_()
        loss = kd_loss(logits, teacher[rows], mask=mask[rows], impl="fused").loss
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append((loss.detach(), gradient[LAST].clone()))
    assert all(torch.equal(large, small) for large, small in zip(*results, strict=True))


def test_the_last_of_two_billion_logits_are_read_for_a_sampled_teacher():
    """Without a gradient, which has the dense loss's addresses, only these rows take memory."""
    mask = torch.zeros(NUM_ROWS, dtype=torch.bool)
    mask[LAST] = True
    student = zeros(NUM_ROWS, NUM_COLUMNS)
    student[LAST] = normal(3, NUM_COLUMNS, seed=0, dtype=BF16)
    ids, weights = torch.tensor([5, NUM_COLUMNS - 1]), torch.tensor([0.25, 0.75])
    large, small = (
        kd_loss(
            student[rows],
            SampledTeacher(
                ids.expand(len(student[rows]), 2), weights.expand(len(student[rows]), 2)
            ),
            mask=mask[rows],
            impl="fused",
        ).loss
        for rows in (slice(None), LAST)
    )
    assert torch.equal(large, small)
