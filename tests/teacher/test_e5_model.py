"""The E5S1 reader against float arithmetic, and the encoder that its weights make."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_e5 import HEADS, LAYERS, PIECES, ROWS, SHAPES, WIDTH, e5_bytes

from mkd_fast.teacher.e5_format import dequantise, read_e5_file
from mkd_fast.teacher.e5_model import encoder_of


@pytest.fixture
def e5_path(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(e5_bytes()[0])
    return path


def test_every_weight_is_scale_times_half(e5_path):
    file, exact = read_e5_file(e5_path), e5_bytes()[1]
    assert file.tensors.keys() == exact.keys()
    for name, values in exact.items():
        # A 4-bit integer times an fp16 scale fits float32 without rounding.
        np.testing.assert_array_equal(file.tensors[name], values, err_msg=name)
        assert file.tensors[name].dtype == np.float32


def test_header_and_tokenizer(e5_path):
    file = read_e5_file(e5_path)
    assert file.shape.num_rows == ROWS
    assert file.shape.norm_epsilon == 1e-12
    assert file.tokenizer.pieces == PIECES
    assert file.tokenizer.scores == [float(-x) for x in range(9)]


def test_low_halves_come_before_high_ones():
    block = np.float16(0.5).tobytes() + bytes([0x80 | j for j in range(16)])
    expected = [(j - 8) * 0.5 for j in range(16)] + [0.0] * 16
    assert dequantise(block).tolist() == expected


@settings(deadline=None)
@given(st.data())
def test_a_cut_file_is_always_refused(tmp_path_factory, data):
    whole = e5_bytes()[0]
    length = data.draw(st.integers(4, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.bin"
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"cut\.bin must hold \d+ bytes, got \d+"):
        read_e5_file(path)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_head_is_read_or_refused(tmp_path_factory, data):
    whole = bytearray(e5_bytes()[0])
    head = whole.index(b"l0.q.w")
    for place in data.draw(st.lists(st.integers(4, head), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(whole)
    refusal = "read_e5_file: none"
    try:
        read_e5_file(path)
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith("read_e5_file: ")


def test_another_format(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(e5_bytes(magic=b"GGUF")[0])
    with pytest.raises(ValueError, match="must begin with b'E5S1', got b'GGUF'"):
        read_e5_file(path)


def test_another_version(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(e5_bytes(version=2)[0])
    with pytest.raises(ValueError, match=r"must be of version 1 .*, got version 2"):
        read_e5_file(path)


def test_pieces_that_do_not_end_where_they_should(tmp_path):
    data = bytearray(e5_bytes()[0])
    end_of_offsets = 44 + 28 + 4 * (len(PIECES) + 1)
    data[end_of_offsets - 4] += 1
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"pieces and names in .* must be UTF-8, their offsets rising"
    ):
        read_e5_file(tmp_path / "model.bin")


def test_a_directory_entry_that_contradicts_itself(tmp_path):
    data = e5_bytes()[0]
    entry = struct.pack("<H", 8) + b"emb.word"
    at = data.index(entry) + len(entry)
    (tmp_path / "model.bin").write_bytes(data[:at] + b"\x07" + data[at + 1 :])
    with pytest.raises(ValueError, match=r"'emb\.word' in .* got dtype 7 with 384 elements"):
        read_e5_file(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["emb.word", "emb.pos"])
def test_weights_that_are_not_finite(tmp_path, name):
    data = e5_bytes()[0]
    entry = struct.pack("<H", len(name)) + name.encode()
    at = data.index(entry) + len(entry) + 1 + 4
    (start,) = struct.unpack_from("<Q", data, at)
    damaged = data[:start] + b"\xff" * 4 + data[start + 4 :]
    (tmp_path / "model.bin").write_bytes(damaged)
    with pytest.raises(ValueError, match=f"tensor '{name}' in .* must be finite, got NaN"):
        read_e5_file(tmp_path / "model.bin")


def test_a_tensor_that_is_missing(tmp_path):
    shapes = {name: shape for name, shape in SHAPES.items() if name != "l1.v.b"}
    (tmp_path / "model.bin").write_bytes(e5_bytes(shapes)[0])
    with pytest.raises(ValueError, match=r"tensor 'l1\.v\.b' of 32 elements, got none"):
        encoder_of(read_e5_file(tmp_path / "model.bin"))


def test_a_tensor_of_another_size(tmp_path):
    (tmp_path / "model.bin").write_bytes(e5_bytes({**SHAPES, "emb.ln.b": (31,)})[0])
    with pytest.raises(ValueError, match=r"tensor 'emb\.ln\.b' of 32 elements, got 31"):
        encoder_of(read_e5_file(tmp_path / "model.bin"))


def reference_encoder(exact, ids):
    """The encoder in float64 as the paper has it; ids [S] -> [S, WIDTH]."""
    weights = {name: torch.from_numpy(exact[name]).double().reshape(SHAPES[name]) for name in exact}

    def linear(name, x):
        return x @ weights[f"{name}.w"].T + weights[f"{name}.b"]

    def norm(name, x):
        scale, shift = weights[f"{name}.w"], weights[f"{name}.b"]
        return torch.nn.functional.layer_norm(x, (WIDTH,), scale, shift, 1e-12)

    x = norm(
        "emb.ln", weights["emb.word"][ids] + weights["emb.pos"][: len(ids)] + weights["emb.type"][0]
    )
    for layer in range(LAYERS):
        q, k, v = (
            linear(f"l{layer}.{name}", x).reshape(-1, HEADS, WIDTH // HEADS).transpose(0, 1)
            for name in "qkv"
        )
        shares = (q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        mixed = (shares @ v).transpose(0, 1).reshape(-1, WIDTH)
        x = norm(f"l{layer}.aln", x + linear(f"l{layer}.ao", mixed))
        inner = torch.nn.functional.gelu(linear(f"l{layer}.fi", x))
        x = norm(f"l{layer}.oln", x + linear(f"l{layer}.fo", inner))
    return x


def test_the_encoder_computes_what_the_weights_say(e5_path):
    ids = torch.tensor([0, 4, 1, 7, 11, 2])
    exact = reference_encoder(e5_bytes()[1], ids)
    model = encoder_of(read_e5_file(e5_path)).eval()
    with torch.no_grad():
        single = model(input_ids=ids[None]).last_hidden_state[0]
        double = model.double()(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(double, exact)
    torch.testing.assert_close(single, exact.float())
