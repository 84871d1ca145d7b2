"""What a teacher can hand over besides dense logits.

A dense teacher is a plain tensor of logits ``[..., V]``. The three kinds here are what a teacher
leaves behind when its logits are too large to keep: the few largest of them, a random sample of
its distribution, or the last hidden states with the head that turns them into logits.
None of them ever receives a gradient.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Tail = Literal["bucket", "renormalize", "drop", "uniform"]
TAILS: tuple[Tail, ...] = ("bucket", "renormalize", "drop", "uniform")


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """The K largest logits of each token and the log-partition of all of them.

    Args:
        ids: vocabulary ids, int ``[..., K]``, distinct within a token; -1 marks an empty slot.
        logits: the teacher's logits at those ids, ``[..., K]``, before any temperature.
        log_z: log-sum-exp over the *whole* vocabulary of logits / T_t, ``[...]``, float32, for
            the teacher temperature T_t that the loss is asked for.
        tail: what stands for the mass r = 1 - sum p_k that was not kept. ``"bucket"`` compares
            K + 1 events, the last being "any other id"; ``"renormalize"`` divides p_k by their
            sum; ``"drop"`` leaves p_k as they are; ``"uniform"`` spreads r over the other ids.
    """

    ids: Tensor
    logits: Tensor
    log_z: Tensor
    tail: Tail = "bucket"


@dataclass(frozen=True, eq=False)
class SampledTeacher:
    """Ids drawn from the teacher's distribution, with importance weights.

    The loss is ``-sum_i weight_i log q_i``: its expected gradient is that of the dense forward
    KL, the only divergence it serves, and its value leaves out the teacher's entropy, which a
    sample does not know.

    Args:
        ids: vocabulary ids, int ``[..., K]``, distinct within a token; -1 marks an empty slot.
        weights: ``(p_i / r_i) * count_i / N`` for N draws from the proposal r, ``[..., K]``.

    Source: "Sparse Logit Sampling", arXiv 2503.16870.
    """

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """Last hidden states and the head that makes logits of them: exact at any temperature.

    Args:
        hidden: ``[..., D_t]``.
        weight: ``[V, D_t]``, as in ``torch.nn.Linear``.
        bias: ``[V]`` or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


Teacher = Tensor | SparseTeacher | SampledTeacher | TeacherHead
