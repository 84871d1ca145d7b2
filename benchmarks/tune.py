"""Searches launch configurations of ``dense_kd``, ``sparse_kd`` and ``hidden`` on the GPU at hand.

``python -m mkd_fast.benchmarks.tune`` prints a row of kernels/launch.py's table for each shape, the
fastest that computes the right thing. A configuration is a variant of a benchmark's case like any
other: judged against float64, and timed in turns with that of the table.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from mkd_fast import LossSpec
from mkd_fast.benchmarks import dense_kd, hidden, sparse_kd
from mkd_fast.benchmarks.case import Case, dtype_name
from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.harness import TINY, Effort, measure
from mkd_fast.benchmarks.inputs import Inputs, Outputs, Run
from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.kernels import arguments, launch, plan
from mkd_fast.kernels import dense_kd as dense_kernel
from mkd_fast.kernels import sparse_kd as sparse_kernel
from mkd_fast.losses.ops import spec_options

_EFFORT = Effort(warmup_s=0.02, measure_s=0.5, min_rounds=5, max_rounds=50)
_SPEC = LossSpec(temperature=TEMPERATURE, ce_weight=CE_WEIGHT)
_HIDDEN_SPEC = LossSpec(kd_weight=0.0, hidden_weight=1.0)
_NUM_ROWS = 2048

Op = Literal["dense_kd", "sparse_kd", "hidden"]
COLUMNS = (
    "op", "dtype", "num_columns", "is_table",
    *(field.name for field in fields(launch.LaunchConfig)), "p50_ms", "ratio", "share_of_limit",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What the launch table distinguishes; the columns of ``hidden`` are those of its states."""

    op: Op
    dtype: torch.dtype
    num_columns: int

    def config(self, warp_size: int) -> launch.LaunchConfig:
        """The table's own."""
        size = self.dtype.itemsize
        if self.op == "sparse_kd":
            return launch.sparse_kd_config(self.num_columns, logit_bytes=size, warp_size=warp_size)
        if self.op == "hidden":
            return launch.dense_kd_config(
                0, logit_bytes=(size, size), hidden_bytes=size, warp_size=warp_size
            )
        return launch.dense_kd_config(
            self.num_columns,
            logit_bytes=(size, size),
            warp_size=warp_size,
            is_aligned=self.num_columns % 8 == 0,
        )

    def case(self, device: torch.device, num_rows: int) -> Case:
        """The benchmark's, to be run with other configurations."""
        if self.op == "sparse_kd":
            num_kept = min(64, self.num_columns // 4)
            kept = sparse_kd.Shape(self.dtype, num_rows, self.num_columns, num_kept)
            return replace(sparse_kd.make_case(kept, device), yardsticks={})
        if self.op == "hidden":
            layers = hidden.Shape(self.dtype, num_tokens=num_rows, width=self.num_columns)
            return hidden.make_case(layers, device)
        return dense_kd.make_case(dense_kd.Shape(self.dtype, num_rows, self.num_columns), device)


# What matters most comes first: a search may be short of time.
_SHAPES: tuple[tuple[Op, int], ...] = (
    ("dense_kd", 128_256), ("sparse_kd", 128_256), ("hidden", 4096),
    ("dense_kd", 32_000), ("sparse_kd", 32_000), ("dense_kd", 60), ("hidden", 768),
    ("dense_kd", 8192), ("dense_kd", 250_002), ("sparse_kd", 250_002), ("dense_kd", 1024),
)  # fmt: skip
ENTRIES = tuple(
    Entry(op, dtype, num_columns)
    for dtype in (torch.bfloat16, torch.float32)
    for op, num_columns in _SHAPES
)
_TINY_ENTRIES = (
    Entry("dense_kd", torch.bfloat16, 60),
    Entry("sparse_kd", torch.bfloat16, 60),
    Entry("hidden", torch.bfloat16, 24),
)


def candidates(entry: Entry, warp_size: int) -> list[launch.LaunchConfig]:
    """The table's configuration, then others with the same kernel that may be faster."""
    table = entry.config(warp_size)
    elements = 16 // entry.dtype.itemsize  # of one load
    if entry.op == "hidden":
        others = [
            replace(
                table,
                hidden_rows=num_threads * elements // block,
                hidden_block=block,
                num_warps=num_threads // warp_size,
            )
            for num_threads, block in itertools.product((64, 128, 256, 512), (64, 128, 256))
        ]
    elif table.kernel == "tile":
        shapes = itertools.product(
            (table.rows, 2 * table.rows, max(1, table.rows // 2)), (64, 128, 256, 512)
        )
        others = [
            replace(table, rows=rows, num_warps=num_threads // warp_size)
            for rows, num_threads in shapes
            if rows * table.block <= 32 * num_threads  # more values a thread spill
        ]
    else:
        others = [
            replace(table, block=num_threads * elements * loads, num_warps=num_threads // warp_size)
            for num_threads, loads in itertools.product((128, 256, 512, 1024), (1, 2))
        ]
    return [table, *(config for config in dict.fromkeys(others) if config != table)]


def search(
    device: torch.device,
    *,
    is_tiny: bool = False,
    is_time_left: Callable[[], bool] = lambda: True,
) -> Iterator[dict[str, object]]:
    """A row for each configuration that is right, a shape's fastest first."""
    limit = StreamingLimit.on(device, is_tiny=is_tiny)
    warp_size = launch.warp_size_of(device)
    for entry in _TINY_ENTRIES if is_tiny else ENTRIES:
        if not is_time_left():
            return
        configs = candidates(entry, warp_size)[: 2 if is_tiny else None]
        by_name = {f"candidate {number}": config for number, config in enumerate(configs)}
        variants = {name: _run_of(entry.op, config) for name, config in by_name.items()}
        case = entry.case(device, 2 if is_tiny else _NUM_ROWS)
        case = replace(case, variants=variants, budgets=())
        timings = measure(case, device, limit, TINY if is_tiny else _EFFORT).timings
        for timing in sorted(timings, key=lambda timing: timing.p50_ms):
            config = by_name[timing.variant]
            yield {
                "op": entry.op,
                "dtype": dtype_name(entry.dtype),
                "num_columns": entry.num_columns,
                "is_table": config == configs[0],
                **asdict(config),
                "p50_ms": timing.p50_ms,
                "ratio": timing.ratio,
                "share_of_limit": timing.share_of_limit,
            }


def _run_of(op: str, config: launch.LaunchConfig) -> Run:
    """An op as it is run with one configuration, below autograd."""
    run_of = {"dense_kd": _run_dense, "sparse_kd": _run_sparse, "hidden": _run_hidden}[op]
    return lambda inputs: run_of(inputs, config)


def _run_dense(inputs: Inputs, config: launch.LaunchConfig) -> Outputs:
    student, teacher, labels = (tensor.detach() for tensor in inputs.tensors)
    launches, results = dense_kernel.plan(
        arguments.Inputs.of(student, labels, None, None, [], [], [], None),
        teacher,
        _options(_SPEC, student),
        launch.warp_size_of(student.device),
        config,
    )
    plan.run(launches, student)
    return results[0], results[4]


def _run_sparse(inputs: Inputs, config: launch.LaunchConfig) -> Outputs:
    inputs = inputs.without("teacher")
    student, labels, ids, logits, log_z = (tensor.detach() for tensor in inputs.tensors)
    launches, results = sparse_kernel.plan(
        arguments.Inputs.of(student, labels, None, None, [], [], [], None),
        sparse_kernel.Teacher(ids, logits, log_z, "bucket"),
        _options(_SPEC, student),
        launch.warp_size_of(student.device),
        config,
    )
    plan.run(launches, student)
    return results[0], results[4]


def _run_hidden(inputs: Inputs, config: launch.LaunchConfig) -> Outputs:
    """Layers [N, D] are one position a token; there are no logits."""
    layers = [tensor.detach()[:, None] for tensor in inputs.tensors]
    students, teachers = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    no_logits = students[0].new_empty(len(students[0]), 0)
    launches, results = dense_kernel.plan(
        arguments.Inputs.of(no_logits, None, None, None, students, teachers, [], None),
        no_logits,
        _options(_HIDDEN_SPEC, no_logits),
        launch.warp_size_of(no_logits.device),
        config,
    )
    plan.run(launches, no_logits)
    return results[0], *(grad[:, 0] for grad in results[5])


def _options(spec: LossSpec, student: Tensor) -> arguments.Options:
    return arguments.Options(
        **spec_options(spec),
        vocab_size=student.shape[1],
        needs_grad_student=spec.kd_weight != 0.0,
        needs_grad_hidden=spec.hidden_weight != 0.0,
    )


def table_rows(rows: Sequence[dict[str, object]]) -> list[str]:
    """For each shape its fastest configuration, and how far the table's is behind it."""
    fastest: dict[tuple[object, ...], dict[str, object]] = {}
    for row in rows:
        fastest.setdefault((row["op"], row["dtype"], row["num_columns"]), row)
    names = [field.name for field in fields(launch.LaunchConfig)]
    return [
        f"{op}, {dtype}, {num_columns} columns: "
        f"LaunchConfig({', '.join(f'{name}={row[name]!r}' for name in names)})"
        f"  # {row['ratio']:.2f} of the table's time"
        for (op, dtype, num_columns), row in fastest.items()
    ]


def main() -> None:
    """Search, and print the rows."""
    rows = list(search(torch.device("cuda")))
    print("\n".join(table_rows(rows)))


if __name__ == "__main__":
    main()
