"""AdamW whose moments are kept in 8 bits: torchao's, a piece of each parameter at a time.

torchao's own step has two faults here: it compiles a function for each shape of a parameter, which
needs a C++ compiler on a CPU; and it moves on when a gradient is not finite. Run uncompiled, it
also holds some ten times the largest parameter. Its blocks of 256 numbers are quantised on their
own, so a step over pieces of whole blocks gives the same numbers; the nearest of 256 is found by
``bucketize``, in half the time of torchao's eight look-ups:

    m, v    <- beta m + (1 - beta) g,  likewise with g^2     from and back to 8 bits
    p       <- p - lr wd p - lr m^ / (sqrt(v^) + eps)        with m^, v^ in float32, before rounding

Source: "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861; torchao.optim.AdamW8bit.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import train as checks

# Numbers of a piece: large enough to keep a device busy, and ten float32 copies are 40 MB.
_PIECE = 1 << 20


def adamw8bit(groups: Iterable[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer; a parameter of fewer than 4,096 numbers keeps moments in its own dtype.

    Where ``found_inf`` is set and not 0, a step changes nothing.

    Raises:
        RuntimeError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise checks.no_low_bit_optimizer(error) from error

    class Stepping(AdamW8bit):  # type: ignore[misc]  # torchao has no types
        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            """A step."""
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group)

        def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = self._new_buffer(parameter, signed=True)
                state["exp_avg_sq"] = self._new_buffer(parameter, signed=False)
            found_inf = getattr(self, "found_inf", None)
            moves = None if found_inf is None else found_inf == 0
            state["step"] += 1 if moves is None else moves
            moments = [_Moment(_local(state[name])) for name in ("exp_avg", "exp_avg_sq")]
            whole = _local(parameter).view(-1), _local(parameter.grad).reshape(-1)
            for begin in range(0, len(whole[0]), _PIECE):
                end = min(begin + _PIECE, len(whole[0]))
                piece, grad = (tensor[begin:end] for tensor in whole)
                _step_piece(piece, grad, moments, (begin, end), group, state["step"], moves)

    return Stepping(groups, lr=learning_rate)


def _local(tensor: Any) -> Any:
    """This process's part of a tensor that several share."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class _Moment:
    """A moment in float32 by pieces, however it is kept."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept
        self._is_quantised = hasattr(kept, "codes")
        if self._is_quantised:
            self._codes, self._block = kept.codes.view(-1), kept.block_size
        else:
            self._values = kept.view(-1)

    def read(self, begin: int, end: int) -> Tensor:
        """Numbers of a piece."""
        if not self._is_quantised:
            values: Tensor = self._values[begin:end].float()
            return values
        scale = self._kept.scale[begin // self._block : end // self._block]
        found = self._kept.qmap.index_select(0, self._codes[begin:end].int())
        made: Tensor = (found.view(-1, self._block) * scale[:, None]).view(-1)
        return made

    def write(self, begin: int, end: int, values: Tensor, moves: Tensor | None) -> None:
        """Keep them, where the step moves."""
        if not self._is_quantised:
            _put(self._values[begin:end], values, moves)
            return
        from torchao.optim.quant_utils import scale_tensor

        scaled, scale = scale_tensor(values, self._block)
        below, above = self._kept.qmap[:-1], self._kept.qmap[1:]
        middles = below + (above - below) * 0.5
        codes = torch.bucketize(scaled, middles, out_int32=True, right=True)  # the nearest
        _put(self._codes[begin:end], codes, moves)
        _put(self._kept.scale[begin // self._block : end // self._block], scale, moves)


def _step_piece(
    piece: Tensor,
    grad: Tensor,
    moments: list[_Moment],
    place: tuple[int, int],
    group: dict[str, Any],
    step: Tensor,
    moves: Tensor | None,
) -> None:
    grad = grad.float()
    first, second = (moment.read(*place) for moment in moments)
    beta1, beta2 = group["betas"]
    first = first.lerp(grad, 1 - beta1)
    second = second.lerp(grad.square(), 1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    learning_rate = group["lr"]
    moved = piece.float() * (1 - learning_rate * group["weight_decay"])
    moved = moved - learning_rate * (first / (1 - beta1**step)) / denominator
    _put(piece, moved, moves)
    for moment, values in zip(moments, (first, second), strict=True):
        moment.write(*place, values, moves)


def _put(kept: Tensor, values: Tensor, moves: Tensor | None) -> None:
    """Overwrite, or leave as it is where the step does not move; no wait for the device."""
    kept.copy_(values if moves is None else torch.where(moves, values.to(kept.dtype), kept))
