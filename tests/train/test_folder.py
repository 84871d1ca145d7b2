"""A run's folder: what may change between two starts, and what is another run."""

import pytest

from mkd_fast.train.config import from_dict
from mkd_fast.train.folder import claim_folder


def claim(folder, **train):
    claim_folder(folder, from_dict({"train": train}))


@pytest.fixture
def begun(tmp_path):
    """A folder in which work has been done."""
    claim(tmp_path, epochs=2)
    (tmp_path / "cache").mkdir()
    return tmp_path


@pytest.mark.parametrize("change", [{"parallel": "fsdp"}, {"checkpointing": True}], ids=str)
def test_how_memory_is_divided_may_change(begun, change):
    claim(begun, epochs=2, **change)
    claim(begun, epochs=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accumulate": 2}, "train.accumulate: was 1, is 2"),
        ({"compile": "layers"}, "train.compile: was 'no', is 'layers'"),
        ({"optimizer": "adamw_foreach"}, "train.optimizer: was 'adamw', is 'adamw_foreach'"),
    ],
    ids=str,
)
def test_what_rounds_otherwise_is_another_run(begun, change, told):
    with pytest.raises(ValueError, match=told):
        claim(begun, epochs=2, **change)
