"""From a teacher's outputs to what is kept of them: dense logits, or the K largest with log_z.

    log_z(T) = log sum_v exp(z_v / T)        over the real vocabulary, in float32

so that a kept id's probability at temperature T is exp(z_k / T - log_z(T)), exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.manifest import Plan

# N rows (samples, or real tokens of a batch), V vocabulary, D width, K kept

LOGITS_DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}
# float32 logits worked on at a time: what a CPU keeps in its cache, what fills a GPU
_CPU_CHUNK_BYTES = 2 << 20
_CHUNK_BYTES = 64 << 20


def num_kept(keep: str) -> int | None:
    """K of ``"topk:K"``, or None for ``"logits"``; ValueError for anything else."""
    kind, _, count = keep.partition(":")
    if kind == "topk" and count.isdecimal() and int(count) > 0:
        return int(count)
    if keep != "logits":
        raise checks.unknown_keep(keep)
    return None


def tensor_specs(plan: Plan, outputs: Any) -> tuple[TensorSpec, ...]:
    """The tensors that a capture stores, from the shapes of its first outputs.

    Args:
        plan: of the capture.
        outputs: of the teacher: ``logits`` ``[B, V]`` or ``[B, S, V]``, and ``hidden_states``
            where the plan asks for layers.

    Raises:
        ValueError: there are no logits of such a shape, or fewer columns than the plan asks for.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim not in (2, 3):
        shape = None if logits is None else logits.shape
        raise checks.not_teacher_logits(type(outputs).__name__, shape)
    axis = "sample" if logits.ndim == 2 else "token"
    vocab_size = plan.vocab_size or logits.shape[-1]
    if vocab_size > logits.shape[-1]:
        raise checks.captured_vocab_too_large(vocab_size, logits.shape[-1])
    dtype, _ = LOGITS_DTYPES[plan.logits_dtype]
    kept = num_kept(plan.keep[0])
    if kept is None:
        specs = [TensorSpec("logits", dtype, vocab_size, axis)]
    elif kept > vocab_size:
        raise checks.kept_more_than_columns(kept, vocab_size)
    else:
        specs = [
            TensorSpec("topk.ids", "I32", kept, axis),
            TensorSpec("topk.logits", dtype, kept, axis),
            TensorSpec("topk.log_z", "F32", len(plan.temperatures), axis),
        ]
    for layer in plan.hidden_layers:
        width = outputs.hidden_states[layer].shape[-1]
        specs.append(TensorSpec(f"hidden.{layer}", "BF16", width, "token"))
    return tuple(specs)


def kept_tensors(plan: Plan, outputs: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What is stored of one batch, by name, on the teacher's device.

    Args:
        plan: of the capture.
        outputs: of the teacher, as in ``tensor_specs``.
        tokens: positions of the real tokens in the flattened ``[B, S]``, int64 ``[N]``.

    Returns:
        Contiguous ``[rows, width]`` each, where rows are samples or real tokens.
    """
    logits = outputs.logits[..., : plan.vocab_size]
    _, dtype = LOGITS_DTYPES[plan.logits_dtype]
    rows = None if logits.ndim == 2 else tokens
    logits_NV = logits if rows is None else logits.flatten(0, 1)
    kept = num_kept(plan.keep[0])
    if kept is None:
        stored = logits_NV if rows is None else logits_NV.index_select(0, rows)
        tensors = {"logits": stored.to(dtype).contiguous()}
    else:
        tensors = _topk(logits_NV, rows, kept, plan.temperatures, dtype)
    for layer in plan.hidden_layers:
        hidden = outputs.hidden_states[layer].flatten(0, 1).index_select(0, tokens)
        tensors[f"hidden.{layer}"] = hidden.to(torch.bfloat16)
    return tensors


def _topk(
    logits_NV: Tensor,
    rows: Tensor | None,
    kept: int,
    temperatures: Sequence[float],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    if rows is None:
        rows = torch.arange(len(logits_NV), device=logits_NV.device)
    chunk_bytes = _CPU_CHUNK_BYTES if logits_NV.device.type == "cpu" else _CHUNK_BYTES
    ids, values, log_z = [], [], []
    for chunk in torch.split(rows, max(1, chunk_bytes // (4 * logits_NV.shape[1]))):
        z = logits_NV.index_select(0, chunk).float()
        top = z.topk(kept)
        ids.append(top.indices.to(torch.int32))
        values.append(top.values.to(dtype))
        log_z.append(torch.stack([(z / t).logsumexp(-1) for t in temperatures], -1))
    names = ("topk.ids", "topk.logits", "topk.log_z")
    return {n: torch.cat(parts) for n, parts in zip(names, (ids, values, log_z), strict=True)}
