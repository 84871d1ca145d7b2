"""Compiles the gates' launches, and one that must fail, and prints a JSON object a line.

A process of its own: kernels that were imported for the interpreter cannot be compiled.
"""

import dataclasses
import json

from mkd_fast.kernels import gate_cases, gates

for report in gates.reports(gate_cases.COMPILED_BY_TESTS):
    print(json.dumps(dataclasses.asdict(report)))  # noqa: T201

(launch,) = (
    launch for launch in gate_cases.Case("oversized", 8192).launches(32) if launch.is_register_bound
)
for target, gpu in gates.TARGETS.items():  # 64 threads for 32,768 columns
    oversized = dataclasses.replace(
        launch, num_warps=64 // gpu.warp_size, arguments=launch.arguments | {"BLOCK": 32768}
    )
    print(json.dumps(dataclasses.asdict(gates.compile_launch("oversized", oversized, target))))  # noqa: T201
