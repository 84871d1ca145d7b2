"""Distillation losses: the public functions, what they take and what they return."""

from mkd_fast.losses.hidden import hidden_loss
from mkd_fast.losses.linear import linear_kd_loss
from mkd_fast.losses.loss import KDLoss, kd_loss
from mkd_fast.losses.spec import LossOutput, LossSpec
from mkd_fast.losses.targets import (
    Int8Hidden,
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    Teacher,
    TeacherHead,
)

__all__ = [
    "Int8Hidden",
    "KDLoss",
    "LossOutput",
    "LossSpec",
    "PackedSampledTeacher",
    "SampledTeacher",
    "SparseTeacher",
    "Teacher",
    "TeacherHead",
    "hidden_loss",
    "kd_loss",
    "linear_kd_loss",
]
