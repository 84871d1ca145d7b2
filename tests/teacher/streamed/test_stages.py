"""Stages take turns in two arenas, and memory is given back where they differ in size."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mkd_fast.teacher.streamed import stages
from mkd_fast.teacher.streamed.reading import Reader, stored_tensors
from mkd_fast.teacher.streamed.stages import Stage, Weight, in_turn, largest_pair_bytes


@pytest.fixture
def arenas(monkeypatch):
    """The sizes of the arenas that are alive, at any time."""
    alive = weakref.WeakSet()

    def pages(num_bytes, *, huge):
        arena = torch.empty(num_bytes, dtype=torch.uint8)
        alive.add(arena)
        return arena

    monkeypatch.setattr(stages, "pages", pages)
    return alive


@pytest.mark.parametrize("sizes", [[16], [16] * 5, [16, 16, 160, 16, 16, 32], [16, 0, 0, 16]])
def test_two_stages_at_a_time(tmp_path, arenas, sizes):
    path = tmp_path / "model.safetensors"
    values = [torch.randn(size) for size in sizes]
    save_file({str(number): value for number, value in enumerate(values)}, path)
    owners, stored = [nn.Module() for _ in sizes], stored_tensors(path)
    row = [
        Stage([Weight(owner, "w", nn.Parameter(value.to("meta")), stored[str(number)])])
        for number, (owner, value) in enumerate(zip(owners, values, strict=True))
    ]
    reader, seen = Reader([path]), []
    for number in in_turn(enumerate(row), reader, torch.device("cpu")):
        gc.collect()
        assert sum(map(len, arenas)) <= largest_pair_bytes(row)
        assert torch.equal(owners[number].w, values[number])
        assert [n for n, owner in enumerate(owners) if hasattr(owner, "w") and owner.w.is_cpu] == [
            number
        ]
        seen.append(number)
    assert seen == list(range(len(sizes)))
    reader.close()


def test_a_read_that_fails_ends_the_turn(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    stage = Stage(
        [Weight(nn.Module(), "w", nn.Parameter(torch.zeros(100)), stored_tensors(path)["w"])]
    )
    path.write_bytes(b"")
    reader = Reader([path])
    with pytest.raises(ValueError, match=r"must have .* bytes, got"):
        next(in_turn([("only", stage)], reader, torch.device("cpu")))
    reader.close()
