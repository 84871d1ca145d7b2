"""A trimmed tokenizer splits text over its tokens as the full one does, whatever its model."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from mkd_fast.student import check_same_splits, trim_tokenizer, used_token_ids

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
WORDS = sorted({word for line in CORPUS for word in line.split()})
NAMES = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
    "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>",
}  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained(model, pre_tokenizer, trainer, decoder, post_processor=None):
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    backend.train_from_iterator(CORPUS * 3, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = post_processor or processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **NAMES)


def unigram():
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    space = {"replacement": "▁", "prepend_scheme": "always"}
    return trained(
        models.Unigram(), pre_tokenizers.Metaspace(**space), trainer, decoders.Metaspace(**space)
    )


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    return trained(
        models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), trainer,
        decoders.WordPiece(), processors.BertProcessing(("</s>", 2), ("<s>", 0)),
    )  # fmt: skip


def byte_level_bpe():
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return trained(
        models.BPE(unk_token="<unk>"), pre_tokenizers.ByteLevel(add_prefix_space=True), trainer,
        decoders.ByteLevel(), processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    )  # fmt: skip


FULL = {"Unigram": unigram(), "WordPiece": word_piece(), "BPE": byte_level_bpe()}
CHARACTERS = sorted(set("".join(WORDS)))
TEXT = st.lists(
    st.one_of(st.sampled_from(WORDS), st.text(CHARACTERS, min_size=1, max_size=6)), max_size=5
).map(" ".join)


@pytest.fixture(params=FULL)
def full(request):
    return FULL[request.param]


def ids_of(tokenizer, texts):
    return [np.array(tokenizer(text)["input_ids"]) for text in texts]


@pytest.mark.parametrize("kind", FULL)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(TEXT, st.text(max_size=8)), min_size=1, max_size=4))
def test_text_over_kept_tokens_splits_the_same_way(kind, texts):
    full = FULL[kind]
    if kind == "WordPiece":  # may learn to split a word that was unknown as a whole
        texts = [text for text in texts if full.unk_token_id not in full(text)["input_ids"]]
    trimmed, token_map = trim_tokenizer(full, used_token_ids(ids_of(full, texts), full))
    check_same_splits(full, trimmed, texts)
    for old, new in zip(ids_of(full, texts), ids_of(trimmed, texts), strict=True):
        assert token_map.old_to_new[torch.from_numpy(old).long()].tolist() == new.tolist()


def test_the_trimmed_tokenizer_is_small_and_complete(full):
    texts = CORPUS[:2]
    before = full.backend_tokenizer.to_str()
    asked = used_token_ids(ids_of(full, texts), full)
    trimmed, token_map = trim_tokenizer(full, asked)
    assert full.backend_tokenizer.to_str() == before
    assert set(asked) <= set(token_map.keep_token_ids)
    assert list(token_map.keep_token_ids) == sorted(token_map.keep_token_ids)
    assert len(trimmed) == len(token_map.keep_token_ids) < len(full)
    old_tokens = full.convert_ids_to_tokens(list(token_map.keep_token_ids))
    assert trimmed.convert_ids_to_tokens(list(range(len(trimmed)))) == old_tokens
    assert trimmed.special_tokens_map == full.special_tokens_map
    assert trimmed.model_max_length == 64
    assert trimmed("turn on", "the lights")["input_ids"] == [
        int(token_map.old_to_new[old]) for old in full("turn on", "the lights")["input_ids"]
    ]


def test_keeping_every_token_changes_nothing(full):
    trimmed, token_map = trim_tokenizer(full, range(len(full)))
    assert token_map.keep_token_ids == tuple(range(len(full)))
    assert trimmed.get_vocab() == full.get_vocab()
    check_same_splits(full, trimmed, [*CORPUS, "", "unseen ☃"])


def test_unseen_words_fall_back_to_pieces(full):
    trimmed, _ = trim_tokenizer(full, used_token_ids(ids_of(full, ["turn the lights"]), full))
    ids = trimmed("hitting the little gerunls")["input_ids"]
    if full is FULL["WordPiece"]:  # its characters have two forms, and both must have been learnt
        assert trimmed.unk_token_id not in trimmed("gths the tturn")["input_ids"]
    else:
        assert trimmed.unk_token_id not in ids
        assert trimmed.decode(ids, skip_special_tokens=True).strip() == "hitting the little gerunls"


def test_byte_level_bpe_can_still_write_anything():
    full = FULL["BPE"]
    trimmed, _ = trim_tokenizer(full, used_token_ids([], full))
    assert trimmed.decode(trimmed("☃ 漢字")["input_ids"], skip_special_tokens=True) == " ☃ 漢字"


def test_added_tokens_past_the_model_are_kept_if_used():
    full = byte_level_bpe()
    full.add_tokens(["<room>", "<device>"])
    texts = ["turn on <device>"]
    trimmed, _ = trim_tokenizer(full, used_token_ids(ids_of(full, texts), full))
    check_same_splits(full, trimmed, texts)
    assert "<device>" in trimmed.get_vocab()
    assert "<room>" not in trimmed.get_vocab()


def test_a_model_class_with_fixed_ids_becomes_the_generic_one(tmp_path):
    backend = json.loads(FULL["BPE"].backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in backend["merges"]]
    full = RobertaTokenizer(vocab=backend["vocab"], merges=merges)
    trimmed, _ = trim_tokenizer(full, used_token_ids(ids_of(full, CORPUS[:3]), full))
    trimmed.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [*CORPUS[:3], "turn <mask> on"]
    check_same_splits(full, loaded, texts)
    assert loaded.backend_tokenizer.to_str() == trimmed.backend_tokenizer.to_str()
    assert loaded.mask_token_id == trimmed.mask_token_id


@pytest.mark.parametrize(
    "ids", [[[5, 9], [9, 7]], [torch.tensor([[5, 9], [9, 7]])], [np.array([5, 9, 7], np.int32)]]
)
def test_used_ids_are_those_of_the_text_and_the_special_ones(ids):
    assert used_token_ids(ids, FULL["Unigram"]) == [0, 1, 2, 3, 4, 5, 7, 9]


def test_a_split_that_changed_is_named():
    backend = Tokenizer(
        models.WordPiece({"<unk>": 0, "ab": 1, "a": 2, "##bx": 3}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    full = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    trimmed, _ = trim_tokenizer(full, [0, 2, 3])
    message = "must split 'a abx' into ['a', '<unk>'], got ['a', 'a', '##bx']. Add this text"
    with pytest.raises(ValueError, match=f"^check_same_splits: .*{re.escape(message)}"):
        check_same_splits(full, trimmed, ["a", "a abx", "abx"])


def refuse(message, tokenizer, keep, error=ValueError):
    with pytest.raises(error, match=re.escape(message)):
        trim_tokenizer(tokenizer, keep)


def test_what_cannot_be_trimmed_is_refused(full):
    without = [token_id for token_id in range(len(full)) if token_id not in {1, 4}]
    refuse("must contain the special tokens, got none of <mask>, <pad>.", full, without)
    refuse(f"distinct and lie in [0, {len(full)})", full, [len(full)])
    refuse("trim_tokenizer: tokenizer must be a fast one", object(), [0], TypeError)


def test_models_that_split_otherwise_are_refused():
    rule = "trim_tokenizer: the tokenizer's model must be Unigram, WordPiece or BPE without affixes"
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    refuse(f"{rule}, got WordLevel.", PreTrainedTokenizerFast(tokenizer_object=words), [0])
    suffixed = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=suffixed)
    refuse(f"{rule}, got BPE with '</w>'.", tokenizer, [0])


def test_added_tokens_that_would_change_their_ids_are_refused():
    """The added token sits between the ids of the model, where a rebuilt one cannot."""
    backend = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1, "b": 5}, unk_token="<unk>"))
    backend.add_tokens(["<x>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    refuse("trim_tokenizer: token '<x>' must get the id 2, got", tokenizer, [0, 1, 3, 5])
