"""Weights come from their files as safetensors itself would read them, or not at all."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mkd_fast.teacher.streamed import reading
from mkd_fast.teacher.streamed.reading import Reader, pages, stored_tensors


def test_every_dtype(tmp_path):
    path = tmp_path / "model.safetensors"
    values = {
        str(dtype): (torch.arange(24) % 2).view(2, 3, 4).to(dtype)
        for dtype in reading._DTYPES.values()
    }
    values |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    save_file(values, path, metadata={"format": "pt"})
    stored = stored_tensors(path)
    assert stored.keys() == values.keys()
    reader = Reader([path])
    for name, value in values.items():
        out = torch.empty_like(value)
        reader.read(stored[name], out)
        assert torch.equal(out.float(), value.float())
        assert stored[name].num_bytes == value.nbytes
    reader.close()


@pytest.mark.parametrize("chunk_bytes", [4, 40, 1 << 20])
def test_conversion_on_the_way(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "model.safetensors"
    value = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    save_file({"w": value}, path)
    reader, stored = Reader([path]), stored_tensors(path)["w"]
    out = torch.empty(2, 7, dtype=torch.bfloat16)
    reader.read(stored.rows(2, 4), out)
    assert torch.equal(out, value[2:4].bfloat16())
    reader.close()


def test_pages_hold_what_is_written():
    for huge in (True, False):
        memory = pages(5000, huge=huge)
        memory[:5000] = 7
        assert memory[:5000].eq(7).all()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_header_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    save_file({"w": torch.zeros(3), "v": torch.zeros(2, 2)}, path)
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 29), min_size=1, max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    refusal = "StreamedTeacher: none"
    try:
        for stored in stored_tensors(path).values():
            assert 0 <= stored.offset <= stored.offset + stored.num_bytes <= len(damaged)
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith("StreamedTeacher: ")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "must be a safetensors file"),
        ({"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}, "must be a safetensors file"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "must be a safetensors file"),
        ({"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}, "must have .* bytes, got"),
    ],
)
def test_headers_that_claim_too_much(tmp_path, entry, reason):
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=reason):
        stored_tensors(path)


@pytest.mark.parametrize("past_page_cache", [False, True])
@pytest.mark.parametrize("padding", range(3))
def test_past_the_page_cache_too(tmp_path, monkeypatch, past_page_cache, padding):
    """Chunks end within blocks, and tensors begin where no dtype wants them to."""
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 5000)
    path = tmp_path / "model.safetensors"
    values = {name: torch.randn(3, 1000) for name in "abc"}
    save_file(values, path)
    if padding:
        whole = path.read_bytes()
        header_bytes = int.from_bytes(whole[:8], "little") + padding
        moved = header_bytes.to_bytes(8, "little") + whole[8 : 8 + header_bytes - padding]
        path.write_bytes(moved + b" " * padding + whole[8 + header_bytes - padding :])
    reader, stored = Reader([path], past_page_cache=past_page_cache), stored_tensors(path)
    for name, value in values.items():
        out = torch.empty_like(value)
        reader.read(stored[name], out)
        assert torch.equal(out, value)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    last = max(stored.values(), key=lambda tensor: tensor.offset)
    with pytest.raises(ValueError, match=r"must have .* bytes, got"):
        reader.read(last, out)
    reader.close()


def test_what_fits_the_page_cache(tmp_path):
    paths = [tmp_path / "small", tmp_path / "huge"]
    for path, size in zip(paths, (1000, 1 << 43), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    assert reading.fit_page_cache(paths[:1])
    assert not reading.fit_page_cache(paths)
