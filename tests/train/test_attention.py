"""Attention is computed as a recipe wants it, and afterwards as before."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from mkd_fast.train.attention import attention


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, intermediate_size=16, **size)
    ).eval()


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    return model(input_ids=ids, attention_mask=mask).logits


def test_eager_says_the_same_and_is_taken_back(model, monkeypatch):
    exact = logits(model.double())
    model.float()
    plain = logits(model)
    with attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", None)
        eager = logits(model)
        monkeypatch.undo()
    assert model.config._attn_implementation == "sdpa"
    eps = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (eager - exact).abs().max() <= 2 * (plain - exact).abs().max() + eps


def test_it_is_taken_back_after_an_error(model):
    with pytest.raises(ZeroDivisionError), attention(model, "eager"):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"


def test_any_model_computes_it_as_it_was_loaded():
    with attention(nn.Linear(2, 2), "model"):
        pass


def test_a_model_without_the_choice_is_told():
    expected = r"fit: a model must be one of transformers for attention = 'eager', got Linear\."
    with pytest.raises(TypeError, match=expected), attention(nn.Linear(2, 2), "eager"):
        pass
