from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_job
import torch

from mkd_fast.train import DistillResult


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of this size spend their time waking threads; and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fine-tuned teachers are kept: each test has its own place."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MKD_FAST_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    """An undisturbed run of the tiny job; only to be read."""
    return tiny_job.distilled(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny job, not yet run."""
    return tiny_job.write_job(tmp_path)


@pytest.fixture
def known_teacher(finished: DistillResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuned before, by the undisturbed run."""
    monkeypatch.setenv("MKD_FAST_HOME", str(finished.folder.parent / "home"))
