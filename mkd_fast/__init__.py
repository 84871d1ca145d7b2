"""Fast knowledge distillation of multilingual transformers.

    import mkd_fast as mkd

    out = mkd.kd_loss(student_logits, teacher_logits, labels, temperature=2.0, ce_weight=0.5)
    out.loss.backward()

The loss needs torch alone; what runs teachers, copies students and reads recipes is imported
when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mkd_fast.losses import (
    Int8Hidden,
    KDLoss,
    LossOutput,
    LossSpec,
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    TeacherHead,
    hidden_loss,
    kd_loss,
    linear_kd_loss,
)

if TYPE_CHECKING:
    from mkd_fast.student import copy_init
    from mkd_fast.teacher.cache import TeacherCache
    from mkd_fast.teacher.capture import capture
    from mkd_fast.train import distill

_LAZY = {
    "TeacherCache": "mkd_fast.teacher",
    "capture": "mkd_fast.teacher",
    "copy_init": "mkd_fast.student",
    "distill": "mkd_fast.train",
}

__all__ = [
    "Int8Hidden",
    "KDLoss",
    "LossOutput",
    "LossSpec",
    "PackedSampledTeacher",
    "SampledTeacher",
    "SparseTeacher",
    "TeacherCache",
    "TeacherHead",
    "capture",
    "copy_init",
    "distill",
    "hidden_loss",
    "kd_loss",
    "linear_kd_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name's room when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
