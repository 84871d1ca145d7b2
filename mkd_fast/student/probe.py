"""How a model is wired, found by running a small random one of its class.

The probe has the teacher's class and config, but few units: a shape says how long an axis is, not
whose it is. Where hidden_size is num_heads * head_dim, the rows of a query are as many as the
residual stream's. So blocks of a matrix's output are disturbed, all at once, each in a row of the
batch of its own, and it is seen which inputs of other matrices move. A value of head 3 moves what
the output projection reads of head 3 and nothing else of it; so does a query or key, in one
tensor or fused with others. What goes through a norm moves everything.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mkd_fast.student.sizes import Sizes

MATRICES = (nn.Linear, Conv1D)
_NUM_TOKENS = 5
_VOCABULARY = 32
_NOISE = 1e-3  # of the largest: what is disturbed directly moves more, rounding far less
_ROUNDING = 1e-5  # of the largest: some families' norms compute in float32 whatever they are given
_PUSH = 8.0


def small_sizes(sizes: Sizes) -> Sizes:
    """Few units, but the teacher's heads; what rotary embeddings turn keeps its length."""
    if sizes.heads_fill_hidden:
        return replace(sizes, hidden_size=8 * sizes.num_heads, head_dim=8, intermediate_size=6)
    hidden_size = sizes.num_heads * max(2, -(-16 // sizes.num_heads))
    return replace(sizes, hidden_size=hidden_size, intermediate_size=6)


def build_probe(like: PreTrainedModel, sizes: Sizes, **settings: object) -> PreTrainedModel:
    """A random model of that class, in float64; the caller's random state stays as it is.

    Args:
        like: the model it is a probe of.
        sizes: how wide it is.
        settings: of its config.
    """
    config = copy.deepcopy(like.config)
    for name, value in settings.items():
        setattr(config, name, value)
    sizes.write(config)
    config.vocab_size, config.pad_token_id, config.use_cache = _VOCABULARY, 0, False
    config._attn_implementation = config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        probe: PreTrainedModel = type(like)(config).double().eval()
        with torch.no_grad():
            for parameter in probe.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
                else:
                    parameter.normal_(mean=0.5, std=0.2)
    return probe


def token_ids() -> Tensor:
    """The text that a probe is run on."""
    return torch.arange(3, 3 + _NUM_TOKENS) * 3 % _VOCABULARY


def run(probe: PreTrainedModel, num_rows: int = 1) -> Tensor:
    """What a probe says to a fixed text, in each row of a batch."""
    with torch.no_grad():
        ids = token_ids().expand(num_rows, -1)
        found: Any = probe(input_ids=ids, attention_mask=torch.ones_like(ids))
    output: Tensor = found[0]
    return output


def same_outputs(one: Tensor, other: Tensor) -> bool:
    """True where two runs say the same but for rounding."""
    return bool((one - other).abs().max() <= _ROUNDING * one.abs().max())


def matrices(module: nn.Module) -> dict[str, Any]:
    """Modules that multiply by a matrix, by name."""
    return {
        str(name): child for name, child in module.named_modules() if isinstance(child, MATRICES)
    }


def output_axis(matrix: nn.Module) -> int:
    """The axis of the weight that is the product's; the other one is read."""
    return 1 if isinstance(matrix, Conv1D) else 0


def moved_inputs(
    probe: PreTrainedModel, num_blocks: Mapping[str, int]
) -> dict[str, dict[str, Tensor]]:
    """Which inputs move when blocks of an output are disturbed.

    Args:
        probe: the model to run.
        num_blocks: by matrix, into how many blocks its output is cut.

    Returns:
        For each matrix, by the matrix that reads, bool [blocks, inputs].
    """
    firsts, num_rows = {}, 1  # row 0 is not disturbed
    for name, blocks in num_blocks.items():
        firsts[name], num_rows = num_rows, num_rows + blocks
    generator = torch.Generator().manual_seed(1)
    seen: dict[str, Tensor] = {}

    def disturb(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if output.shape[:1] != (num_rows,):
                return output
            output = output.clone()
            blocks = output.unflatten(-1, (num_blocks[name], -1))
            for block in range(num_blocks[name]):
                part = blocks[firsts[name] + block, ..., block, :]
                part += _PUSH * torch.randn(part.shape, generator=generator, dtype=part.dtype)
            return output

        return hook

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if args[0].shape[:1] == (num_rows,):
                seen[name] = args[0]

        return hook

    with hooked(
        [probe.get_submodule(name).register_forward_hook(disturb(name)) for name in num_blocks]
        + [m.register_forward_pre_hook(look(name)) for name, m in matrices(probe).items()]
    ):
        run(probe, num_rows)
    return {
        name: {
            reader: _moved(inputs[0], inputs[first : first + num_blocks[name]])
            for reader, inputs in seen.items()
        }
        for name, first in firsts.items()
    }


def _moved(still: Tensor, disturbed: Tensor) -> Tensor:
    change = (disturbed - still).abs().reshape(len(disturbed), -1, still.shape[-1]).amax(1)
    return change > _NOISE * change.amax(1, keepdim=True).clamp(min=_NOISE * still.abs().max())


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Hooks that go with the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def norms_before(probe: PreTrainedModel, norms: Mapping[str, nn.Module]) -> dict[str, str]:
    """For each matrix that reads a norm's output as it is, that norm."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # tensors are held, so that no address comes twice
    found: dict[str, str] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if args[0].data_ptr() in outputs:
                found.setdefault(name, outputs[args[0].data_ptr()][0])

        return hook

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[output.data_ptr()] = name, output

        return hook

    with hooked(
        [norm.register_forward_hook(keep(name)) for name, norm in norms.items()]
        + [m.register_forward_pre_hook(look(name)) for name, m in matrices(probe).items()]
    ):
        run(probe)
    return found


def embeddings_grow(probe: PreTrainedModel, layer_list: str) -> bool:
    """Whether the first layer is handed the word embeddings times sqrt(hidden_size)."""
    handed: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        handed.append(args[0] if args else kwargs["hidden_states"])

    layer = probe.get_submodule(f"{layer_list}.0")
    with hooked([layer.register_forward_pre_hook(look, with_kwargs=True)]):
        run(probe)
    table: Any = probe.get_input_embeddings()
    words = table.weight.detach()[token_ids()]
    return same_outputs(words * words.shape[-1] ** 0.5, handed[0][0])


def random_points(width: int) -> Tensor:
    """[width, width], always the same ones."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(width, width, generator=generator, dtype=torch.float64)
