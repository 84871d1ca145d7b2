"""Compiles the gates' launches, and one that must fail, and prints a JSON object a line.

A process of its own: kernels that were imported for the interpreter cannot be compiled.
"""

import dataclasses
import json

from mkd_fast.kernels import gates

for report in gates.reports(gates.CASES):
    print(json.dumps(dataclasses.asdict(report)))  # noqa: T201

(launch,) = (launch for launch in gates.Case("oversized", 8192).launches(32) if launch.grid > 1)
oversized = dataclasses.replace(
    launch, num_warps=4, arguments=launch.arguments | {"BLOCK": 16384, "ROWS": 1}
)
for target in gates.TARGETS:
    print(json.dumps(dataclasses.asdict(gates.compile_launch("oversized", oversized, target))))  # noqa: T201
