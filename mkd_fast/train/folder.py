"""A run's folder belongs to one recipe, which run.json in it records."""

import json
from pathlib import Path
from typing import Any

from mkd_fast.checks import train as checks
from mkd_fast.environment import environment
from mkd_fast.files import read_json, write_json
from mkd_fast.train import corpus as corpora
from mkd_fast.train.config import Config
from mkd_fast.train.recipe import to_dict

# The folder may have moved, memory decides how a teacher runs, not what it says, and whether a
# student's activations are kept; a run may be watched from its middle on, and processes may divide
# a student as they like.
_OF_NO_EFFECT = {
    ("run", "folder"),
    ("run", "trackers"),
    ("capture", "max_memory"),
    ("train", "parallel"),
    ("train", "checkpointing"),
}


def claim_folder(folder: Path, config: Config) -> None:
    """Make a folder the run's own, or find that it is.

    Raises:
        ValueError: it holds other files, or the run of another recipe; the message names one, or
            what differs.
        OSError: it cannot be written.
    """
    path = folder / "run.json"
    others = {child.name for child in folder.glob("*")} - {path.name, f"{path.name}.tmp"}
    resolved = to_dict(config)
    found = read_json(path)
    if found is None:
        if others:
            raise checks.folder_of_other_files(folder, min(others))
    elif differing := _differing(found["config"], resolved):
        if others - {"data", "tokens"}:
            raise checks.folder_of_another_run(folder, differing)
        corpora.discard(folder / "data")  # no more is made yet: the recipe may change
    else:
        return
    write_json(path, {"config": resolved, **environment()})


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """``section.key: was A, is B`` for each key in which two resolved recipes differ.

    A key that an older version did not know has its default there.
    """
    defaults = json.loads(json.dumps(to_dict(Config())))
    differing = []
    for section, values in json.loads(json.dumps(wanted)).items():
        for key, value in values.items():
            was = found.get(section, {}).get(key, defaults[section][key])
            if was != value and (section, key) not in _OF_NO_EFFECT:
                differing.append(f"{section}.{key}: was {was!r}, is {value!r}")
    return differing
