"""``linear_kd_loss``: the loss from hidden states and head, without the logits of either side."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mkd_fast.checks import losses as checks
from mkd_fast.losses import linear_chunks, linear_fused, matched, ops, reference, rows
from mkd_fast.losses.loss import Impl, resolved_spec, takes_fused
from mkd_fast.losses.spec import LossOutput, LossSpec
from mkd_fast.losses.targets import Teacher
from mkd_fast.losses.tokens import Tokens
from mkd_fast.losses.vocab_parallel import Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# N tokens, V vocabulary, D width

FUNCTION = "linear_kd_loss"


def linear_kd_loss(  # noqa: D417 (some arguments are described together)
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Teacher,
    labels: Tensor | None = None,
    student_bias: Tensor | None = None,
    *,
    spec: LossSpec | None = None,
    impl: Impl | None = None,
    max_chunk_bytes: int | None = None,
    mask: Tensor | None = None,
    vocab_size: int | None = None,
    num_tokens: Tensor | float | None = None,
    student_layers: matched.Hidden | None = None,
    teacher_layers: matched.TeacherHidden | None = None,
    hidden_mask: Tensor | None = None,
    hidden_projection: matched.Projection | None = None,
    skip_below: float | None = None,
    process_group: "ProcessGroup | None" = None,
    vocab_start: int | None = None,
    **fields: Any,
) -> LossOutput:
    """``kd_loss`` of ``student_hidden @ student_weight.T + student_bias``, in little memory.

    Tokens go through the head in chunks, and a chunk's logits (the teacher's too, where it is a
    TeacherHead) live until their gradient was used. With G the gradient of a chunk's logits,
    G W is that of its hidden states, and G' h and the column sums of G add up to those of weight
    and bias, in float32. They are computed in the forward pass; peak memory is the inputs, their
    gradients (float32 for the weight) and one chunk.

        out = linear_kd_loss(hidden, model.lm_head.weight, TeacherHead(t_hidden, t_weight), labels)

    Args:
        student_hidden: ``[..., D]``, last hidden states. Receives a gradient.
        student_weight: ``[V, D]``, of the same dtype; the head's weight, which may be that of the
            embedding. Receives a gradient if it requires one. Under autocast, matrix products and
            logits are of autocast's dtype.
        teacher: TeacherHead, or dense logits ``[..., V]``, SparseTeacher, SampledTeacher,
            PackedSampledTeacher. Never receives a gradient.
        labels: integer ``[...]``; ``spec.ignore_index`` marks tokens that do not count.
        student_bias: ``[V]``. Receives a gradient if it requires one.
        spec: what to compute; or pass fields of LossSpec as keywords instead.
        impl: as in ``kd_loss``. "eager" is differentiable plain torch: each chunk's logits are
            made again in backward, and its temporaries come on top of the chunk.
        max_chunk_bytes: the most that logits and their gradient in one chunk may take (a chunk
            has at least one token). None: 512 MiB on a CPU, 2 GiB elsewhere; smaller is slower
            below some 512 tokens a chunk, since every chunk reads the weight and adds to its
            gradient.
        mask: bool ``[...]``, True for tokens that count; besides or instead of labels.
        vocab_size: how many columns are real on both sides; the others are not computed.
        num_tokens: denominator of "mean" instead of the tokens that count.
        student_layers, teacher_layers: the matched layers of the hidden term, as
            ``student_hidden`` and ``teacher_hidden`` of ``kd_loss``.
        hidden_mask, hidden_projection: of the hidden term, as in ``kd_loss``.
        skip_below: on CPUs, leave a column of a chunk out of both matrix products of the gradient
            where |d loss / d logit| of none of its tokens exceeds this, a token's weight in the
            loss being 1 (so before "mean" divides by N). cut-cross-entropy takes 2^-12; near a
            teacher that is matched already, gradients are as small, and so must this be.
            Then an entry d of a hidden gradient is off by at most
            ``skip_below * sum_v |W_vd|``, and that of a weight by ``skip_below * sum_n |h_nd|``,
            both divided by N for "mean". Rows of the weight whose columns are kept are copied,
            half of it at most. None: exact. Refused under torch.compile and where the loss is
            eager.
        process_group: the processes that share the vocabulary, or None. Each holds its own rows
            of ``student_weight`` and ``student_bias``, its columns of a dense teacher and its
            rows of a TeacherHead, and everything else alike; ``vocab_size``, over all of them,
            must be given. The gradient of ``student_hidden`` is then summed over the group.
            Runs in plain torch, chunk by chunk. The first call with a group exchanges where each
            process's columns lie, and raises if they are not the whole vocabulary; later calls
            exchange nothing but what the loss needs, and a compiled first call cannot look.
        vocab_start: the first of this process's ids.
        **fields: fields of LossSpec, instead of ``spec``.

    Returns:
        LossOutput as of ``kd_loss``. With reduction "none", backward goes through all chunks
        once more.

    Raises:
        ValueError, TypeError: arguments that do not go together; the message says which and how.
        RuntimeError: ``impl="fused"`` where there is no such kernel; the message says why.
    """
    spec = resolved_spec(FUNCTION, spec, fields)
    checks.head(FUNCTION, "student_", student_hidden, student_weight, student_bias)
    checks.positive(FUNCTION, "max_chunk_bytes", max_chunk_bytes)
    if skip_below is not None:
        checks.not_negative(FUNCTION, "skip_below", skip_below)
        if student_hidden.device.type != "cpu":
            raise checks.skip_below_off_cpu(student_hidden.device)
        if torch.compiler.is_compiling():
            raise checks.skip_below_traced()
    shard = _shard(process_group, vocab_start, vocab_size)
    flat = rows.flatten(
        student_hidden,
        teacher,
        labels,
        student_layers,
        teacher_layers,
        tokens=Tokens(FUNCTION, student_hidden.shape[:-1], student_hidden.device, "layers"),
        num_columns=len(student_weight),
        is_sharded=shard is not None,
        spec=spec,
        mask=mask,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        hidden_mask=hidden_mask,
        hidden_projection=hidden_projection,
    )
    flat.check_ids()
    num_columns = flat.vocab_size
    if shard is not None:  # as many rows a chunk on every process, whose exchanges are in step
        if not torch.compiler.is_compiling():
            shard.check_cover(len(student_weight))
        flat = replace(flat, vocab_size=shard.num_real(len(student_weight)))
        num_columns = shard.mean_columns
    dtype = _logits_dtype(student_hidden)
    needs_grad = torch.is_grad_enabled()
    bytes_of_row = linear_chunks.row_bytes(flat.teacher, num_columns, dtype, needs_grad=needs_grad)
    sums = replace(spec, reduction="none" if spec.reduction == "none" else "sum")
    plan = linear_fused.Plan(
        spec=sums,
        chunks=linear_chunks.bounds(
            len(flat.student), bytes_of_row, max_chunk_bytes, student_hidden.device
        ),
        dtype=dtype,
        skip_below=skip_below,
        shard=shard,
    )
    if _computes_gradients_in_forward(flat, spec, impl, shard):
        loss, kd, ce = linear_fused.run(flat, plan, student_weight, student_bias)
    else:
        if skip_below is not None:
            raise checks.skip_below_eager(
                "impl='eager'" if impl == "eager" else str(ops.not_fusible(flat, spec))
            )
        loss, kd, ce = _eager(flat, plan, student_weight, student_bias)
    hidden = _hidden_term(flat, sums, impl)
    parts = [loss + hidden.loss, kd.detach(), ce.detach(), hidden.hidden.expand_as(loss)]
    if spec.reduction == "none":
        return LossOutput(*(part.view(student_hidden.shape[:-1]) for part in parts))
    if spec.reduction == "mean":
        denominator = flat.denominator(flat.counts())
        parts = [part / denominator for part in parts]
    return LossOutput(*parts)


def _shard(
    group: "ProcessGroup | None", vocab_start: int | None, vocab_size: int | None
) -> Shard | None:
    if group is None and vocab_start is None:
        return None
    if group is None or vocab_start is None or vocab_size is None:
        raise checks.shard_incomplete(group is not None, vocab_start, vocab_size)
    checks.not_negative(FUNCTION, "vocab_start", vocab_start)
    return Shard(group, vocab_start, vocab_size)


def _logits_dtype(hidden: Tensor) -> torch.dtype:
    """What torch.nn.functional.linear would return."""
    device_type = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return hidden.dtype
    return torch.get_autocast_dtype(device_type)


def _computes_gradients_in_forward(
    flat: rows.Rows, spec: LossSpec, impl: Impl | None, shard: Shard | None
) -> bool:
    if shard is None:
        return takes_fused(flat, spec, impl)
    if impl == "fused":
        raise checks.not_fused(FUNCTION, "a vocabulary split over processes has none")
    return True


def _eager(
    flat: rows.Rows, plan: linear_fused.Plan, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, kd, ce) by the reference; backward makes each chunk's logits again."""

    def of_chunk(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int
    ) -> Tensor:
        part = linear_fused.counted(replace(flat.part(begin, end), student=hidden))
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        out = reference.kd(linear_fused.with_logits(part, weight, bias), plan.spec)
        return torch.stack([out.loss, out.kd, out.ce])

    dtype = weight.dtype
    if dtype != torch.float64:  # autograd adds the chunks' gradients up in the dtype of these
        weight, bias = weight.float(), None if bias is None else bias.float()
    outputs = [
        checkpoint(of_chunk, flat.student[begin:end], weight, bias, begin, end, use_reentrant=False)
        for begin, end in plan.chunks
    ]
    return linear_fused.joined(outputs, plan.spec)


def _hidden_term(flat: rows.Rows, spec: LossSpec, impl: Impl | None) -> LossOutput:
    """The matched layers alone: rows without a vocabulary."""
    if not flat.hidden.student:
        zero = torch.zeros((), device=flat.student.device)
        return LossOutput(zero, zero, zero, zero)
    empty = flat.student.new_empty(len(flat.student), 0)
    alone = replace(
        flat, student=empty, teacher=empty, vocab_size=0, labels=None, mask=flat.counts()
    )
    spec = replace(spec, kd_weight=0.0, ce_weight=0.0)
    return ops.fused(alone, spec) if takes_fused(alone, spec, impl) else reference.kd(alone, spec)
