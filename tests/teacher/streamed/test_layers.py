"""Running layers one at a time: what is refused, and what a model does between its layers."""

import pytest
import torch
from torch import nn

from mkd_fast.teacher.streamed.layers import LayerByLayer


class Model(nn.Module):
    """Three layers, each of which adds its number; ``between`` says how they are called."""

    def __init__(self, between):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.between = between

    def forward(self, x):
        return self.between(self.layers, x)


def streamed(model, x):
    layers, state = LayerByLayer(model, list(model.layers)), None
    for number in range(3):
        state = layers.run_layer(number, state, {"x": x}).made
    return layers.run_rest(state, {"x": x})


def in_order_with_work_between(layers, x):
    for layer in layers:
        x = layer(2 * x).tanh()
    return x


@torch.inference_mode()
def test_what_the_model_does_between_layers_is_done():
    model, x = Model(in_order_with_work_between), torch.randn(4, 2)
    expected = model(x)
    assert torch.equal(streamed(model, x), expected)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda layers, x: layers[1](layers[0](x)), r"forward pass without layer 2"),
        (lambda layers, x: layers[1](x), r"got layer 1 where 0 was due"),
        (lambda layers, x: layers[2](layers[1](layers[0](layers[0](x)))), r"0 where 1 was due"),
        (
            lambda layers, x: layers[0](layers[2](layers[1](layers[0](x)))),
            r"got layer 0 where 3 was due",
        ),
    ],
)
def test_other_orders_are_refused(between, message):
    with pytest.raises(ValueError, match=f"StreamedTeacher: Model must run .*{message}"):
        streamed(Model(between), torch.randn(4, 2))


def test_a_layer_that_hands_on_more_is_refused():
    model = Model(in_order_with_work_between)
    model.layers[1].forward = lambda x: (x, x)
    with pytest.raises(ValueError, match=r"nothing else, got more tensors from layer 1\."):
        streamed(model, torch.randn(4, 2))


@torch.inference_mode()
def test_tuples_are_handed_on_as_tuples():
    def firsts(layers, x):
        for layer in layers:
            x, nothing = layer(x)
            assert nothing is None
        return x

    model, x = Model(firsts), torch.randn(4, 2)
    for layer in model.layers:
        layer.forward = lambda x, plain=layer.forward: (plain(x), None)
    expected = model(x)
    assert torch.equal(streamed(model, x), expected)
