"""Attention is computed as a recipe wants it, and afterwards as before."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from mkd_fast.data.batches import Batch
from mkd_fast.data.packing import Packed
from mkd_fast.train.attention import attention
from mkd_fast.train.optim_config import OptimConfig

CPU = torch.device("cpu")
EAGER = OptimConfig(attention="eager")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, intermediate_size=16, **size)
    ).eval()


def batch_of(num_tokens: int) -> Batch:
    ids = torch.arange(1, 2 * num_tokens + 1).view(2, num_tokens) % 50
    return Batch(ids, torch.ones_like(ids), torch.arange(2), torch.zeros(2, dtype=torch.int64))


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    return model(input_ids=ids, attention_mask=mask).logits


def test_eager_says_the_same_and_is_taken_back(model, monkeypatch):
    exact = logits(model.double())
    model.float()
    plain = logits(model)
    with attention(model, EAGER, CPU) as choose:
        choose(batch_of(300))
        assert model.config._attn_implementation == "eager"
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", None)
        eager = logits(model)
        monkeypatch.undo()
    assert model.config._attn_implementation == "sdpa"
    eps = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (eager - exact).abs().max() <= 2 * (plain - exact).abs().max() + eps


def test_it_is_taken_back_after_an_error(model):
    def failing() -> None:
        with attention(model, EAGER, CPU) as choose:
            choose(batch_of(6))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("wanted", "precision", "num_tokens", "expected"),
    [
        ("auto", "bfloat16", 6, "eager"),
        ("auto", "bfloat16", 128, "eager"),
        ("auto", "bfloat16", 129, "sdpa"),
        ("auto", "float32", 6, "sdpa"),
        ("model", "bfloat16", 6, "sdpa"),
    ],
)
def test_auto_is_plain_products_of_short_rows_in_bfloat16(
    model, wanted, precision, num_tokens, expected
):
    config = OptimConfig(attention=wanted, precision=precision)
    with attention(model, config, CPU) as choose:
        choose(batch_of(400))
        choose(batch_of(num_tokens))
        assert model.config._attn_implementation == expected
    assert model.config._attn_implementation == "sdpa"


def test_auto_leaves_what_is_not_of_torch(model):
    model.set_attn_implementation("eager")
    with attention(model, OptimConfig(precision="bfloat16"), CPU) as choose:
        choose(batch_of(400))
        assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")


def test_packed_rows_are_as_long_as_they_are_packed(model):
    packed = Packed(*(torch.zeros(1, 300, dtype=torch.int64) for _ in range(4)))
    with attention(model, OptimConfig(precision="bfloat16"), CPU) as choose:
        choose(replace(batch_of(6), packed=packed))
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wanted", ["model", "auto"])
def test_any_model_computes_it_as_it_was_loaded(wanted):
    config = OptimConfig(attention=wanted, precision="bfloat16")
    with attention(nn.Linear(2, 2), config, CPU) as choose:
        choose(batch_of(6))


def test_a_model_without_the_choice_is_told():
    expected = r"fit: a model must be one of transformers for attention = 'eager', got Linear\."
    with pytest.raises(TypeError, match=expected), attention(nn.Linear(2, 2), EAGER, CPU):
        pass
