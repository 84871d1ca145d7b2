from pathlib import Path

import pytest
import tiny_study
import torch
from one_thread import one_thread as one_thread

from mkd_fast.study.run import StudyState, study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """An undisturbed run of the tiny study; only to be read."""
    folder = tmp_path_factory.mktemp("study")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        state = study(tiny_study.write_study(folder))
    torch.set_num_threads(threads)
    return state


@pytest.fixture(autouse=True)
def home(finished: StudyState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers are fine-tuned once, by the undisturbed run."""
    monkeypatch.setenv("MKD_FAST_HOME", str(finished.folder.parent / "home"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny study, not yet run."""
    return tiny_study.write_study(tmp_path)
