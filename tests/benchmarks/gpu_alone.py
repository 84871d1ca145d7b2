"""Runs gpu.py as on a machine that has torch, triton and what those import, and nothing else.

A process of its own: the script path and its arguments are this one's.
"""

import runpy
import sys
import tomllib
from importlib.abc import MetaPathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"torch", "triton", "numpy"}  # numpy is the interpreter's, which stands in for a GPU here


def declared() -> set[str]:
    """Import names of everything that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {
        "".join(c if c.isalnum() else " " for c in line).split()[0] for g in groups for line in g
    }
    return (names | {"liger_kernel", "orda_kernel", "yaml"}) - NEEDED - {"mkd"}


class Refuse(MetaPathFinder):
    """Stands before every other finder."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {fullname!r}")


refused = declared()
assert {"rich", "typer", "matplotlib", "transformers", "safetensors"} <= refused
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.meta_path = [f for f in sys.meta_path if "Editable" not in type(f).__name__]
sys.meta_path.insert(0, Refuse())
script = str(ROOT / "benchmarks" / "gpu.py")
sys.path[0] = str(Path(script).parent)
runpy.run_path(script, run_name="__main__")
