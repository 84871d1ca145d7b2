"""Operations of a step, against torch's own counter and by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mkd_fast.data.batches import Batch
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.train.flops import Flops, peak_flops
from mkd_fast.train.loop import Step
from mkd_fast.train.shares import share_of
from mkd_fast.train.tasks import LabelTask


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            num_labels=3,
            attn_implementation="eager",
        )
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager")
    )


class OfOneBatch(LabelTask):
    """Whatever rows are asked for."""

    def __init__(self, batch):
        object.__setattr__(self, "batch", batch)

    def read(self, rows):
        return Step(self.batch)


def operations(flops, batch):
    return flops.of_share(share_of(batch.sample_ids.tolist(), OfOneBatch(batch)))


def batch_of(num_samples, length, labels):
    ids = torch.randint(0, 50, (num_samples, length))
    return Batch(ids, torch.ones_like(ids), labels, torch.arange(num_samples))


def counted(model, batch, **others):
    """Operations of forward and backward as torch counts them; attention as plain products."""
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **others)
        out.logits.float().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [llama, gpt2], ids=lambda make: make.__name__)
def test_a_language_model_as_torch_counts_it(make):
    batch = batch_of(3, 7, torch.zeros(3, 7, dtype=torch.int64))
    model = make()
    assert operations(Flops.of(model), batch) == counted(model, batch)


def test_a_classifier_but_for_its_pooler():
    """Which sees one token of each sample, and is counted for all of them."""
    batch, model = batch_of(3, 7, torch.zeros(3, dtype=torch.int64)), bert()
    pooler = 6 * 16 * 16
    assert operations(Flops.of(model), batch) == counted(model, batch) + pooler * (3 * 7 - 3)


def test_what_is_frozen_has_no_gradient_of_weights():
    batch, model = batch_of(3, 7, torch.zeros(3, 7, dtype=torch.int64)), llama()
    before = operations(Flops.of(model), batch)
    weight = model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    assert before - operations(Flops.of(model), batch) == 2 * weight.numel() * 3 * 7
    assert operations(Flops.of(model), batch) == counted(model, batch)


def test_padding_and_tokens_without_a_label_are_no_work():
    labels = torch.tensor([[1, NO_LABEL, 2], [NO_LABEL, 3, NO_LABEL]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = Batch(torch.zeros_like(mask), mask, labels, torch.arange(2))
    flops = Flops(body=10, trained_body=5, head=7, trained_head=0, attention=2)
    assert operations(flops, batch) == 5 * (40 + 10) + 3 * 28 + 12 * 2 * (9 + 4)


def test_a_peak_is_of_this_device():
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e14
