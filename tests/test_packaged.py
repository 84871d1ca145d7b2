"""Wheels as data: what pip is asked for, and what is said when it fails."""

import subprocess
from types import SimpleNamespace

import fake_pip
import pytest

from mkd_fast.packaged import Packaged, Wheel, fetch, home_folder, unpack

WHEEL = Wheel("some-data", "1.2", "0" * 64)


def test_one_file_of_a_wheel(monkeypatch, tmp_path):
    commands = fake_pip.serve(monkeypatch, {"some-data": {"a/b.bin": b"content"}})
    assert unpack(Packaged(WHEEL, "a/b.bin"), tmp_path).read_bytes() == b"content"
    assert "--require-hashes" in commands[0]
    # The wheel may be made for another platform and Python: it is data.
    assert {"--platform=manylinux2014_x86_64", "--ignore-requires-python"} < set(commands[0])


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("looking\nERROR: no matching distribution\nWARNING: old pip\n", "ERROR: no matching"),
        ("/usr/bin/python: No module named pip\n", "/usr/bin/python: No module named pip"),
        ("", "no message"),
    ],
)
def test_what_pip_said_is_told(monkeypatch, tmp_path, stderr, cause):
    failed = SimpleNamespace(returncode=1, stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=rf"download some-data 1\.2, got '{cause}.*'\. Go on"):
        fetch(WHEEL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path))
    assert home_folder() == tmp_path
    monkeypatch.delenv("MKD_FAST_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == tmp_path / ".cache" / "mkd_fast"
