"""Cutting a vocabulary: which rows stay, ids that a config names, targets of the full one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from mkd_fast.checks import student as checks
from mkd_fast.files import write_atomically
from mkd_fast.losses import LossSpec, Teacher
from mkd_fast.losses.kept_columns import FUNCTION, Dropped, KeptColumns, device_of
from mkd_fast.losses.loss import resolved_spec

FILE = "token_map.safetensors"
# Lists of ids that are not to be generated: without a row there is none to be kept from it.
_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens")
_WORDS = ("bad_words_ids", "force_words_ids", "sequence_bias", "forced_decoder_ids")


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Ids of the full vocabulary and of the trimmed one.

    A cache of the full vocabulary serves the student that was trimmed:

        target = cache.batch(sample_ids)
        out = kd_loss(student_logits, token_map.target(target.teacher), token_map.labels(labels))

    Attributes:
        keep_token_ids: the full vocabulary's ids that were kept; new id i was keep_token_ids[i].
        old_to_new: int64 [old vocabulary], on the CPU: each old id's new one, -1 where dropped.
    """

    keep_token_ids: tuple[int, ...]
    old_to_new: Tensor
    _on: dict[torch.device, KeptColumns] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, keep_token_ids: Sequence[int] | Tensor, num_old: int) -> Self:
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

    def target(
        self,
        teacher: Teacher,
        *,
        spec: LossSpec | None = None,
        dropped: Dropped = "renormalize",
        **fields: Any,
    ) -> Teacher:
        """What a loss of the trimmed student takes, from what it takes of the full vocabulary.

        The teacher given that it says a kept token: p'_v = p_v / P(kept). `losses.kept_columns`
        derives what each kind knows of that.

        Args:
            teacher: logits, TeacherHead, SparseTeacher, SampledTeacher or PackedSampledTeacher of
                the full vocabulary, on any device, with any leading shape. A head's rows are taken
                when its weight is first seen.
            spec: of the loss, whose teacher temperature, logit scale and softcap a SparseTeacher's
                log_z belongs to.
            dropped: "renormalize" divides the mass of dropped tokens among the kept in proportion;
                "bucket", for a SparseTeacher with that tail, counts it as "any other token".
            **fields: fields of LossSpec, instead of ``spec``.

        Returns:
            The same kind, a PackedSampledTeacher unpacked. Where nothing that a SparseTeacher
            lists was kept, all slots are empty; where nothing that was sampled was, the token has
            neither loss nor gradient.

        Raises:
            ValueError: fewer columns than the full vocabulary, or a bucket where there is none.
            TypeError: not a teacher.
        """
        resolved = resolved_spec(FUNCTION, spec, fields)
        return self._columns(device_of(teacher)).target(teacher, resolved, dropped)

    def labels(self, labels: Tensor, ignore_index: int = -100) -> Tensor:
        """Labels in new ids, ignore_index where dropped; what is no id of the old stays."""
        return self._columns(labels.device).labels(labels, ignore_index)

    def new_ids(self, old_ids: Tensor) -> Tensor:
        """Token ids in new ids, on any device, -1 where dropped or no id of the old vocabulary."""
        return self._columns(old_ids.device).ids(old_ids)

    def _columns(self, device: torch.device) -> KeptColumns:
        if device not in self._on:
            needed = max(self.keep_token_ids) + 1
            columns = KeptColumns(self.rows.to(device), self.old_to_new.to(device), needed)
            self._on[device] = columns
        return self._on[device]

    def save(self, folder: str | Path) -> None:
        """Write the map into a model folder, where transformers does not mind it.

        Raises:
            OSError: it cannot be written; a file that was there is kept.
        """
        tensors = {"keep_token_ids": self.rows.to(torch.int32)}
        about = {"num_old": str(len(self.old_to_new))}
        write_atomically(Path(folder) / FILE, [save(tensors, about)])

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """The map of a model folder; None where it has none, its vocabulary being whole.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about, ids = file.metadata() or {}, file.get_tensor("keep_token_ids")
            return cls.of(ids, int(about["num_old"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise checks.token_map_damaged(path, error) from error

    def renumber(self, config: PretrainedConfig | GenerationConfig) -> None:
        """Replace the ids that a config names by their new ones.

        These are every `*_token_id`, a number or a list of them, and lists of forbidden tokens, of
        which those that were dropped go. What is no id of the vocabulary (-1, say) stays.

        Raises:
            ValueError: a `*_token_id` was not kept, or the config names words by their ids in a
                way that is not renumbered.
        """
        for name, value in list(vars(config).items()):
            if name.endswith("_token_id") and value is not None:
                old = [value] if isinstance(value, int) else list(value)
                new = [self._new_id(name, token_id) for token_id in old]
                setattr(config, name, new[0] if isinstance(value, int) else new)
            elif name in _FORBIDDEN and value is not None:
                kept = self.new_ids(torch.tensor(value, dtype=torch.int64))
                setattr(config, name, kept[kept >= 0].tolist())
            elif name in _WORDS and value:
                raise checks.words_by_id(name)

    def _new_id(self, name: str, old: int) -> int:
        if not 0 <= old < len(self.old_to_new):
            return old
        new = int(self.old_to_new[old])
        if new < 0:
            raise checks.special_tokens_dropped("copy_init", [f"{name} {old}"])
        return new
