"""What a capture keeps of rows of logits: the largest, log_z, and draws; the op and its reference.

    log_z(T) = log sum_v exp(z_v / T)                  over the real vocabulary
    a draw   = the first id up to which the proposal, r proportional to exp(tau z / T), sums to
               more than a uniform number

C++ (``csrc/keep_logits.cpp``) does it in one walk over each row, in its own dtype. Plain torch, the
reference, serves other devices and builds without C++, in passes over float32 copies of some rows
at a time. Both keep the same logits and, but for draws on the boundary of two ids, the same draws;
where they round differently they write different bytes, so a cache names which it was made by.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mkd_fast.losses.ops import FUSED_DTYPES, missing_kernels

# M rows of logits of which N are kept, V vocabulary, K the largest of a row, C draws of a row

# float32 logits worked on at a time: what a CPU keeps in its cache, what fills a GPU
_CPU_CHUNK_BYTES = 2 << 20
_CHUNK_BYTES = 64 << 20

_library = torch.library.Library("mkd_fast", "FRAGMENT")
# logits [M, V]: rows may be strided, and only the first num_columns are real. rows int64 [N];
# uniforms float64 [N, C]. Results are those of Kept, float32 but where it says otherwise.
_library.define(
    "keep_logits(Tensor logits, Tensor rows, Tensor uniforms, *, int num_columns, int num_top,"
    " float[] temperatures, float draw_temperature, float proposal_exponent)"
    " -> (Tensor top_ids, Tensor top_logits, Tensor log_z, Tensor drawn, Tensor total,"
    " Tensor ratios)"
)


@dataclass(frozen=True)
class Asked:
    """What is to be kept of every row.

    Args:
        num_columns: real columns of the logits, the first.
        num_top: K, or 0.
        temperatures: for which log_z is kept.
        draw_temperature: T of the draws.
        proposal_exponent: tau.
    """

    num_columns: int
    num_top: int = 0
    temperatures: tuple[float, ...] = ()
    draw_temperature: float = 1.0
    proposal_exponent: float = 1.0

    @property
    def needs_ratios(self) -> bool:
        """Whether a draw has a weight other than 1 / N."""
        return self.proposal_exponent != 1.0


@dataclass(frozen=True, eq=False)
class Kept:
    """What was kept of N rows.

    Args:
        top_ids: int32 ``[N, K]``, by falling logit; of equals C++ takes the lowest id, and torch
            any.
        top_logits: ``[N, K]``.
        log_z: ``[N, temperatures]``.
        drawn: ids int32 ``[N, C]``, one for each uniform number, in their order.
        total: float64 ``[N, 1]``, the proposal's sum; not finite where a row's logits are not.
        ratios: p / r of each draw, float64 ``[N, C]``; ``[N, 0]`` where tau is 1.
    """

    top_ids: Tensor
    top_logits: Tensor
    log_z: Tensor
    drawn: Tensor
    total: Tensor
    ratios: Tensor

    def of_draws(self, begin: int, end: int) -> "Kept":
        """The same with some of the draws."""
        return replace(self, drawn=self.drawn[:, begin:end], ratios=self.ratios[:, begin:end])


@torch.library.register_fake("mkd_fast::keep_logits", lib=_library)  # type: ignore[untyped-decorator]
def _keep_logits_fake(
    logits: Tensor,
    rows: Tensor,
    uniforms: Tensor,
    *,
    num_top: int,
    temperatures: Sequence[float],
    proposal_exponent: float,
    **_: Any,
) -> tuple[Tensor, ...]:
    num_rows, num_draws = uniforms.shape

    def made(width: int, dtype: torch.dtype) -> Tensor:
        return logits.new_empty((num_rows, width), dtype=dtype)

    return (
        made(num_top, torch.int32),
        made(num_top, torch.float32),
        made(len(temperatures), torch.float32),
        made(num_draws, torch.int32),
        made(int(num_draws > 0), torch.float64),
        made(num_draws if proposal_exponent != 1.0 else 0, torch.float64),
    )


def rounds_as(logits: Tensor) -> str:
    """By what ``keep_logits`` keeps logits like these: ``"torch"``, or ``"C++ avx512"``.

    Captures of one name, on one build, write the same bytes.
    """
    if not _is_fused(logits):
        return "torch"
    return f"C++ {torch.ops.mkd_fast.cpu_capability()}"


def _is_fused(logits: Tensor) -> bool:
    return (
        logits.device.type == "cpu"
        and logits.dtype in FUSED_DTYPES
        and missing_kernels("cpu") is None
    )


def keep_logits(logits_MV: Tensor, rows: Tensor, asked: Asked, uniforms_NC: Tensor) -> Kept:
    """What is asked for of some rows.

    Args:
        logits_MV: as they come from the teacher, of any floating dtype.
        rows: which of them, int64 ``[N]``.
        asked: what to keep.
        uniforms_NC: numbers in [0, 1), float64; C may be 0.
    """
    if not _is_fused(logits_MV):
        return keep_logits_in_torch(logits_MV, rows, asked, uniforms_NC)
    return Kept(*torch.ops.mkd_fast.keep_logits(logits_MV, rows, uniforms_NC, **asdict(asked)))


def keep_logits_in_torch(
    logits_MV: Tensor, rows: Tensor, asked: Asked, uniforms_NC: Tensor
) -> Kept:
    """The same in plain torch, on any device."""
    chunk_bytes = _CPU_CHUNK_BYTES if logits_MV.device.type == "cpu" else _CHUNK_BYTES
    size = max(1, chunk_bytes // (4 * asked.num_columns))
    parts = []
    for begin in range(0, max(len(rows), 1), size):
        chunk = slice(begin, begin + size)
        z_NV = logits_MV[:, : asked.num_columns].index_select(0, rows[chunk]).float()
        parts.append(_kept_of(z_NV, asked, uniforms_NC[chunk]))
    return Kept(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Kept))
    )


def _kept_of(z_NV: Tensor, asked: Asked, uniforms_NC: Tensor) -> Kept:
    top = z_NV.topk(asked.num_top)
    log_z = [(z_NV if t == 1.0 else z_NV / t).logsumexp(-1) for t in asked.temperatures]
    return Kept(
        top.indices.to(torch.int32),
        top.values,
        torch.stack(log_z, -1) if log_z else z_NV.new_empty((len(z_NV), 0)),
        *_draws_of(z_NV, asked, uniforms_NC),
    )


def _draws_of(z_NV: Tensor, asked: Asked, uniforms_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, the proposal's sum, and ratios."""
    num_rows, num_draws = uniforms_NC.shape
    no_ratios = uniforms_NC.new_empty((num_rows, 0))
    if num_draws == 0:
        return no_ratios.to(torch.int32), no_ratios, no_ratios
    scaled_NV = (z_NV - z_NV.amax(-1, keepdim=True)).div_(asked.draw_temperature)
    proposal_NV = scaled_NV * asked.proposal_exponent if asked.needs_ratios else scaled_NV
    # in float64, since 250,000 columns of small probability vanish in a float32 sum
    upto_NV = proposal_NV.exp_().cumsum(-1, dtype=torch.float64)
    total_N1 = upto_NV[:, -1:]
    ids = torch.searchsorted(upto_NV, uniforms_NC * total_N1, right=True)
    # a product that was rounded up to the total would be one past the last
    ids = ids.clamp_(max=asked.num_columns - 1)
    if not asked.needs_ratios:
        return ids.to(torch.int32), total_N1, no_ratios
    log_ratio = (1 - asked.proposal_exponent) * scaled_NV.gather(-1, ids).double()
    ratios = (log_ratio + total_N1.log() - scaled_NV.double().logsumexp(-1, True)).exp()
    return ids.to(torch.int32), total_N1, ratios
