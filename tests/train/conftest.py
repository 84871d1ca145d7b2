from pathlib import Path

import pytest
import tiny_job
from one_thread import one_thread as one_thread

from mkd_fast.train import DistillResult


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
