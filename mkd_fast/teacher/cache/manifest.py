"""The manifest: what a cache holds, where it comes from, and the checksums of its shards.

The same JSON without shards is ``capture.json``, written before the first shard; with it and the
shards a lost manifest can be written again. The text is a function of the content and ends in its
own sha256, so a reader writes the content anew and compares: no changed byte passes.
"""

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.fingerprint import Fingerprints
from mkd_fast.teacher.cache.format import (
    FORMAT,
    STORAGE,
    VERSION,
    ShardLayout,
    TensorSpec,
    axes_of,
    shard_name,
)
from mkd_fast.teacher.cache.kinds import HIDDEN, are_of_plan, parse_keep

MANIFEST = "manifest.json"
PLAN = "capture.json"
INDEX = "index.safetensors"
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Plan:
    """What a capture was asked for; two captures of one plan and text write the same bytes.

    Args:
        keep: kinds of targets, for example ``("topk:64", "hidden")``.
        vocab_size: real columns of the logits, or None for all.
        logits_dtype: of ``"logits"``: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        last_hidden_dtype: of ``"hidden"``: the same, or None for the one they come in.
        temperatures: for which log_z is stored, the first also what is sampled at; empty where
            no kind depends on one.
        proposal_exponent: tau of what is sampled.
        seed: of what is sampled.
        hidden_layers: numbers in the tuple ``hidden_states`` of ``transformers``.
        hidden_dtype: of these: the same three or ``"int8"``.
        shard_bytes: size at which a shard is closed.
        fingerprints: where the cache comes from.
        num_parts: parts in which it was captured, one after another in the cache: part p is
            every ``num_parts``-th batch from the p-th on.
    """

    keep: tuple[str, ...]
    vocab_size: int | None
    logits_dtype: str
    last_hidden_dtype: str | None
    temperatures: tuple[float, ...]
    proposal_exponent: float
    seed: int
    hidden_layers: tuple[int, ...]
    hidden_dtype: str
    shard_bytes: int
    fingerprints: Fingerprints
    num_parts: int = 1

    def require(self, function: str, stored: "Plan", folder: Path) -> None:
        """Raise ValueError that names the first field in which the stored plan differs."""
        self.fingerprints.require(function, stored.fingerprints, folder)
        for field in fields(self):
            asked, found = getattr(self, field.name), getattr(stored, field.name)
            if asked != found and field.name != "fingerprints":
                raise checks.cache_of_another(function, folder, field.name, found, asked)


@dataclass(frozen=True)
class Outputs:
    """What a capture learns of its teacher when it runs.

    Args:
        num_columns: real columns of its logits.
        softcap: final softcap of its logits, where it has one.
        logit_scale: what its logits are multiplied by before that.
        rounds_as: what made log_z and draws, as ``mkd_fast.teacher.keep_logits`` names it: with
            another, a capture writes other bytes. None where nothing was made of logits.
    """

    num_columns: int
    softcap: float | None = None
    logit_scale: float = 1.0
    rounds_as: str | None = None


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says about one shard.

    Args:
        file: its name.
        num_rows: on each axis of the tensors, as ``axes_of`` orders them.
        num_bytes: of the whole file.
        index_crc32: of its index.
        sha256: of the whole file.
    """

    file: str
    num_rows: tuple[int, ...]
    num_bytes: int
    index_crc32: int
    sha256: str

    @classmethod
    def of(cls, layout: ShardLayout, file: str, sha256: str) -> Self:
        """The entry of a shard that has been written."""
        return cls(file, layout.num_rows, layout.num_bytes, layout.index_crc32, sha256)

    @property
    def num_samples(self) -> int:
        """Records in the shard."""
        return self.num_rows[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its records."""
        return self.num_rows[1]


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says about a file that is not a shard."""

    file: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A cache's description; without shards, that of a capture that has not finished.

    Args:
        plan: what was asked for.
        outputs: what the teacher has.
        tensors: what each shard stores.
        digest: sha256 of these, in the header of every shard of this capture.
        shards: in order.
        others: every other file besides the plan's and this one.
    """

    plan: Plan
    outputs: Outputs
    tensors: tuple[TensorSpec, ...]
    digest: str
    shards: tuple[ShardEntry, ...] = ()
    others: tuple[FileEntry, ...] = ()

    @classmethod
    def of_capture(cls, plan: Plan, outputs: Outputs, tensors: tuple[TensorSpec, ...]) -> Self:
        """The manifest of a capture that has no shard yet."""
        content = {
            "plan": asdict(plan),
            "outputs": asdict(outputs),
            "tensors": [asdict(spec) for spec in tensors],
        }
        return cls(plan, outputs, tensors, hashlib.sha256(_text(content)).hexdigest())

    def layout(self, shard: ShardEntry) -> ShardLayout:
        """The layout that a shard of this cache must have."""
        return ShardLayout(self.tensors, shard.num_rows, self.digest, shard.index_crc32)

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
    if not _is_signed(data, content):
        raise checks.cache_damaged(path, "its content does not match its own sha256")
    try:
        manifest = _parse(data)
        is_of_plan = are_of_plan(manifest.tensors, manifest.plan, manifest.outputs.num_columns)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        is_of_plan = False
    if not is_of_plan:
        raise checks.cache_damaged(path, "its fields are not those of the format")
    return manifest


def _is_signed(data: dict[str, Any], content: bytes) -> bool:
    with suppress(RecursionError):
        return _signed({key: value for key, value in data.items() if key != "sha256"}) == content
    return False


def _parse(data: Any) -> Manifest:
    plan = data["plan"]
    lists = {key: tuple(plan[key]) for key in ("keep", "temperatures", "hidden_layers")}
    origin = Fingerprints(**plan["fingerprints"])
    plan = Plan(**plan | lists | {"fingerprints": origin})
    parse_keep(plan.keep)
    outputs = Outputs(**data["outputs"])
    softcap = [] if outputs.softcap is None else [outputs.softcap]
    if not isinstance(outputs.rounds_as, str | None):
        raise ValueError
    for number in (*plan.temperatures, plan.proposal_exponent, outputs.logit_scale, *softcap):
        if not math.isfinite(number):
            raise ValueError
    for count in (abs(plan.seed), plan.num_parts, outputs.num_columns, *plan.hidden_layers):
        _count(count)
    _count(plan.shard_bytes)
    tensors = tuple(_tensor(**tensor) for tensor in data["tensors"])
    num_axes = len(axes_of(tensors))
    shards = (_shard(number, num_axes, **shard) for number, shard in enumerate(data["shards"]))
    others = tuple(_file(**file) for file in data["others"])
    manifest = replace(
        Manifest.of_capture(plan, outputs, tensors), shards=tuple(shards), others=others
    )
    files = [HEAD, INDEX] if HIDDEN in plan.keep else [INDEX]
    is_listed = [entry.file for entry in others] == (files if manifest.shards else [])
    if data["digest"] != manifest.digest or not is_listed:
        raise ValueError
    return manifest


def _tensor(name: str, dtype: str, width: int, axis: str) -> TensorSpec:
    if dtype not in STORAGE or not isinstance(axis, str) or not isinstance(name, str):
        raise ValueError
    return TensorSpec(name, dtype, _count(width), axis)


def _shard(
    number: int,
    num_axes: int,
    file: str,
    num_rows: list[int],
    num_bytes: int,
    index_crc32: int,
    sha256: str,
) -> ShardEntry:
    # the name also keeps a path from leading out of the folder
    if file != shard_name(number) or len(num_rows) != num_axes:
        raise ValueError
    counts = tuple(map(_count, num_rows))
    return ShardEntry(file, counts, _count(num_bytes), _count(index_crc32), sha256)


def _file(file: str, num_bytes: int, sha256: str) -> FileEntry:
    if file not in (INDEX, HEAD):
        raise ValueError
    return FileEntry(file, _count(num_bytes), sha256)


def _count(value: int) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
