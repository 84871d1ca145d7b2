"""The manifest: what a cache holds, where it comes from, and the checksums of its shards.

The same JSON without shards is ``capture.json``, written before the first shard and removed
after ``manifest.json``. The text is a function of the content and ends in its own sha256, so a
reader writes the content anew and compares: no changed byte passes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.fingerprint import Fingerprints
from mkd_fast.teacher.cache.format import (
    AXES,
    FORMAT,
    STORAGE,
    VERSION,
    ShardLayout,
    TensorSpec,
    shard_name,
)

MANIFEST = "manifest.json"
UNFINISHED = "capture.json"


@dataclass(frozen=True)
class Plan:
    """What a capture was asked for; two captures of one plan and text write the same bytes.

    Args:
        keep: kinds of targets, for example ``("topk:64",)``.
        vocab_size: real columns of the logits, or None for all.
        logits_dtype: ``"float32"`` or ``"bfloat16"``.
        temperatures: for which log_z is stored; empty where all logits are.
        hidden_layers: numbers in the tuple ``hidden_states`` of ``transformers``.
        shard_bytes: size at which a shard is closed.
        fingerprints: where the cache comes from.
    """

    keep: tuple[str, ...]
    vocab_size: int | None
    logits_dtype: str
    temperatures: tuple[float, ...]
    hidden_layers: tuple[int, ...]
    shard_bytes: int
    fingerprints: Fingerprints

    def require(self, stored: "Plan", folder: Path) -> None:
        """Raise ValueError that names the first field in which the stored plan differs."""
        self.fingerprints.require("capture", stored.fingerprints, folder)
        for field in fields(self):
            asked, found = getattr(self, field.name), getattr(stored, field.name)
            if asked != found and field.name != "fingerprints":
                raise checks.cache_of_another("capture", folder, field.name, found, asked)


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says about one shard; sha256 is that of the whole file."""

    file: str
    samples: int
    tokens: int
    index_crc32: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A cache's description; without shards, that of a capture that has not finished.

    Args:
        plan: what was asked for.
        tensors: what each shard stores.
        digest: sha256 of both, in the header of every shard of this capture.
        shards: in order.
    """

    plan: Plan
    tensors: tuple[TensorSpec, ...]
    digest: str
    shards: tuple[ShardEntry, ...] = ()

    @classmethod
    def of_capture(cls, plan: Plan, tensors: tuple[TensorSpec, ...]) -> Self:
        """The manifest of a capture that has no shard yet."""
        content = {"plan": asdict(plan), "tensors": [asdict(spec) for spec in tensors]}
        return cls(plan, tensors, hashlib.sha256(_text(content)).hexdigest())

    def layout(self, shard: ShardEntry) -> ShardLayout:
        """The layout that a shard of this cache must have."""
        return ShardLayout(
            self.tensors, shard.samples, shard.tokens, self.digest, shard.index_crc32
        )

    def to_bytes(self) -> bytes:
        """The file's content, ending in the sha256 of what stands before it."""
        return _signed({"format": FORMAT, "version": VERSION, **asdict(self)})


def _text(content: dict[str, Any]) -> bytes:
    # a line for each field: the encoder's own indentation takes most of the time of opening
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _signed(body: dict[str, Any]) -> bytes:
    return _text({**body, "sha256": hashlib.sha256(_text(body)).hexdigest()})


def read_manifest(path: Path) -> Manifest:
    """Read ``manifest.json`` or ``capture.json``.

    Raises:
        ValueError: another format, an unknown version, or a damaged file.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        data = json.loads(content)
        kind, version = data["format"], data["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise checks.not_a_manifest(path) from None
    if kind != FORMAT:
        raise checks.not_a_manifest(path)
    if version != VERSION:
        raise checks.unknown_cache_version(path, version, VERSION)
    if _signed({key: value for key, value in data.items() if key != "sha256"}) != content:
        raise checks.cache_damaged(path, "its content does not match its own sha256")
    try:
        return _parse(data)
    except (ValueError, KeyError, TypeError):
        raise checks.cache_damaged(path, "its fields are not those of the format") from None


def _parse(data: Any) -> Manifest:
    plan = data["plan"]
    return Manifest(
        Plan(
            keep=tuple(plan["keep"]),
            vocab_size=plan["vocab_size"],
            logits_dtype=plan["logits_dtype"],
            temperatures=tuple(plan["temperatures"]),
            hidden_layers=tuple(plan["hidden_layers"]),
            shard_bytes=_count(plan["shard_bytes"]),
            fingerprints=Fingerprints(**plan["fingerprints"]),
        ),
        tuple(_tensor(**tensor) for tensor in data["tensors"]),
        data["digest"],
        tuple(_shard(number, **shard) for number, shard in enumerate(data["shards"])),
    )


def _tensor(name: str, dtype: str, width: int, axis: str) -> TensorSpec:
    if dtype not in STORAGE or axis not in AXES or not isinstance(name, str):
        raise ValueError
    return TensorSpec(name, dtype, _count(width), axis)


def _shard(
    number: int, file: str, samples: int, tokens: int, index_crc32: int, sha256: str
) -> ShardEntry:
    if file != shard_name(number):  # also keeps a path from leading out of the folder
        raise ValueError
    return ShardEntry(file, _count(samples), _count(tokens), _count(index_crc32), sha256)


def _count(value: int) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
