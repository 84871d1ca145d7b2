"""Made-up outputs of a teacher, of the shapes in which a cache returns them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkd_fast.data.batches import Batch, PickedBatch
from mkd_fast.losses import SampledTeacher, SparseTeacher, Teacher, TeacherHead
from mkd_fast.losses.targets import Int8Hidden
from mkd_fast.teacher.cache import CachedBatch, Fingerprints
from mkd_fast.teacher.cache.kinds import DTYPES, parse_keep
from mkd_fast.teacher.cache.manifest import Outputs, Plan
from mkd_fast.teacher.runners import outputs_of
from mkd_fast.train.config import Config


@dataclass(frozen=True)
class _Manifest:
    plan: Plan
    outputs: Outputs


@dataclass(frozen=True)
class MadeUpCache:
    """What a loss asks of a cache beside its batches."""

    manifest: _Manifest

    @classmethod
    def of(cls, config: Config, teacher: Any, hidden_layers: tuple[int, ...]) -> "MadeUpCache":
        """That a recipe would have captured of a teacher of this config."""
        plan = plan_of(config, hidden_layers)
        columns = teacher.get_text_config().vocab_size
        return cls(_Manifest(plan, outputs_of(teacher, plan, columns)))


def plan_of(config: Config, hidden_layers: tuple[int, ...]) -> Plan:
    """What a recipe's capture is asked for."""
    settings = config.capture
    return Plan(
        keep=parse_keep(settings.keep),
        vocab_size=None,
        logits_dtype="float32",
        last_hidden_dtype=None,
        temperatures=(config.loss.resolved_teacher_temperature,),
        proposal_exponent=1.0,
        seed=0,
        hidden_layers=hidden_layers,
        hidden_dtype=settings.hidden_dtype,
        shard_bytes=settings.shard_megabytes << 20,
        fingerprints=Fingerprints(),
    )


def made_up_target(config: Config, teacher: Any, batch: Batch, num_layers: int) -> CachedBatch:
    """What a recipe's cache would say of a batch.

    Args:
        config: the recipe.
        teacher: the config of its model.
        batch: of the student; where its tokens are picked, so are these.
        num_layers: hidden layers that are matched.
    """
    shape = tuple(batch.input_ids.shape)
    width = teacher.get_text_config().hidden_size
    dtype = config.capture.hidden_dtype

    def states() -> Tensor | Int8Hidden:
        if dtype == "int8":
            return Int8Hidden(_zeros(*shape, width, dtype=torch.int8), _zeros(*shape))
        return _zeros(*shape, width, dtype=DTYPES[dtype][1])

    has_label_a_text = config.task.kind == "sequence_classification"
    said_of = shape[:1] if has_label_a_text else shape
    mask = batch.attention_mask.bool()
    target = CachedBatch(
        _teacher(config, teacher, said_of), tuple(states() for _ in range(num_layers)), mask
    )
    return target.at(batch.positions) if isinstance(batch, PickedBatch) else target


def _teacher(config: Config, teacher: Any, shape: tuple[int, ...]) -> Teacher:
    kind, _, count = config.capture.keep.partition(":")
    text = teacher.get_text_config()
    if kind == "hidden":
        head = _zeros(1).expand(text.vocab_size, text.hidden_size)
        return TeacherHead(_zeros(*shape, text.hidden_size), head)
    if kind == "logits":
        is_of_labels = config.task.kind.endswith("classification")
        return _zeros(*shape, teacher.num_labels if is_of_labels else text.vocab_size)
    num_ids = int(count)
    ids = _zeros(*shape, num_ids, dtype=torch.int32)
    if kind == "topk":
        return SparseTeacher(ids, _zeros(*shape, num_ids), _zeros(*shape))
    return SampledTeacher(ids, _zeros(*shape, num_ids))


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)
