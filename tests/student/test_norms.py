"""What a norm does is found by trying it."""

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mkd_fast.student.norms import Norm, norms_of


class Exponential(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x * self.weight.exp()


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.LayerNorm(8), Norm(is_centred=True, gain_offset=0.0)),
        (nn.LayerNorm(8, bias=False), Norm(is_centred=True, gain_offset=0.0)),
        (LlamaRMSNorm(8), Norm(is_centred=False, gain_offset=0.0)),
        (Gemma2RMSNorm(8).bfloat16(), Norm(is_centred=False, gain_offset=1.0)),
    ],
    ids=["LayerNorm", "LayerNorm without bias", "RMSNorm", "RMSNorm of 1 + weight"],
)
def test_a_norm_is_known_by_what_it_does(module, wanted):
    assert norms_of(nn.ModuleDict({"norm": module}), ("norm",)) == {"norm": wanted}


@pytest.mark.parametrize("module", [nn.LayerNorm(8), LlamaRMSNorm(8)])
def test_standardised_is_the_norm_without_gain_and_bias(module):
    norm = norms_of(nn.ModuleDict({"norm": module}), ("norm",))["norm"]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 1000
    torch.testing.assert_close(norm.standardised(x), module(x).detach())


def test_a_norm_that_scales_in_a_way_of_its_own_is_refused():
    model = nn.ModuleDict({"mine": Exponential()})
    with pytest.raises(
        ValueError, match=r"^copy_init: .*whose norm mine scales in a way of its own"
    ):
        norms_of(model, ("mine",))
