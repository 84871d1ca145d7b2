"""How batches become blocks, and what a block costs."""

from types import SimpleNamespace

import pytest

from mkd_fast.teacher.streamed.budget import Budget
from mkd_fast.teacher.streamed.cost import Cost


def budget(**changes):
    fields = {
        "max_memory_bytes": 1000,
        "weight_bytes": 500,
        "row_bytes": 2,
        "max_rows": 50,
        "state_bytes": 3,
        "work_bytes": 10,
        "block_tokens": None,
        "can_spill": False,
    }
    return Budget(**{**fields, **changes})


def sizes(of, batches):
    blocks = of.blocks(SimpleNamespace(num_tokens=size) for size in batches)
    return [[batch.num_tokens for batch in block] for block in blocks]


@pytest.mark.parametrize(
    ("batches", "blocks"),
    [
        ([], []),
        ([10] * 12, [[10] * 10, [10] * 2]),  # 500 + 10 * 10 + 100 * 3 + 50 * 2 = 1000
        ([10, 30, 10, 20, 10], [[10, 30], [10, 20, 10]]),  # 500 + 30 * 10 + 40 * 5 = 1000
        ([33, 1], [[33, 1]]),  # 500 + 33 * 10 + 34 * 5 = 1000
        ([33, 2], [[33], [2]]),
    ],
)
def test_as_many_as_the_memory_holds(batches, blocks):
    assert sizes(budget(), batches) == blocks


def test_rows_of_the_embedding_count_once():
    assert sizes(budget(max_rows=10), [10] * 20) == [
        [10] * 12,
        [10] * 8,
    ]  # 620 + 120 * 3


def test_a_batch_that_does_not_fit():
    message = r"two stages of weights, 500 bytes, and a block of 34 tokens, 1,010 bytes.*got 1,000"
    with pytest.raises(ValueError, match=message):
        sizes(budget(), [34])
    assert sizes(budget(can_spill=True), [34]) == [[34]]


def test_blocks_of_a_size_of_ones_own():
    assert sizes(budget(block_tokens=25), [10] * 5) == [[10, 10], [10, 10], [10]]
    with pytest.raises(ValueError, match="a block of 110 tokens, 1,030 bytes"):
        sizes(budget(block_tokens=120), [10] * 20)
    spilling = budget(block_tokens=100, can_spill=True)
    assert sizes(spilling, [10] * 20) == [[10] * 10] * 2
    block = [SimpleNamespace(num_tokens=10)] * 10
    assert spilling.bytes_for_states(block) == 1000 - 500 - 50 * 2 - 10 * 10


def test_the_model_of_cost():
    cost = Cost(block_bytes=2_000_000, flops_per_token=2_000_000)  # a million weights of 2 bytes
    assert cost.bytes_per_token(100) == 20_000
    balanced = cost.balanced_block_tokens(bytes_per_second=2e9, flops_per_second=200e9)
    assert balanced == pytest.approx(100)
    assert cost.seconds_per_token(50, 2e9, 200e9) == pytest.approx(2e-5)  # reading
    assert cost.seconds_per_token(200, 2e9, 200e9) == pytest.approx(1e-5)  # computing
