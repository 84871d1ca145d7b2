"""The student's tokens: what everything else that has one row a token is checked against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks


@dataclass(frozen=True)
class Tokens:
    """Leading dimensions and device of the student, and the function that was called.

    Attributes:
        function: its public name, for errors.
        leading_shape: of the student; flattened it has N tokens.
        device: of the student.
        layers: what its arguments of matched layers are called: ``student_<layers>``.
    """

    function: str
    leading_shape: torch.Size
    device: torch.device
    layers: str = "hidden"

    def flat(self, argument: str, tensor: Tensor, *, trailing: int) -> Tensor:
        """Leading dimensions, which must be the student's, flattened to one."""
        leading = tensor.shape[: tensor.dim() - trailing]
        if leading != self.leading_shape:
            raise checks.leading_shape_mismatch(
                self.function, argument, self.leading_shape, leading
            )
        checks.on_device(self.function, argument, tensor, self.device)
        if len(leading) == 1:  # a view of it would be one more step of autograd
            return tensor
        return tensor.reshape(leading.numel(), *tensor.shape[len(leading) :])

    def flat_target(self, argument: str, tensor: Tensor, *, trailing: int) -> Tensor:
        """The same for what must not require a gradient."""
        if tensor.requires_grad:
            raise checks.teacher_requires_grad(self.function, argument)
        return self.flat(argument, tensor, trailing=trailing)
