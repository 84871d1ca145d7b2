"""A head whose vocabulary is split over processes: the result of one process, on each of them."""

import pytest
import torch
import torch.distributed as dist
from budget import assert_within_budget
from torch import multiprocessing
from vocab_parallel_job import BAD_LAYOUTS, CASES, SHARDS, misplace, run, work

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


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_columns_that_are_not_the_vocabulary_are_named_everywhere(tmp_path, name):
    multiprocessing.spawn(misplace, (2, tmp_path, name), nprocs=2)
    for rank in range(2):
        assert BAD_LAYOUTS[name][-1] in (tmp_path / f"{rank}.txt").read_text()


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_named_fused_is_refused(group):
    with pytest.raises(RuntimeError, match="a vocabulary split over processes has none"):
        linear_kd_loss(
            torch.zeros(2, 3), torch.zeros(7, 3), torch.zeros(2, 7), impl="fused",
            process_group=group, vocab_start=0, vocab_size=7,
        )  # fmt: skip


def test_columns_are_looked_at_once_for_each_vocabulary(group, monkeypatch):
    calls = []
    exchange = dist.all_gather_object

    def counted(*args, **kwargs):
        calls.append(args)
        exchange(*args, **kwargs)

    monkeypatch.setattr(dist, "all_gather_object", counted)
    for num_columns in (7, 7, 6, 7):
        linear_kd_loss(
            torch.zeros(2, 3), torch.zeros(num_columns, 3), torch.zeros(2, num_columns),
            process_group=group, vocab_start=0, vocab_size=num_columns,
        )  # fmt: skip
    assert len(calls) == 2
