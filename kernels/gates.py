"""Compile gates: what every kernel costs on each target, found without a device.

``python -m mkd_fast.kernels.gates`` compiles the launches of benchmarks/results/gates and prints a
table; ``--all`` takes those in which every pair of options occurs, ``--json`` prints for programs.
What has been compiled before is read from Triton's cache, so that an interrupted run goes on.
The launches are planned as for real tensors, on torch's meta device, and handed to
``triton.compile``; registers, spills and shared memory are read from the binary. Run it without
TRITON_INTERPRET, which leaves nothing to compile.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mkd_fast.kernels.gate_cases import CASES, Case, paired_cases
from mkd_fast.kernels.launch import Launch
from mkd_fast.kernels.scale import launch_of_scale

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Report:
    """What one compiled launch uses.

    Attributes:
        name: case and kernel.
        target: a key of ``TARGETS``.
        registers: a thread's (vector registers on gfx942).
        spill_bytes: of stack and local memory a thread; 0 where nothing is spilled.
        scalar_spills: scalar registers that gfx942 keeps in lanes of vector registers, for want
            of more: a move each way, no memory. 0 elsewhere.
        shared_bytes: of a block, static and dynamic.
        wide_loads, wide_stores: 16-byte accesses to global memory in the code.
        narrow_loads, narrow_stores: all others.
        occupancy: warps resident on a multiprocessor, of those that fit, as far as registers
            and shared memory decide it.
    """

    name: str
    target: str
    num_warps: int
    registers: int
    spill_bytes: int
    scalar_spills: int
    shared_bytes: int
    wide_loads: int
    narrow_loads: int
    wide_stores: int
    narrow_stores: int
    occupancy: float


@dataclass
class _Source:
    """A launch as triton.compile wants it: types, constants and divisibility by path."""

    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]

    @classmethod
    def of(cls, launch: Launch) -> "_Source":
        source = cls({}, {}, {})
        for index, parameter in enumerate(launch.kernel.params):
            value = launch.arguments[parameter.name]
            if parameter.is_constexpr:
                source.constants[index,] = value
                source.signature[parameter.name] = "constexpr"
            else:
                source.signature[parameter.name] = source._type_of(value, (index,))
        return source

    def _type_of(self, value: Any, path: tuple[int, ...]) -> Any:
        """The type of one argument, specialised as a launch would specialise it."""
        if isinstance(value, tuple):
            types = [self._type_of(item, (*path, index)) for index, item in enumerate(value)]
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
        if value is None or (isinstance(value, int) and value == 1):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        is_tensor = isinstance(value, Tensor)
        if (value.storage_offset() * value.element_size() if is_tensor else value) % 16 == 0:
            self.attributes[path] = [["tt.divisibility", 16]]
        if is_tensor:
            return "*" + _TYPE_NAMES[value.dtype]
        return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_launch(name: str, launch: Launch, target: str) -> Report:
    """Compile one launch for one target and read what it uses from the binary."""
    source = _Source.of(launch)
    compiled = triton.compile(
        ASTSource(launch.kernel, source.signature, source.constants, source.attributes),
        target=TARGETS[target],
        options=launch.options(is_nvidia=TARGETS[target].backend == "cuda"),
    )
    if target.startswith("sm_"):
        usage = _nvidia_usage(compiled.asm["cubin"])
        assembly, wide = compiled.asm["ptx"], r"\.(?:v4\.b32|v2\.b64)\b"
        loads, stores = r"\bld\.global\S*", r"\bst\.global\S*"
    else:
        assembly, wide = compiled.asm["amdgcn"], "_dwordx4"
        usage = _amd_usage(assembly)
        loads, stores = r"\b(?:global|buffer)_load_\S+", r"\b(?:global|buffer)_store_\S+"
    registers, spill_bytes, scalar_spills, shared_bytes = usage
    shared_bytes = max(shared_bytes, compiled.metadata.shared)
    (wide_loads, narrow_loads), (wide_stores, narrow_stores) = (
        _count(assembly, accesses, wide) for accesses in (loads, stores)
    )
    return Report(
        name=_name_of(name, launch),
        target=target,
        num_warps=launch.num_warps,
        registers=registers,
        spill_bytes=spill_bytes,
        scalar_spills=scalar_spills,
        shared_bytes=shared_bytes,
        wide_loads=wide_loads,
        narrow_loads=narrow_loads,
        wide_stores=wide_stores,
        narrow_stores=narrow_stores,
        occupancy=_occupancy(target, launch.num_warps, registers, shared_bytes),
    )


def _name_of(case: str, launch: Launch) -> str:
    return f"{case}/{launch.kernel.__name__}"


def _count(assembly: str, accesses: str, wide: str) -> tuple[int, int]:
    """How many accesses to global memory are wide, and how many are not."""
    found = re.findall(accesses, assembly)
    num_wide = sum(re.search(wide, access) is not None for access in found)
    return num_wide, len(found) - num_wide


def _nvidia_usage(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers, stack and local bytes, no scalar spills, static shared bytes of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = {key: int(number) for key, number in re.findall(r"\b([A-Z]+):(\d+)", listing)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"], 0, usage["SHARED"]


def _amd_usage(assembly: str) -> tuple[int, int, int, int]:
    """Vector registers, scratch and spilled bytes, scalar spills, static shared bytes of a kernel.

    Scalar registers spill into lanes of vector ones; what has no room there is in the scratch.
    """

    def field(name: str) -> int:
        found = re.search(rf"^\s+\.{name}:\s+(\d+)", assembly, re.MULTILINE)
        assert found, f"AMDGCN metadata has no {name}"
        return int(found[1])

    spill_bytes = 4 * field("vgpr_spill_count") + field("private_segment_fixed_size")
    scalar_spills, shared_bytes = field("sgpr_spill_count"), field("group_segment_fixed_size")
    return field("vgpr_count"), spill_bytes, scalar_spills, shared_bytes


def _occupancy(target: str, num_warps: int, registers: int, shared_bytes: int) -> float:
    """Share of the multiprocessor's warps that registers and shared memory leave room for.

    64 K registers handed out by 256 to warps, 64 warps and 163 KB (sm_80) or 227 KB of shared
    memory, 1 KB of it reserved for each block; on gfx942 four SIMDs of 512 registers a lane,
    handed out by 8, with 8 waves each and 64 KB of shared memory.
    """
    if target == "gfx942":
        max_warps = 32
        by_registers = 4 * min(8, 512 // max(8, -(-registers // 8) * 8))
        memory, reserved = 64 * 1024, 0
    else:
        max_warps = 64
        by_registers = 65536 // (-(-registers * 32 // 256) * 256)
        memory, reserved = (163 if target == "sm_80" else 227) * 1024, 1024
    blocks = min(max_warps, by_registers) // num_warps
    if shared_bytes:
        blocks = min(blocks, memory // (shared_bytes + reserved))
    return blocks * num_warps / max_warps


def scale_launches() -> list[Launch]:
    """The launches of ``scale_``: one scale for all, and one a token."""
    grad = torch.empty(512, 32000, dtype=torch.bfloat16, device="meta")
    return [launch_of_scale(grad, grad.new_empty(shape)) for shape in ((), (512,))]


def planned(cases: Iterable[Case]) -> Iterator[tuple[str, str, int]]:
    """Name, target and number of warps of each of the reports, in order, without compiling."""
    for target in TARGETS:
        for launch in scale_launches():
            yield _name_of("scale", launch), target, launch.num_warps
    for case, target, index in _jobs(cases):
        launch = case.launches(TARGETS[target].warp_size)[index]
        yield _name_of(case.name, launch), target, launch.num_warps


def reports(cases: Iterable[Case], num_processes: int = 1) -> Iterator[Report]:
    """Compile the launches of the cases for every target; the small kernels only once."""
    for target in TARGETS:
        for launch in scale_launches():
            yield compile_launch("scale", launch, target)
    if num_processes == 1:
        yield from map(_compile, _jobs(cases))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context) as pool:
        yield from pool.map(_compile, _jobs(cases), chunksize=8)


def _jobs(cases: Iterable[Case]) -> Iterator[tuple[Case, str, int]]:
    """What to compile: a case, its target, and which of its launches."""
    compiled = set()
    for case in cases:
        for target in TARGETS if case.target is None else (case.target,):
            for index, launch in enumerate(case.launches(TARGETS[target].warp_size)):
                key = (target, launch.kernel.__name__)
                if launch.is_register_bound or key not in compiled:
                    compiled.add(key)
                    yield case, target, index


def _compile(job: tuple[Case, str, int]) -> Report:
    case, target, index = job
    return compile_launch(case.name, case.launches(TARGETS[target].warp_size)[index], target)


def main() -> None:
    """Print the table; exit with 1 if anything spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--all", action="store_true", help="every pair of options: see gate_cases.py"
    )
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), metavar="N")
    arguments = parser.parse_args()
    has_spilled = False
    out = sys.stdout
    if not arguments.json:
        out.write("target  warps  regs  spill  scalar  shared  16 B/other loads  stores")
        out.write("  occupancy  case\n")
    cases = paired_cases(tuple(TARGETS)) if arguments.all else CASES
    for report in reports(cases, arguments.processes):
        has_spilled |= report.spill_bytes > 0
        if arguments.json:
            out.write(json.dumps(dataclasses.asdict(report)) + "\n")
        else:
            loads = f"{report.wide_loads}/{report.narrow_loads}"
            stores = f"{report.wide_stores}/{report.narrow_stores}"
            out.write(
                f"{report.target:7} {report.num_warps:5} {report.registers:5} "
                f"{report.spill_bytes:6} {report.scalar_spills:7} {report.shared_bytes:7} "
                f"{loads:>17} {stores:>7} {report.occupancy:10.0%}  {report.name}\n"
            )
        out.flush()
    sys.exit(has_spilled)


if __name__ == "__main__":
    main()
