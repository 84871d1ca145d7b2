from pathlib import Path

import pytest
import tiny_job
from one_thread import one_thread as one_thread


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; only to be read."""
    return tiny_job.distilled(tmp_path_factory.mktemp("finished")).folder


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """A run that has trained some steps and scored nothing."""
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "run.json").write_bytes((finished / "run.json").read_bytes())
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(lines[0] + b'{"model": "trai')
    return folder
