"""Samples that share a row are read as if each were alone, in every family where that is claimed.

Truth is each sample alone in float64, and the error allowed that of the same model in float32.
"""

import re

import numpy as np
import pytest
import student_families
import torch
from budget import assert_within_budget
from student_families import NUM_LAYERS, VOCAB_SIZE
from transformers import AttentionInterface, BertConfig, BertModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mkd_fast.checks.wording import is_ours
from mkd_fast.data.batches import Batch, collate, labelled_only
from mkd_fast.data.tokens import LabelledTokens, flat_rows
from mkd_fast.losses import linear_kd_loss
from mkd_fast.train.forward import inputs_of, padded, prove_packing
from mkd_fast.train.heads import into_head

# longer than the windows of the families (4 and 8), and more than one row
LENGTHS = (3, 13, 1, 9, 5, 2)
ROW_TOKENS = 16
PACKED = {
    "bert": "masked",
    "roberta": "masked",
    "xlm-r": "token",
    "distilbert": "masked",
    "modernbert": "masked",
    "gpt-2": "causal",
    "gpt-neox": "causal",
    "llama": "causal",
    "mistral": "causal",
    "qwen2": "causal",
    "qwen3": "causal",
    "gemma3": "causal",
    "smollm3": "causal",
}
ATTENTIONS = [(family, "sdpa") for family in PACKED] + [
    (family, "eager") for family in ("bert", "roberta", "modernbert", "gpt-2", "llama", "gemma3")
]


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, VOCAB_SIZE, length).astype(np.int32) for length in LENGTHS]
    labels = np.concatenate([np.roll(row, -1).astype(np.int64) for row in rows])
    labels[::3] = -100
    return LabelledTokens(*flat_rows(rows), labels, pad_id=0)


def model_of(family, head, attention="sdpa"):
    model = student_families.make(family, head)
    model.set_attn_implementation(attention)
    return model


def states_of(model, batch):
    """Hidden states at real tokens, of the embeddings and behind each layer, and logits."""
    with torch.no_grad():
        out = model(**inputs_of(model, batch), output_hidden_states=True)
    real = batch.attention_mask.bool()
    return [padded(states, batch)[real] for states in (*out.hidden_states, out.logits)]


def states_alone(model, text):
    """The same of each sample by itself, without padding."""
    of_each = [states_of(model, collate(text, [row])) for row in range(len(text))]
    return [torch.cat(states) for states in zip(*of_each, strict=True)]


@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_packed_states_are_those_of_each_sample_alone(family, attention, text):
    model = model_of(family, PACKED[family], attention)
    packed = collate(text, range(len(text)), row_tokens=ROW_TOKENS)
    assert packed.packed.input_ids.shape == (3, ROW_TOKENS)
    found, plain = states_of(model, packed), states_alone(model, text)
    exact = states_alone(model.double(), text)
    assert len(exact) == NUM_LAYERS + 2
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert_within_budget(ours, truth, theirs)
    prove_packing(model.float(), text, ROW_TOKENS)


@pytest.mark.parametrize("family", ["bert", "gpt-2", "llama"])
def test_loss_and_gradients_are_those_of_padded_rows(family, text):
    model = model_of(family, PACKED[family]).double()

    def loss_and_gradients(row_tokens):
        batch = labelled_only(collate(text, range(len(LENGTHS)), row_tokens=row_tokens))
        head, (states,) = into_head(model, batch, [3])
        teacher = torch.randn(
            len(batch.labels), VOCAB_SIZE, generator=torch.Generator().manual_seed(0)
        )
        out = linear_kd_loss(head.hidden, head.weight, teacher.double(), batch.labels, head.bias)
        (out.loss + states.square().mean()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return [out.loss.detach(), *gradients]

    for ours, wanted in zip(loss_and_gradients(ROW_TOKENS), loss_and_gradients(0), strict=True):
        scale = wanted.abs().max() + 1
        assert (ours - wanted).abs().max() <= 64 * torch.finfo(torch.float64).eps * scale


def test_the_ends_of_samples_are_what_varlen_attention_needs(text, monkeypatch):
    """A varlen attention in plain torch, which knows nothing but the ends, gives the same."""
    seen = []

    def varlen(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, **rest):
        assert mask is None
        assert rest["max_length_q"] == max(LENGTHS)
        seen.append(cu_seq_lens_q.tolist())
        q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        k, v = (states.repeat_interleave(groups, 1) for states in (k, v))
        parts = []
        for begin, end in zip(seen[-1][:-1], seen[-1][1:], strict=True):
            one = [states[begin:end].transpose(0, 1) for states in (q, k, v)]
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(
                    *one, is_causal=module.is_causal, scale=scaling
                ).transpose(0, 1)
            )
        return torch.cat(parts).unflatten(0, (query.shape[0], -1)), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "plain_varlen", varlen)
    packed = collate(text, range(len(text)), row_tokens=ROW_TOKENS)
    for family in ("bert", "llama"):
        model = model_of(family, PACKED[family])
        theirs, exact = states_alone(model, text), states_alone(model.double(), text)
        model.float().set_attn_implementation("plain_varlen")
        found = states_of(model, packed)
        for ours, of_plain, truth in zip(found, theirs, exact, strict=True):
            assert_within_budget(ours, truth, of_plain)
    assert "plain_varlen" not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping  # so: no mask at all
    assert all(ends[0] == 0 and ends[-1] == 3 * ROW_TOKENS for ends in seen)


@pytest.mark.parametrize("family", ["deberta-v2", "deberta-v3"])
def test_a_family_that_cannot_is_refused(family, text):
    with pytest.raises(ValueError, match="samples in a row of DebertaV2For") as caught:
        prove_packing(model_of(family, "masked"), text, ROW_TOKENS)
    assert is_ours(caught.value)
    assert "Set packing = 0 for this model." in str(caught.value)


def test_a_model_that_reads_across_samples_is_refused(text):
    """Whatever the reason: here a mask that is not heeded."""
    model = BertModel(BertConfig(**student_families.SHAPE)).eval()
    for layer in model.encoder.layer:
        forward = layer.forward
        layer.forward = lambda states, *_, forward=forward, **__: forward(states)
    words = "read as if each were alone, got 'states that differ by"
    with pytest.raises(ValueError, match=re.escape(words)):
        prove_packing(model, text, ROW_TOKENS)


def test_a_row_holds_the_longest_sample(text):
    model = model_of("bert", "masked")
    with pytest.raises(ValueError, match="packing must be at least the longest sample's 13 tokens"):
        prove_packing(model, text, 12)
    prove_packing(model, text, 0)


def test_a_batch_that_is_not_packed_is_as_ever(text):
    batch = collate(text, [0, 1])
    assert isinstance(batch, Batch)
    model = model_of("bert", "masked")
    assert set(inputs_of(model, batch)) == {"input_ids", "attention_mask"}
    states = torch.randn(2, 13, 4)
    assert padded(states, batch) is states
