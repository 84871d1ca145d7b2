"""Searches launch configurations of ``dense_kd`` on the GPU at hand.

``python -m mkd_fast.benchmarks.tune`` prints a row of kernels/launch.py's table for each shape, the
fastest that computes the right thing. A configuration is a variant of a benchmark's case like any
other: judged against float64, and timed in turns with that of the table.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch

from mkd_fast import LossSpec
from mkd_fast.benchmarks import dense_kd
from mkd_fast.benchmarks.case import dtype_name
from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.harness import TINY, Effort, measure
from mkd_fast.benchmarks.inputs import Inputs, Outputs, Run
from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.kernels import arguments, launch, plan
from mkd_fast.kernels import dense_kd as kernel
from mkd_fast.losses.ops import spec_options

_EFFORT = Effort(warmup_s=0.02, measure_s=0.5, min_rounds=5, max_rounds=50)
_SPEC = LossSpec(temperature=TEMPERATURE, ce_weight=CE_WEIGHT)
_NUM_ROWS = 2048

COLUMNS = (
    "dtype", "num_columns", "is_table", *(field.name for field in fields(launch.LaunchConfig)),
    "p50_ms", "ratio", "share_of_limit",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What the launch table distinguishes."""

    dtype: torch.dtype
    num_columns: int

    def config(self, warp_size: int) -> launch.LaunchConfig:
        """The table's own."""
        size = self.dtype.itemsize
        return launch.dense_kd_config(
            self.num_columns,
            logit_bytes=(size, size),
            warp_size=warp_size,
            is_aligned=self.num_columns % 8 == 0,
        )


ENTRIES = tuple(
    Entry(dtype, num_columns)
    for num_columns in (128_256, 32_000, 60, 8192, 250_002, 1024)
    for dtype in (torch.bfloat16, torch.float32)
)
_TINY_ENTRIES = (Entry(torch.bfloat16, 60),)


def candidates(entry: Entry, warp_size: int) -> list[launch.LaunchConfig]:
    """The table's configuration, then others with the same kernel that may be faster."""
    table = entry.config(warp_size)
    elements = 16 // entry.dtype.itemsize  # of one load
    if table.kernel == "tile":
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
        num_rows = 2 if is_tiny else _NUM_ROWS
        shape = dense_kd.Shape(entry.dtype, num_rows, entry.num_columns)
        configs = candidates(entry, warp_size)[: 2 if is_tiny else None]
        by_name = {f"candidate {number}": config for number, config in enumerate(configs)}
        variants = {name: _run_of(config) for name, config in by_name.items()}
        case = replace(dense_kd.make_case(shape, device), variants=variants, budgets=())
        timings = measure(case, device, limit, TINY if is_tiny else _EFFORT).timings
        for timing in sorted(timings, key=lambda timing: timing.p50_ms):
            config = by_name[timing.variant]
            yield {
                "dtype": dtype_name(entry.dtype),
                "num_columns": entry.num_columns,
                "is_table": config == configs[0],
                **asdict(config),
                "p50_ms": timing.p50_ms,
                "ratio": timing.ratio,
                "share_of_limit": timing.share_of_limit,
            }


def _run_of(config: launch.LaunchConfig) -> Run:
    """The op as it is run with one configuration, below autograd."""

    def run(inputs: Inputs) -> Outputs:
        student, teacher, labels = (tensor.detach() for tensor in inputs.tensors)
        options = arguments.Options(
            **spec_options(_SPEC),
            vocab_size=student.shape[1],
            needs_grad_student=True,
            needs_grad_hidden=False,
        )
        launches, results = kernel.plan(
            arguments.Inputs.of(student, labels, None, None, [], [], [], None),
            teacher,
            options,
            launch.warp_size_of(student.device),
            config,
        )
        plan.run(launches, student)
        loss, grad = results[0], results[4]
        return loss, grad

    return run


def table_rows(rows: Sequence[dict[str, object]]) -> list[str]:
    """For each shape its fastest configuration, and how far the table's is behind it."""
    fastest: dict[tuple[object, object], dict[str, object]] = {}
    for row in rows:
        fastest.setdefault((row["dtype"], row["num_columns"]), row)
    names = [field.name for field in fields(launch.LaunchConfig)]
    return [
        f"{dtype}, {num_columns} columns: "
        f"LaunchConfig({', '.join(f'{name}={row[name]!r}' for name in names)})"
        f"  # {row['ratio']:.2f} of the table's time"
        for (dtype, num_columns), row in fastest.items()
    ]


def main() -> None:
    """Search, and print the rows."""
    rows = list(search(torch.device("cuda")))
    print("\n".join(table_rows(rows)))


if __name__ == "__main__":
    main()
