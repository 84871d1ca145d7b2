"""Checkpoints: everything that decides the steps to come, written whole or not at all."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mkd_fast.files import make_folder, write_atomically


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Any) -> None:
    """Write the trained parameters, the optimizer, the random state and ``progress``.

    Frozen parameters are not written: whoever resumes starts from the same model.
    """
    make_folder(path.parent)
    buffer = io.BytesIO()
    content = {
        "model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "random": _random_state(),
        "progress": progress,
    }
    torch.save(content, buffer)
    write_atomically(path, [buffer.getbuffer()])


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Put back what ``save`` wrote and return its ``progress``; None where there is no file."""
    if not path.exists():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(content["model"][name])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"]["cpu"])
    if torch.cuda.is_available() and content["random"]["cuda"]:
        torch.cuda.set_rng_state_all(content["random"]["cuda"])
    return content["progress"]


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
