"""Saved models and ragged batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_families import FAMILIES, VOCAB_SIZE, Family

from mkd_fast.quiet import quiet_transformers


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Family, Path]]:
    """A family of ``FAMILIES`` and the folder where its model is saved."""
    folders: dict[str, Path] = {}

    def save(name: str) -> tuple[Family, Path]:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("model")
            with quiet_transformers():
                FAMILIES[name].model().save_pretrained(folders[name])
        return FAMILIES[name], folders[name]

    return save


@pytest.fixture
def batches() -> list[dict[str, Any]]:
    """Three of them: padded on the right, on the left, and not at all."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.ones(3, 2, 7, dtype=torch.long)
    masks[0, 0, 4:] = masks[1, 1, :3] = 0
    ids = torch.randint(4, VOCAB_SIZE, masks.shape, generator=generator)
    ids[masks == 0] = 1
    return [
        {"input_ids": each, "attention_mask": mask} for each, mask in zip(ids, masks, strict=True)
    ]
