"""An ``E5S1`` file of two layers with random weights, and what it holds in float64."""

import json
import struct

import numpy as np

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
