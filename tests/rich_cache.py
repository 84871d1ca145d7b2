"""A small cache that has a file and a tensor of every sort, and what tests of damage do with it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from mkd_fast.teacher import Fingerprints, TeacherCache

OPTIONS = {
    "keep": ("logits", "hidden", "topk:3", "sampled:4"),
    "hidden_layers": (1,),
    "hidden_dtype": "int8",
    "fingerprints": Fingerprints(tokenizer="letters", chat_template="none", dataset="random"),
    "shard_bytes": 100,  # five batches, five shards
}
SHARDS = [f"shard-{number:05d}.safetensors" for number in range(5)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_everything(folder: Path, sample_ids: Sequence[int] | None = None) -> None:
    """Open a cache and read every record of every tensor, and the head.

    Args:
        folder: of the cache.
        sample_ids: of all samples; None takes them from the cache.
    """
    cache = TeacherCache.open(folder)
    for keep in cache.manifest.plan.keep:
        cache.batch(cache.sample_ids if sample_ids is None else sample_ids, keep=keep)


@contextlib.contextmanager
def counted_forwards(model: nn.Module) -> Iterator[list[int]]:
    """The number of samples in each forward pass of the model."""
    seen: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()
