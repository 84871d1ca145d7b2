"""A thousand flipped bits, over every file of a cache of everything: each is noticed and named."""

import random
import re
import shutil

import pytest
from rich_cache import SHARDS, contents, counted_forwards, read_everything

from mkd_fast.teacher import repair, verify

FILES = ["capture.json", "head.safetensors", "index.safetensors", "manifest.json", *SHARDS]
FLIPS_A_FILE = 112  # 1,008 in all
REPAIRED_A_FILE = 2


@pytest.fixture(scope="module")
def sample_ids(make_batches):
    return [number for batch in make_batches() for number in batch.sample_ids.tolist()]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(tmp_path, rich, causal, make_batches, sample_ids, name):
    """By verify wherever it is, and at open or at read unless only a repair reads that file."""
    folder = shutil.copytree(rich, tmp_path / "cache")
    path, rng = folder / name, random.Random(name)
    whole = path.read_bytes()
    # the header of each file, its end, and anywhere
    positions = [0, 9, len(whole) - 1, *rng.choices(range(len(whole)), k=FLIPS_A_FILE - 3)]
    for number, position in enumerate(positions):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert [damage.file for damage in verify(folder)] == [name], position
        if name != "capture.json":
            with pytest.raises(ValueError, match=re.escape(name)):
                read_everything(folder, sample_ids)
        if number < REPAIRED_A_FILE:
            with counted_forwards(causal) as forwards:
                assert [damage.file for damage in repair(folder, causal, make_batches())] == [name]
            assert len(forwards) == (name in SHARDS)
            assert contents(folder) == contents(rich)
