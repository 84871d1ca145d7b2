"""What the compile gates (gates.py) compile: shapes and options, planned as for real tensors."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkd_fast.kernels import dense_kd, sparse_kd
from mkd_fast.kernels.arguments import Inputs, Options
from mkd_fast.kernels.covering import covering_rows
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
    row_stride: int | None = None  # num_columns, or more where rows are parts of wider ones
    target: str | None = None  # the only one that it is compiled for
    is_bare: bool = False  # logits and hidden states alone: every load is one of theirs

    def launches(self, warp_size: int) -> list[Launch]:
        """Everything that one call launches."""
        return dense_kd.plan(self.inputs(), self.rows(self.teacher), self.options(), warp_size)[0]

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Logits of one side."""
        width = self.row_stride or self.num_columns
        return on_meta(_NUM_TOKENS, width, dtype=dtype)[:, : self.num_columns]

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
            student=self.rows(self.student),
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
# Each kernel with the options that use most registers.
COMPILED_BY_TESTS: tuple[Case, ...] = (
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
    Case("32k, parts of odd rows, jeffreys", 32000, "jeffreys", row_stride=32001),
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
    SparseCase("32k, top-k, parts of odd rows", 32000, row_stride=32001),
)

_DIVERGENCES: tuple[dict[str, Any], ...] = (
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jeffreys"},
    {"divergence": "jsd"},
    {"divergence": "skew_forward_kl"},
    {"divergence": "skew_reverse_kl"},
    {"divergence": "skew_forward_kl", "beta": 1.0},
    {"divergence": "tvd"},
    {"divergence": "alpha_beta"},
    {"divergence": "alpha_beta", "alpha": 0.0},
    {"divergence": "alpha_beta", "beta": 0.0},
    {"divergence": "alpha_beta", "alpha": 0.3, "beta": -0.3},
    {"divergence": "alpha_beta", "alpha": 0.0, "beta": 0.0},
    {"divergence": "logit_mse"},  # last: not of sparse teachers
)
_DTYPES: tuple[dict[str, Any], ...] = (
    {},
    _FLOAT32,
    {"teacher": torch.float32},
    {"student": torch.float16, "hidden": torch.float16},
)
_HIDDEN_STATES: tuple[dict[str, Any], ...] = (
    {"teacher_hidden": torch.int8},
    {"teacher_hidden": torch.bfloat16},
    {"hidden": torch.float32},
)
_OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"softcap": 30.0},
    {"distance": "cosine"},
    {"reduction": "none"},
    {"is_bare": True},
    {"has_gradient": False},
    {"temperature": 1.0},
)
_TILE_COLUMNS = 8192
_TABLE_COLUMNS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, _TILE_COLUMNS, 32000)
_SPARSE_TABLE_COLUMNS = (256, 512, 1024, 32000)


def _each_configuration() -> Iterator[Case]:
    """Every entry of the launch tables with other options in turn; long rows of each divergence."""
    divergences = itertools.cycle(_DIVERGENCES)
    sparse_divergences = itertools.cycle(_DIVERGENCES[:-1])
    tails = itertools.cycle(("bucket", "uniform", "renormalize", "drop"))
    others = itertools.cycle(_OTHERS)
    float32 = {"student": torch.float32, "teacher": torch.float32}
    for num_columns, hidden in itertools.product(_TABLE_COLUMNS, _HIDDEN_STATES):
        for dtypes in ({}, float32) if num_columns > _TILE_COLUMNS else ({},):
            yield _named(Case, num_columns, next(divergences) | next(others) | hidden | dtypes)
    for fields in _DIVERGENCES:
        yield _named(Case, 250002, fields)
    for num_columns, hidden in itertools.product(_SPARSE_TABLE_COLUMNS, _HIDDEN_STATES):
        for dtypes in ({}, float32):
            fields = next(sparse_divergences) | next(others) | hidden | dtypes
            yield _named(SparseCase, num_columns, fields | {"tail": next(tails)})


def _named(kind: type[Case], num_columns: int, fields: dict[str, Any]) -> Case:
    words = " ".join(f"{key}={value}".replace("torch.", "") for key, value in fields.items())
    op = "sparse_kd" if kind is SparseCase else "dense_kd"
    return kind(f"{op} {num_columns} {words}", num_columns, **fields)


# Those of the committed table, benchmarks/results/gates.
CASES = (*COMPILED_BY_TESTS, *_each_configuration())

_PAIRED: dict[str, Any] = {
    "num_columns": (16, 64, 256, 1024, 4096, 8192, 32000, 50280, 250002),
    "dtypes": _DTYPES,
    "hidden": ({}, *_HIDDEN_STATES),
    "distance": ({"distance": "mse"}, {"distance": "cosine"}),
    "softcap": ({"softcap": 0.0}, {"softcap": 30.0}),
    "temperature": ({"temperature": 2.0}, {"temperature": 1.0}),
    "reduction": ({"reduction": "mean"}, {"reduction": "none"}),
    "gradient": ({"has_gradient": True}, {"has_gradient": False}),
    "bare": ({"is_bare": False}, {"is_bare": True}),
}
_SPARSE_PAIRED = _PAIRED | {"ids": ({"ids": torch.int32}, {"ids": torch.int64})}


def paired_cases(targets: Sequence[str]) -> Iterator[Case]:
    """Each pair of values of any two options, the target among them, in some case.

    All combinations were 200,000 a target: they are too many to compile, and what spills does so
    for one option more than the registers bear, or two.
    """

    def tails(*names: str) -> list[dict[str, str]]:
        return [{"tail": name} for name in names]

    divergences = {"divergence": _DIVERGENCES}
    sparse_divergences = {"divergence": _DIVERGENCES[:-1]}
    kept = {"tail": tails("bucket", "uniform", "renormalize", "drop")}
    for kind, options in (
        (Case, divergences | _PAIRED),
        (SparseCase, sparse_divergences | kept | _SPARSE_PAIRED),
        (SparseCase, {"tail": tails("sampled", "packed")} | _SPARSE_PAIRED),
    ):
        for row in covering_rows(options | {"target": [{"target": name} for name in targets]}):
            num_columns = row.pop("num_columns")
            yield _named(
                kind, num_columns, {k: v for part in row.values() for k, v in part.items()}
            )
