"""What the compile gates (gates.py) compile: shapes and options, planned as for real tensors."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkd_fast.kernels import dense_kd, sparse_kd
from mkd_fast.kernels.arguments import Inputs, Options
from mkd_fast.kernels.launch import Launch

_NUM_TOKENS = 512
_NUM_POSITIONS = 16


@dataclass(frozen=True)
class Case:
    """A call of ``dense_kd``: a shape and its options, as a key of the launch table sees them."""

    name: str
    num_columns: int
    divergence: str = "forward_kl"
    alpha: float = 0.3
    beta: float = 0.5
    student: torch.dtype = torch.bfloat16
    teacher: torch.dtype = torch.bfloat16
    hidden: torch.dtype = torch.bfloat16
    teacher_hidden: torch.dtype | None = None  # that of the teacher's logits
    distance: str = "mse"
    temperature: float = 2.0
    softcap: float = 0.0
    reduction: str = "mean"
    has_gradient: bool = True
    is_bare: bool = False  # logits and hidden states alone: every load is one of theirs

    def launches(self, warp_size: int) -> list[Launch]:
        """Everything that one call launches."""
        teacher = on_meta(_NUM_TOKENS, self.num_columns, dtype=self.teacher)
        return dense_kd.plan(self.inputs(), teacher, self.options(), warp_size)[0]

    def inputs(self) -> Inputs:
        """What all loss ops take, on torch's meta device."""

        def layers(dtype: torch.dtype) -> list[Tensor]:
            return [
                on_meta(_NUM_TOKENS, _NUM_POSITIONS, width, dtype=dtype) for width in (384, 768)
            ]

        def unless_bare(*shape: int, dtype: torch.dtype) -> Tensor | None:
            return None if self.is_bare else on_meta(*shape, dtype=dtype)

        scales = [on_meta(_NUM_TOKENS, _NUM_POSITIONS, dtype=torch.float32)] * 2
        return Inputs(
            student=on_meta(_NUM_TOKENS, self.num_columns, dtype=self.student),
            labels=unless_bare(_NUM_TOKENS, dtype=torch.int64),
            mask=unless_bare(_NUM_TOKENS, dtype=torch.bool),
            num_tokens=None,
            student_hidden=layers(self.hidden),
            teacher_hidden=layers(self.teacher_hidden or self.teacher),
            teacher_scale=scales if self.teacher_hidden == torch.int8 else [],
            hidden_mask=unless_bare(_NUM_TOKENS, _NUM_POSITIONS, dtype=torch.bool),
        )

    def options(self) -> Options:
        """What all loss ops are told."""
        return Options(
            divergence=self.divergence,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            teacher_temperature=self.temperature,
            logit_scale=1.0,
            teacher_logit_scale=1.0,
            softcap=self.softcap,
            teacher_softcap=self.softcap,
            kd_scale=self.temperature**2,
            kd_weight=1.0,
            ce_weight=0.5,
            hidden_weight=0.5,
            hidden_distance=self.distance,
            vocab_size=self.num_columns,
            ignore_index=-100,
            reduction=self.reduction,
            needs_grad_student=self.has_gradient,
            needs_grad_hidden=self.has_gradient,
        )


@dataclass(frozen=True)
class SparseCase(Case):
    """A call of ``sparse_kd``."""

    tail: str = "bucket"
    ids: torch.dtype = torch.int32

    def launches(self, warp_size: int) -> list[Launch]:
        """Everything that one call launches."""
        kept = (_NUM_TOKENS, 64)
        if self.tail == "packed":
            entries = on_meta(*kept, 3, dtype=torch.uint8)
            teacher = sparse_kd.Teacher(entries, None, None, self.tail, id_bits=18, num_draws=50)
        else:
            ids, values = (on_meta(*kept, dtype=dtype) for dtype in (self.ids, self.teacher))
            log_z = on_meta(_NUM_TOKENS, dtype=torch.float32)
            teacher = sparse_kd.Teacher(ids, values, log_z, self.tail)
        return sparse_kd.plan(self.inputs(), teacher, self.options(), warp_size)[0]


def on_meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


_FLOAT32: dict[str, Any] = {
    "student": torch.float32,
    "teacher": torch.float32,
    "hidden": torch.float32,
}
_INT8_COSINE: dict[str, Any] = {"teacher_hidden": torch.int8, "distance": "cosine"}
# Each kernel with the options that use most registers, at each entry of the launch table.
CASES = (
    Case("64 columns", 64),
    Case("28 intents, jsd", 32, "jsd", **_FLOAT32),
    Case("longest tile, jsd", 8192, "jsd"),
    Case("longest tile, jeffreys", 8192, "jeffreys", **_FLOAT32),
    Case("32k", 32000),
    Case("32k, float32 teacher", 32000, "jsd", teacher=torch.float32),
    Case("128k, reverse", 128256, "reverse_kl"),
    Case("128k, jeffreys, float32", 128256, "jeffreys", **_FLOAT32),
    Case("XLM-R, rows not aligned", 250002, "jeffreys"),
    Case("XLM-R, jsd, one value a token", 250002, "jsd", reduction="none"),
    Case("64 columns, cosine, int8 states", 64, **_INT8_COSINE),
    Case("32k, cosine, int8 states", 32000, **_INT8_COSINE, hidden=torch.float32),
    Case("8k, bare, cosine", 8192, distance="cosine", is_bare=True),
    Case("32k, bare, int8 states", 32000, teacher_hidden=torch.int8, is_bare=True),
    Case("longest tile, skew", 8192, "skew_forward_kl", teacher=torch.float32),
    Case("longest costly tile", 4096, "alpha_beta", teacher=torch.float32, softcap=30.0),
    Case("XLM-R, skew, softcap", 250002, "skew_forward_kl", teacher=torch.float32, softcap=30.0),
    Case("XLM-R, a limit of alpha_beta, softcap", 250002, "alpha_beta", beta=0.0, softcap=30.0),
    Case("64 columns, bare", 64, is_bare=True),
    Case("28 intents, bare", 28, is_bare=True, **_FLOAT32),
    Case("8k, bare", 8192, is_bare=True),
    Case("32k, bare", 32000, is_bare=True),
    Case("32k, squared error, bare", 32000, "logit_mse", is_bare=True),
    Case("50,280, bare: no multiple of 16", 50280, is_bare=True),
    Case("128k, bare", 128256, "jsd", is_bare=True, **_FLOAT32),
    Case("XLM-R, bare", 250002, is_bare=True),
    SparseCase("60 columns, top-k", 60, **_FLOAT32),
    SparseCase("32k, top-k", 32000),
    SparseCase("128k, top-k, jeffreys, softcap", 128256, "jeffreys", softcap=30.0),
    SparseCase("128k, top-k renormalized, jsd", 128256, "jsd", tail="renormalize", **_FLOAT32),
    SparseCase("XLM-R, top-k, jsd, int64 ids", 250002, "jsd", ids=torch.int64, **_FLOAT32),
    SparseCase("XLM-R, top-k, alpha_beta", 250002, "alpha_beta"),
    SparseCase("32k, top-k uniform", 32000, tail="uniform"),
    SparseCase(
        "128k, top-k uniform, jeffreys, softcap", 128256, "jeffreys", tail="uniform", softcap=30.0
    ),
    SparseCase(
        "XLM-R, top-k uniform, jsd, int64 ids",
        250002,
        "jsd",
        tail="uniform",
        ids=torch.int64,
        **_FLOAT32,
    ),
    SparseCase("XLM-R, top-k dropped, alpha_beta", 250002, "alpha_beta", tail="drop", softcap=30.0),
    SparseCase("XLM-R, sampled, one value a token", 250002, tail="sampled", reduction="none"),
    SparseCase("128k, packed", 128256, tail="packed"),
)

_COLUMNS = (16, 64, 256, 1024, 4096, 8192, 32000, 250002)
_DIVERGENCES: tuple[dict[str, Any], ...] = (
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jeffreys"},
    {"divergence": "jsd"},
    {"divergence": "skew_forward_kl"},
    {"divergence": "skew_reverse_kl"},
    {"divergence": "skew_forward_kl", "beta": 1.0},
    {"divergence": "tvd"},
    {"divergence": "logit_mse"},
    {"divergence": "alpha_beta"},
    {"divergence": "alpha_beta", "alpha": 0.0},
    {"divergence": "alpha_beta", "beta": 0.0},
    {"divergence": "alpha_beta", "beta": -0.3},
    {"divergence": "alpha_beta", "alpha": 0.0, "beta": 0.0},
)
_DTYPES: tuple[dict[str, Any], ...] = (
    {},
    _FLOAT32,
    {"teacher": torch.float32},
    {"student": torch.float16, "hidden": torch.float16},
)
_OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"softcap": 30.0},
    {"temperature": 1.0},
    {"has_gradient": False},
    _INT8_COSINE,
)


def all_cases() -> Iterator[Case]:
    """The full grid: table entries x divergences x dtypes x one other option at a time.

    An interrupted run has seen every table entry and divergence with the first of the others.
    """
    for *parts, num_columns in itertools.product(_OTHERS, _DTYPES, _DIVERGENCES, _COLUMNS):
        fields = {name: value for part in reversed(parts) for name, value in part.items()}
        name = " ".join(f"{key}={value}".replace("torch.", "") for key, value in fields.items())
        yield Case(f"{num_columns} {name}", num_columns, **fields)
