"""The masked-token head: its loss, what of the model is trained, and the folder it leaves."""

import pytest
import torch
from budget import assert_within_budget
from tiny_tokenizer import unigram as tiny_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from mkd_fast.benchmarks import masked_head
from mkd_fast.benchmarks.masked_head import MaskedLoss, Training

WORDS = ("lamp", "door", "is", "on", "off", "the")
DOCUMENTS = {
    "en": [f"the lamp is {'on' if n % 2 else 'off'} the door is off" for n in range(40)],
    "de": [f"lamp {'on' if n % 3 else 'off'} door door door" for n in range(40)],
}
TRAINING = Training(num_steps=30, batch_size=8, max_length=8, num_layers=1, learning_rate=1e-2)
EXTRA_ROWS = 3  # of the embeddings, past the tokenizer's last id


@pytest.fixture
def encoder(tmp_path):
    """A model folder of a random encoder of two layers."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(WORDS, has_mask=True)
    config = BertConfig(
        vocab_size=len(tokenizer) + EXTRA_ROWS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.2,
        pad_token_id=1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def text(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return masked_head.tokenised(DOCUMENTS, tokenizer, TRAINING.max_length)


@pytest.fixture
def mask(encoder):
    return masked_head.masking(AutoTokenizer.from_pretrained(encoder), seed=0)


def test_every_tenth_document_is_held_out_whole(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    documents = {"en": ["off off off off"] + ["on"] * 9 + ["off"] + ["on"] * 4}
    text = masked_head.tokenised(documents, tokenizer, max_length=4)
    on, off = tokenizer.convert_tokens_to_ids(["▁on", "▁off"])
    assert text.train == [[0, on, 2]] * 13
    assert text.held_out == {"en": [[0, off, off, 2], [0, off, off, 2], [0, off, 2]]}


def test_unigram():
    log_unigram = masked_head.unigram([[0, 2], [2, 2]], vocab_size=4)
    exact = torch.tensor([1.0, 0.01, 3.0, 0.01], dtype=torch.float64)
    torch.testing.assert_close(log_unigram, (exact / 4.02).log().float())


def test_the_loss_is_that_of_the_whole_model(encoder, text, mask):
    model = masked_head.with_new_head(str(encoder), text.train)
    batch = mask([{"input_ids": ids} for ids in text.train])
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(**batch).loss
    loss = MaskedLoss(model)(batch)
    assert loss.dtype == torch.float32
    assert_within_budget(loss, model.double()(**batch).loss, plain)


def test_before_training_the_loss_is_near_the_unigram(encoder, text, mask):
    model = masked_head.with_new_head(str(encoder), text.train)
    log_unigram = masked_head.unigram(text.train, model.config.vocab_size)
    model_nats, unigram_nats = masked_head.evaluate(
        MaskedLoss(model), text.train, mask, log_unigram
    )
    assert model_nats == pytest.approx(unigram_nats, rel=0.2)


def test_make_trains_head_and_last_layer(encoder, text, mask, tmp_path):
    told = []
    masked_head.make(tmp_path / "head", str(encoder), DOCUMENTS, TRAINING, told.append)
    model, info = BertForMaskedLM.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    AutoTokenizer.from_pretrained(tmp_path / "head")
    before = BertModel.from_pretrained(encoder, add_pooling_layer=False)
    for name, weight in before.named_parameters():
        is_as_before = torch.equal(model.bert.get_parameter(name), weight)
        assert is_as_before == ("layer.1." not in name), name
    log_unigram = masked_head.unigram(text.train, model.config.vocab_size)
    losses = masked_head.evaluate(MaskedLoss(model.eval()), text.held_out["en"], mask, log_unigram)
    assert losses[0] < losses[1]
    assert any("nats per masked token" in line for line in told)
    assert "| en |" in (tmp_path / "head" / "README.md").read_text()
