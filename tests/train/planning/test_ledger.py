import torch

from mkd_fast.train.planning.ledger import Ledger

MIB = 1 << 20


def test_what_was_alive_at_once_by_what_it_was_held_for():
    ledger = Ledger()
    with ledger:
        ledger.moment = "made"
        kept = torch.empty(256)
        ledger.label([kept], "kept")
        ledger.open()
        ledger.moment = "one"
        gone = torch.empty(1024)
        del gone
        ledger.moment = "two"
        torch.empty(512)
    assert (ledger.peak.moment, ledger.peak.parts) == ("one", {"kept": 1024, "one": 4096})


def test_a_view_takes_no_memory():
    ledger = Ledger()
    with ledger:
        whole = torch.empty(256)
        ledger.open()
        _views = whole[:4], whole.view(16, 16).T
        _other = torch.empty(4)
    assert ledger.peak.num_bytes == 1024 + 16


def test_large_blocks_are_mapped_and_small_ones_lie_in_the_heap():
    ledger = Ledger()
    with ledger:
        _before = torch.empty(64 * MIB, dtype=torch.uint8)  # which stays, so is neither
        ledger.open()
        large = torch.empty(32 * MIB, dtype=torch.uint8)
        del large
        _small = [torch.empty(MIB, dtype=torch.uint8) for _ in range(3)]
    assert (ledger.peak.mapped, ledger.peak.in_heap) == (32 * MIB, 3 * MIB)
    assert ledger.peak.num_bytes == (64 + 32) * MIB
