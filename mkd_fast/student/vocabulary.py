"""Cutting a model's vocabulary: which rows stay, and the ids that its config names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from mkd_fast.checks import student as checks


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Ids of the full vocabulary and of the trimmed one.

    Attributes:
        keep_token_ids: the full vocabulary's ids that were kept; new id i was keep_token_ids[i].
        old_to_new: int64 [old vocabulary], on the CPU: each old id's new one, -1 where dropped.
    """

    keep_token_ids: tuple[int, ...]
    old_to_new: Tensor

    @classmethod
    def of(cls, keep_token_ids: Sequence[int] | Tensor, num_old: int) -> "TokenMap":
        """The map that gives keep_token_ids the new ids 0, 1, 2, ... in their order.

        Raises:
            ValueError: no ids, an id outside [0, num_old), or one that is there twice.
        """
        ids = torch.as_tensor(keep_token_ids, dtype=torch.int64, device="cpu").flatten()
        if (
            not len(ids)
            or ids.min() < 0
            or ids.max() >= num_old
            or len(set(ids.tolist())) < len(ids)
        ):
            raise checks.bad_keep_token_ids(ids.tolist(), num_old)
        old_to_new = torch.full((num_old,), -1, dtype=torch.int64)
        old_to_new[ids] = torch.arange(len(ids))
        return cls(tuple(ids.tolist()), old_to_new)

    @property
    def rows(self) -> Tensor:
        """keep_token_ids as an int64 tensor: the rows to take from a full table."""
        return torch.tensor(self.keep_token_ids)

    def renumber(self, config: PretrainedConfig | GenerationConfig) -> None:
        """Replace every `*_token_id` of config, a number or a list of them, by its new id.

        Raises:
            ValueError: config names an id that was not kept.
        """
        for name, value in list(vars(config).items()):
            if name.endswith("_token_id") and value is not None:
                old = [value] if isinstance(value, int) else list(value)
                new = [self._new_id(name, token_id) for token_id in old]
                setattr(config, name, new[0] if isinstance(value, int) else new)

    def _new_id(self, name: str, old: int) -> int:
        new = int(self.old_to_new[old]) if 0 <= old < len(self.old_to_new) else -1
        if new < 0:
            raise checks.special_tokens_dropped("copy_init", [f"{name} {old}"])
        return new
