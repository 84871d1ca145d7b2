"""What a teacher can hand over besides dense logits and hidden states.

A dense teacher is a plain tensor of logits ``[..., V]``. The kinds here are what a teacher leaves
behind when its logits are too large to keep: the few largest of them, a random sample of its
distribution, or the last hidden states with the head that turns them into logits. Hidden states
may be kept in eight bits. None of them ever receives a gradient.
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
class PackedSampledTeacher:
    """A SampledTeacher drawn at tau = 1 as a cache keeps it: three bytes an entry.

    An entry is a 24-bit little-endian number: the id in its low ``id_bits``, and above them how
    often it was drawn, 0 in an empty slot. The weight of an id is count / ``num_draws``.

    Args:
        entries: uint8 ``[..., K, 3]``, ids distinct within a token.
        num_draws: N.
        id_bits: 18 holds ids below 262,144 and counts below 64.
    """

    entries: Tensor
    num_draws: int
    id_bits: int = 18

    def unpacked(self) -> SampledTeacher:
        """The same with ids int32 and weights float32, ``[..., K]``."""
        low, middle, high = self.entries.int().unbind(-1)
        packed = low | middle << 8 | high << 16
        counts = packed >> self.id_bits
        ids = (packed & ((1 << self.id_bits) - 1)).masked_fill(counts == 0, -1)
        return SampledTeacher(ids, counts.float() / self.num_draws)


@dataclass(frozen=True, eq=False)
class Int8Hidden:
    """Hidden states in eight bits: ``values * scale[..., None]``.

    Args:
        values: int8 ``[..., D]``.
        scale: float32 ``[...]``, one a row.
    """

    values: Tensor
    scale: Tensor

    def dequantised(self) -> Tensor:
        """The states in float32, ``[..., D]``."""
        return self.values.float() * self.scale[..., None]


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


Teacher = Tensor | SparseTeacher | SampledTeacher | PackedSampledTeacher | TeacherHead
