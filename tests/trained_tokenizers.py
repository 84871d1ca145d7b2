"""A tokenizer of every kind that models come with, trained in milliseconds on nine languages."""

import json
from collections.abc import Callable
from itertools import count

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = """
turn on the lights in the kitchen and turn the heating off in the living room
schalte das Licht in der Küche ein und die Heizung im Wohnzimmer aus
allume la lumière de la cuisine et éteins le chauffage du salon
enciende la luz de la cocina y apaga la calefacción del salón
включи свет на кухне и выключи отопление в гостиной
打开厨房的灯 关掉客厅的暖气
キッチンの電気をつけて リビングの暖房を消して
अलमारी की बत्ती जलाओ और रसोई की बत्ती बुझाओ
شغل الضوء في المطبخ وأطفئ التدفئة في غرفة الجلوس
""".strip().splitlines()
NAMES = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
    "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>",
}  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SPACE = {"replacement": "▁", "prepend_scheme": "always"}


def _trained(model, pre_tokenizer, trainer, decoder, *, normalizer=None, post_processor=None):
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    backend.train_from_iterator(CORPUS * 3, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = post_processor or processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return wrapped(backend)


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers has it, with the names of the special tokens."""
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **NAMES)


def edited(
    full: PreTrainedTokenizerFast, change: Callable[[dict], None]
) -> PreTrainedTokenizerFast:
    """The tokenizer after a change of its JSON."""
    state = json.loads(full.backend_tokenizer.to_str())
    change(state)
    return wrapped(Tokenizer.from_str(json.dumps(state)))


def unigram() -> PreTrainedTokenizerFast:
    """XLM-R, T5."""
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    return _trained(
        models.Unigram(), pre_tokenizers.Metaspace(**SPACE), trainer, decoders.Metaspace(**SPACE),
        normalizer=normalizers.NFKC(),
    )  # fmt: skip


def word_piece() -> PreTrainedTokenizerFast:
    """BERT, multilingual and uncased."""
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    return _trained(
        models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), trainer,
        decoders.WordPiece(), normalizer=normalizers.BertNormalizer(),
        post_processor=processors.BertProcessing(("</s>", 2), ("<s>", 0)),
    )  # fmt: skip


def byte_level_bpe(vocab_size: int = 500) -> PreTrainedTokenizerFast:
    """GPT-2, RoBERTa."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return _trained(
        models.BPE(unk_token="<unk>"), pre_tokenizers.ByteLevel(add_prefix_space=True), trainer,
        decoders.ByteLevel(), post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    )  # fmt: skip


def bpe_that_ignores_merges() -> PreTrainedTokenizerFast:
    """Llama 3: a whole word is taken as it is, also where no merges lead to it."""

    def change(state):
        model = state["model"]
        model["ignore_merges"] = True
        model["merges"] = [
            merge for number, merge in enumerate(model["merges"]) if number < 90 or number % 3
        ]

    return edited(byte_level_bpe(600), change)


def byte_fallback_bpe() -> PreTrainedTokenizerFast:
    """Llama 2, Gemma: the text is one word, unseen characters are bytes, every pair is a merge."""
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, show_progress=False, limit_alphabet=90
    )
    metaspace = pre_tokenizers.Metaspace(**SPACE)
    full = _trained(models.BPE(unk_token="<unk>"), metaspace, trainer, decoders.Metaspace(**SPACE))

    def change(state):
        model = state["model"]
        pieces, new_id = model["vocab"], count(len(model["vocab"]))
        by_age = [piece for piece in pieces if len(piece) > 1 and piece not in SPECIAL]
        model["merges"] = [
            [piece[:at], piece[at:]]
            for piece in sorted(by_age, key=pieces.get)
            for at in range(1, len(piece))
            if piece[:at] in pieces and piece[at:] in pieces
        ]
        pieces.update({f"<0x{byte:02X}>": next(new_id) for byte in range(256)})
        model |= {"byte_fallback": True, "fuse_unk": True}
        start, space = {"type": "Prepend", "prepend": "▁"}, {"pattern": {"String": " "}}
        state["normalizer"] = {
            "type": "Sequence",
            "normalizers": [start, {"type": "Replace", **space, "content": "▁"}],
        }
        state["pre_tokenizer"] = None
        state["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        }

    return edited(full, change)


def bpe_with_suffix() -> PreTrainedTokenizerFast:
    """CLIP: byte-level, and a word's last piece is marked."""
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, show_progress=False, end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    full = _trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        pre_tokenizers.ByteLevel(add_prefix_space=False), trainer, decoders.BPEDecoder("</w>"),
        normalizer=normalizers.Lowercase(),
    )  # fmt: skip

    def change(state):
        pieces = state["model"]["vocab"]
        for byte in pre_tokenizers.ByteLevel.alphabet():  # all of which may end a word
            pieces.setdefault(f"{byte}</w>", len(pieces))

    return edited(full, change)


def bpe_with_prefix() -> PreTrainedTokenizerFast:
    """Pieces within a word are marked, as WordPiece's are."""
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, show_progress=False, continuing_subword_prefix="##"
    )
    return _trained(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##", fuse_unk=True),
        pre_tokenizers.Whitespace(), trainer, decoders.WordPiece(),
    )  # fmt: skip


KINDS = {
    "Unigram": unigram(),
    "WordPiece": word_piece(),
    "BPE": byte_level_bpe(),
    "BPE that ignores merges": bpe_that_ignores_merges(),
    "BPE with bytes": byte_fallback_bpe(),
    "BPE with a suffix": bpe_with_suffix(),
    "BPE with a prefix": bpe_with_prefix(),
}
