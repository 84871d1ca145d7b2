"""Handing a cache to other tools: a Parquet or Arrow file with a row a sample.

    sample_id, token_hash, num_tokens     int64, uint64, int64
    topk_K_ids, topk_K_logits             lists of K; id -1: an empty slot
    topk_K_log_z_tT                       one number for each temperature T
    sampled_N_ids, sampled_N_weights      lists, as long as what was drawn is distinct
    logits, hidden_last, hidden_I         lists of their width
    hidden_I_scale                        one number, where the layer is in eight bits

What a teacher said about every token is a list of these, of ``num_tokens``; what it said about
the whole sample is one. Arrow has no bfloat16: such columns are float32, which holds the same
numbers. The file's metadata has the capture's plan, fingerprints among it, and what is known of
the teacher's logits, as JSON under ``mkd_fast``. The teacher's head, which logits are made of
from ``hidden_last``, stays in the cache's ``head.safetensors``.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import cache as checks
from mkd_fast.files import replacing
from mkd_fast.losses.targets import (
    Int8Hidden,
    SampledTeacher,
    SparseTeacher,
    Teacher,
    TeacherHead,
)
from mkd_fast.teacher.cache.manifest import ShardEntry
from mkd_fast.teacher.cache.reader import TeacherCache
from mkd_fast.teacher.cache.shard import Shard

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")
# stored bytes that are decoded at a time; samples of a large vocabulary take forty times as many
_GROUP_BYTES = 4 << 20


@dataclass(frozen=True)
class Group:
    """Records that are exported together: some of one shard, from ``begin`` to ``end``."""

    shard: ShardEntry
    begin: int
    end: int

    def __len__(self) -> int:
        """Number of samples."""
        return self.end - self.begin


def export(
    cache: TeacherCache,
    path: str | Path,
    each: Callable[[Sequence[Group]], Iterable[Group]] = iter,
) -> None:
    """Write a cache's records, decoded, in the order in which they were captured.

    ``datasets.load_dataset("parquet", data_files=...)`` reads the one format and
    ``datasets.Dataset.from_file`` maps the other; memory does not grow with the cache. Records
    are checked as they are read.

    Args:
        cache: what to write.
        path: ends in ``.parquet``, or in ``.arrow`` for Arrow's stream format.
        each: hands on the groups of samples one by one, as ``tqdm`` does, to show how far it is.

    Raises:
        ValueError: another suffix, or a damaged record.
        OSError: the file cannot be written; none is left.
    """
    import pyarrow

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise checks.unknown_suffix("export", path, SUFFIXES)
    batches = (pyarrow.record_batch(_columns(cache, group)) for group in each(_groups(cache)))
    first = next(batches)
    about = {"plan": asdict(cache.manifest.plan), "outputs": asdict(cache.manifest.outputs)}
    schema = first.schema.with_metadata({"mkd_fast": json.dumps(about)})
    with replacing(path) as temporary, _writing(temporary, path.suffix, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)


@contextmanager
def _writing(path: Path, suffix: str, schema: "pyarrow.Schema") -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    if suffix == ".parquet":
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            yield writer
    else:
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, schema) as writer,
        ):
            yield writer


def _groups(cache: TeacherCache) -> list[Group]:
    """Every record, in parts that may be padded and held in memory."""
    groups = []
    for entry in cache.manifest.shards:
        most_tokens = _GROUP_BYTES * entry.num_tokens // entry.num_bytes
        begin = longest = 0
        for record, length in enumerate(_lengths(_shard(cache, entry)).tolist()):
            longest = max(longest, length)
            if record > begin and (record + 1 - begin) * longest > most_tokens:
                groups.append(Group(entry, begin, record))
                begin, longest = record, length
        groups.append(Group(entry, begin, entry.num_samples))
    return groups


def _shard(cache: TeacherCache, entry: ShardEntry) -> Shard:
    return Shard(cache.path / entry.file, cache.manifest.layout(entry))


def _lengths(shard: Shard) -> NDArray[np.int64]:
    return np.diff(shard.offsets["token"])


def _columns(cache: TeacherCache, group: Group) -> dict[str, Any]:
    plan, part = cache.manifest.plan, slice(group.begin, group.end)
    shard = _shard(cache, group.shard)
    sample_ids, lengths = shard.sample_ids[part], _lengths(shard)[part]
    columns = {
        "sample_id": sample_ids,
        "token_hash": shard.token_hashes[part],
        "num_tokens": lengths,
    }
    layers = plan.hidden_layers
    for kind in plan.keep:
        name, temperatures = kind.replace(":", "_"), plan.temperatures or (1.0,)
        for temperature in temperatures if kind.startswith("topk") else temperatures[:1]:
            got = cache.batch(sample_ids, keep=kind, temperature=temperature, hidden_layers=layers)
            columns |= _of_teacher(name, got.teacher, lengths, temperature)
            for layer, states in zip(layers, got.hidden, strict=True):
                columns |= _of_states(f"hidden_{layer}", states, lengths)
            layers = ()  # they are read once
    return columns


def _of_teacher(
    name: str, teacher: Teacher, lengths: NDArray[np.int64], temperature: float
) -> dict[str, Any]:
    match teacher:
        case TeacherHead():
            return _of_states(f"{name}_last", teacher.hidden, lengths)
        case Tensor():
            return {name: _column(teacher, lengths if teacher.ndim == 3 else None)}
        case SparseTeacher():
            of_tokens = lengths if teacher.ids.ndim == 3 else None
            return {
                f"{name}_ids": _column(teacher.ids, of_tokens),
                f"{name}_logits": _column(teacher.logits, of_tokens),
                f"{name}_log_z_t{temperature:g}": _column(teacher.log_z, of_tokens),
            }
        case _:
            drawn = teacher if isinstance(teacher, SampledTeacher) else teacher.unpacked()
            of_tokens = lengths if drawn.ids.ndim == 3 else None
            is_drawn = drawn.ids >= 0
            return {
                f"{name}_ids": _column(drawn.ids, of_tokens, is_drawn),
                f"{name}_weights": _column(drawn.weights, of_tokens, is_drawn),
            }


def _of_states(
    name: str, states: Tensor | Int8Hidden, lengths: NDArray[np.int64]
) -> dict[str, Any]:
    if isinstance(states, Int8Hidden):
        scale = {f"{name}_scale": _column(states.scale, lengths)}
        return {name: _column(states.values, lengths), **scale}
    return {name: _column(states, lengths)}


def _column(
    rows: Tensor, lengths: NDArray[np.int64] | None, is_kept: Tensor | None = None
) -> "pyarrow.Array":
    """A column from what is padded.

    Args:
        rows: of samples, ``[B]`` or ``[B, width]``; of their tokens, ``[B, S]`` or
            ``[B, S, width]``.
        lengths: how many tokens of each sample are real; None for rows of samples.
        is_kept: which values of each row are; None for all of its width.
    """
    import pyarrow

    if lengths is not None:
        is_real = torch.arange(rows.shape[1]) < torch.from_numpy(lengths)[:, None]
        rows = rows[is_real]
        is_kept = None if is_kept is None else is_kept[is_real]
    if rows.dtype == torch.bfloat16:
        rows = rows.float()
    if is_kept is not None:
        column = _lists(pyarrow.array(rows[is_kept].numpy()), is_kept.sum(-1).numpy())
    else:
        column = pyarrow.array(rows.flatten().numpy())
        if rows.ndim == 2:
            column = pyarrow.FixedSizeListArray.from_arrays(column, rows.shape[1])
    return column if lengths is None else _lists(column, lengths)


def _lists(values: "pyarrow.Array", lengths: NDArray[np.int64]) -> "pyarrow.Array":
    import pyarrow

    ends = np.cumsum(np.append(0, lengths), dtype=np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), values)
