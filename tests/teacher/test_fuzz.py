"""Whoever can write a cache can make its reader raise, and nothing else.

Files are changed and their checksums made right again: no crash, no code run, no error but ours,
and no allocation that a false count asks for. ``fuzz_cache.py`` goes on where this ends.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich_cache import SHARDS, contents
from tampering import memory_limit, nothing_executed, sealed, tamper, use

from mkd_fast.teacher.cache.manifest import MANIFEST, PLAN, read_manifest

HUGE = [2**31, 2**40, 2**62, 2**63, 2**64, 2**70]
VALUES = st.sampled_from(
    [0, 1, -1, 3, 255, 1e308, *HUGE, None, True, "", "x", [], {}, [1, 2, 3], [2**60] * 4, "hidden"]
)
KINDS = st.sampled_from(["topk:61", "topk:99999999999", "sampled:255", "logits", "int8", "sample"])
QUICKLY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def cache(rich, tmp_path_factory):
    """A copy to change, which has been used once so that everything is imported."""
    folder = tmp_path_factory.mktemp("fuzz") / "cache"
    shutil.copytree(rich, folder)
    use(folder)
    return folder


def restore(folder: Path, whole: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in whole.items():
        (folder / name).write_bytes(data)


def use_safely(folder: Path) -> None:
    with memory_limit(), nothing_executed():
        use(folder)


@QUICKLY
@given(data=st.data())
def test_any_fields_of_a_manifest_or_plan(cache, rich, data):
    whole = contents(rich)
    restore(cache, whole)
    name = data.draw(st.sampled_from([MANIFEST, PLAN]))
    content = json.loads(whole[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
        change = data.draw(st.sampled_from(["other", "more", "removed", "twice"]))
        if change == "removed":
            del place[key]
        elif change == "twice" and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif change == "more" and isinstance(place[key], int):
            place[key] += data.draw(st.sampled_from([-1, 1, *HUGE]))
        else:
            place[key] = data.draw(VALUES | KINDS)
        if not content:
            break
    (cache / name).write_bytes(sealed(content))
    if name == PLAN:  # which is believed where there is no manifest
        (cache / MANIFEST).unlink()
    use_safely(cache)


SPLICES = st.binary(max_size=12) | st.sampled_from(
    [(number % 2**64).to_bytes(8, "little") for number in (0, 1, 5, -1, *HUGE)]
)


@QUICKLY
@given(data=st.data())
def test_any_bytes_in_a_shard_the_index_or_the_head(cache, rich, data):
    whole = contents(rich)
    restore(cache, whole)
    name = data.draw(st.sampled_from(["index.safetensors", "head.safetensors", *SHARDS]))
    content, index_end = bytearray(whole[name]), 0
    if name in SHARDS:
        manifest = read_manifest(rich / MANIFEST)
        index_end = manifest.layout(manifest.shards[SHARDS.index(name)]).index_end
    for _ in range(data.draw(st.integers(1, 3))):
        # headers and indexes are small, and most of a file is neither
        end = data.draw(st.sampled_from([9, 600, len(content)]))
        begin = data.draw(st.integers(0, min(end, len(content)) - 1))
        splice = data.draw(SPLICES)
        removed = data.draw(st.sampled_from([len(splice), len(splice), 0, 1, 40]))
        content[begin : begin + removed] = splice
    tamper(cache, name, bytes(content), index_end)
    use_safely(cache)


@QUICKLY
@given(content=st.binary(max_size=300), sized=st.booleans())
def test_any_bytes_for_a_head(cache, rich, content, sized):
    """With a length before them, as safetensors has it, and without."""
    restore(cache, contents(rich))
    tamper(
        cache, "head.safetensors", (len(content).to_bytes(8, "little") if sized else b"") + content
    )
    use_safely(cache)
