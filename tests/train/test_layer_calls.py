"""Layers that are compiled, or computed twice, say what they said, and are as before afterwards."""

import copy
import warnings
from functools import partial

import pytest
import torch
from budget import assert_within_budget
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from mkd_fast.checks.wording import is_ours
from mkd_fast.train.layer_calls import layer_calls

# Dynamo asks every input of a graph for its gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

SIZE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
LENGTHS = (6, 7, 9)


def bert():
    """With dropout, of both kinds."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=3, **SIZE))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, use_cache=True, **SIZE))


def trained(model, *, states=True, **switches):
    """Losses and gradients of some batches, each of another length."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(1)
    losses = []
    with layer_calls(model, **switches):
        for length in LENGTHS:
            ids = torch.arange(2 * length).view(2, length) % 50
            mask = (ids[:1, :1] + torch.arange(length) < torch.tensor([[length], [3]])).long()
            out = model(input_ids=ids, attention_mask=mask, output_hidden_states=states)
            loss = out.logits.square().mean()
            if states:
                loss = loss + out.hidden_states[1].square().mean()
            loss.backward()
            losses.append(loss.detach())
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([torch.stack(losses), *gradients])


@pytest.mark.parametrize("make", [bert, llama], ids=lambda make: make.__name__)
def test_computed_twice_the_bits_are_the_same(make):
    plain, twice = (
        trained(make(), compile="no", checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert torch.equal(plain, twice)


def test_computed_twice_little_is_kept():
    kept = []
    for checkpointing in (False, True):
        model, saved = bert().train(), []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, s=saved: s.append(t) or t, lambda t: t
            ),
            layer_calls(model, compile="no", checkpointing=checkpointing),
        ):
            model(input_ids=torch.zeros(4, 16, dtype=torch.int64))
        parameters = {p.data_ptr() for p in model.parameters()}
        kept.append(sum(t.nbytes for t in saved if t.data_ptr() not in parameters))
    assert kept[1] < kept[0] / 3


@pytest.fixture
def graphs(monkeypatch):
    """Compiled without a compiler; every graph that is made."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_all_layers_and_lengths_are_one_graph(graphs):
    plain = trained(bert(), states=False, compile="no", checkpointing=False)
    compiled, twice = (
        trained(bert(), states=False, compile="layers", checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert len(graphs) == 1
    assert torch.equal(compiled, plain)
    assert torch.equal(twice, plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_are_those_of_compiled_layers(graphs, checkpointing):
    """Which transformers collects by hooks, at which graphs end: they are some more."""
    plain = trained(bert(), compile="no", checkpointing=False)
    compiled = trained(bert(), compile="layers", checkpointing=checkpointing)
    assert torch.equal(compiled, plain)
    assert 1 < len(graphs) <= 4


def test_what_is_evaluated_meanwhile_is_not_compiled(graphs):
    model, ids = bert(), torch.arange(12).view(2, 6)
    wanted = model.eval()(input_ids=ids).logits
    with layer_calls(model, compile="layers", checkpointing=False):
        assert torch.equal(model(input_ids=ids).logits, wanted)
        with torch.no_grad():
            model.train()(input_ids=ids)
        assert not graphs
        model(input_ids=ids)
        assert len(graphs) == 1


def test_compiled_it_is_the_same_within_rounding():
    """By the compiler that is there; a model of one layer, since that takes its seconds."""
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, where it is first imported
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.LayerNorm(32))
    inputs, found = torch.randn(8, 32), []
    for dtype, compile in ((torch.float64, "no"), (torch.float32, "no"), (torch.float32, "layers")):
        each = copy.deepcopy(model).to(dtype)
        with layer_calls(each, compile=compile, checkpointing=False):
            loss = each(inputs.to(dtype)).pow(3).sum()
            loss.backward()
        found.append(
            torch.cat([loss.detach()[None], *(p.grad.flatten() for p in each.parameters())])
        )
    exact, plain, compiled = found
    assert_within_budget(compiled, exact, plain)


@pytest.mark.parametrize("model", [bert(), nn.Linear(2, 2)], ids=["bert", "any other"])
def test_calls_are_put_back_after_an_error(model):
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), layer_calls(model, compile="no", checkpointing=True):
        1 / 0 if any("forward" in vars(module) for module in model.modules()) else None
    assert {name: vars(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("compile", "compiler", "words"),
    [
        ("cuda_graphs", "g++", 'compile = "cuda_graphs" needs a CUDA device, got the cpu. Set'),
        ("layers", "no-such", "needs a C++ compiler on a CPU, got no no-such. Install one, name"),
    ],
)
def test_what_is_missing_is_told(monkeypatch, compile, compiler, words):
    monkeypatch.setenv("CXX", compiler)
    with (
        pytest.raises(RuntimeError) as caught,
        layer_calls(nn.Linear(2, 2), compile=compile, checkpointing=False),
    ):
        pass
    assert is_ours(caught.value)
    assert words in str(caught.value)
