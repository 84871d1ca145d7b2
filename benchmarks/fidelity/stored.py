"""What a token takes on disk, everything counted.

The index, with the headers of shards, is that of a cache with all kinds: more than one alone needs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mkd_fast.benchmarks.fidelity.numbers import Number
from mkd_fast.benchmarks.fidelity.study import HELD_OUT, NARROW, SAMPLED, SPARSE, Study
from mkd_fast.losses import PackedSampledTeacher
from mkd_fast.teacher import TeacherCache


def stored_bytes(study: Study, budgets: Mapping[str, float]) -> Iterator[Number]:
    """Bytes a token by part, everything counted, and distinct ids a token by language."""
    cache = study.cache(HELD_OUT)
    summary = cache.summary()
    parts = summary.bytes_per_token
    narrow = study.cache(NARROW).summary().bytes_per_token
    index = parts["index"]
    for kind in (*SPARSE, *SAMPLED):
        own = {name: count for name, count in parts.items() if name.startswith(f"{kind}.")}
        yield from _bytes(study, kind, {**own, "index": index}, budgets.get(kind))
    yield from _bytes(study, "hidden", {"hidden.last": parts["hidden.last"], "index": index})
    narrow_parts = {"hidden.last": narrow["hidden.last"], "index": narrow["index"]}
    yield from _bytes(study, "hidden, bfloat16", narrow_parts)
    yield Number(study.name, "hidden", "", 0.0, "head, bytes in all", summary.head_bytes)
    for layer in study.matched_layers:
        for dtype, of in (("int8", parts), ("bfloat16", narrow)):
            own = {n: of[n] for n in (f"hidden.{layer}", f"hidden.{layer}.scale") if n in of}
            yield from _bytes(study, f"layer {layer}, {dtype}", {**own, "index": of["index"]})
    for kind in SAMPLED:
        for language in dict.fromkeys(study.held_out.languages):
            rows = [n for n, name in enumerate(study.held_out.languages) if name == language]
            measure = f"distinct ids a token, {language}"
            yield Number(study.name, kind, "", 1.0, measure, _distinct(cache, kind, rows))


def _bytes(
    study: Study, kind: str, parts: Mapping[str, float], at_most: float | None = None
) -> Iterator[Number]:
    total = sum(parts.values())
    yield Number(study.name, kind, "", 0.0, "bytes a token", total, at_most)
    for name, count in parts.items():
        yield Number(study.name, kind, "", 0.0, f"bytes a token, {name}", count)


def _distinct(cache: TeacherCache, kind: str, rows: list[int]) -> float:
    teacher = cache.batch(rows, keep=kind, hidden_layers=()).teacher
    sampled: Any = teacher.unpacked() if isinstance(teacher, PackedSampledTeacher) else teacher
    return float((sampled.ids >= 0).sum(-1).float().mean())
