"""A head whose vocabulary is split over processes: the result of one process, on each of them."""

import pytest
import torch
import torch.distributed as dist
from budget import assert_within_budget
from torch import multiprocessing
from vocab_parallel_job import CASES, SHARDS, run, work

from mkd_fast import linear_kd_loss


@pytest.fixture(scope="module", params=SHARDS)
def results(request, tmp_path_factory):
    """What each process computed, by case and dtype."""
    world_size = request.param
    folder = tmp_path_factory.mktemp("shards")
    multiprocessing.spawn(work, (world_size, folder), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.mark.parametrize("case", CASES)
def test_every_process_has_the_result_of_one(results, case):
    exact, plain = run(case, torch.float64), run(case, torch.float32)
    for dtype in (torch.float32, torch.float64):
        of_ranks = [result[case, dtype] for result in results]
        *shared, weights, biases = zip(*of_ranks, strict=True)
        whole = [*(copies[0] for copies in shared), torch.cat(weights), torch.cat(biases)]
        assert all(torch.equal(copies[0], copy) for copies in shared for copy in copies)
        for index, values in enumerate(zip(whole, exact, plain, strict=True)):
            if dtype == torch.float64:
                torch.testing.assert_close(*values[:2])
            else:
                assert_within_budget(*values, str(index))


def test_named_fused_is_refused(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="a vocabulary split over processes has none"):
            linear_kd_loss(
                torch.zeros(2, 3), torch.zeros(7, 3), torch.zeros(2, 7), impl="fused",
                process_group=dist.group.WORLD, vocab_start=0, vocab_size=7,
            )  # fmt: skip
    finally:
        dist.destroy_process_group()
