"""A teacher larger than memory: what it holds, what it reads, and when reading stops mattering.

``python -m mkd_fast.benchmarks.streamed FOLDER`` writes a random checkpoint of 6.4 GB into FOLDER
(made layer by layer, and used again if it is there), runs it over 512 tokens in fresh processes,
and writes ``benchmarks/results/<device>/streamed.csv``:

    streamed          with a tenth of the weights' bytes as budget, one, two and four blocks
    accelerate disk   the same batches through accelerate's disk offload
    in memory         the ordinary pass, where memory (the GPU's with ``--device cuda``) holds it

All must give the same logits, bit by bit on a CPU. Ours reads past the page cache, and for the
others it is emptied of the checkpoint after every batch, so that nobody profits from memory that
a larger teacher would not have. ``predicted_tokens_per_s`` is the cost model's
(mkd_fast/teacher/streamed/cost.py), from the speed of a layer's product, and the rate at which the
whole checkpoint was read just before, each measured alone. ``--tiny`` shows that it runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mkd_fast.benchmarks.machine import provenance, slug
from mkd_fast.benchmarks.results import write_rows
from mkd_fast.benchmarks.streamed_run import Job
from mkd_fast.checks import benchmarks as checks
from mkd_fast.files import make_folder, write_json
from mkd_fast.teacher.streamed import Cost

if TYPE_CHECKING:
    from transformers import LlamaConfig

_COLUMNS = (
    "variant",
    "block_tokens",
    "tokens_per_s",
    "predicted_tokens_per_s",
    "read_bytes_per_token",
    "predicted_bytes_per_token",
    "peak_rss_bytes",
    "peak_gpu_bytes",
    "is_same",
    # as they were for all rows
    "tokens",
    "batch_tokens",
    "weight_bytes",
    "max_memory_bytes",
    "read_bytes_per_s",
    "flops_per_s",
    "balanced_block_tokens",
)


def config(*, is_tiny: bool) -> "LlamaConfig":
    """A Llama of 3.2 billion weights, or one that is made in no time."""
    from transformers import LlamaConfig

    return LlamaConfig(
        dtype="bfloat16",
        vocab_size=512 if is_tiny else 32_000,
        hidden_size=64 if is_tiny else 3072,
        intermediate_size=128 if is_tiny else 8192,
        num_hidden_layers=4 if is_tiny else 30,
        num_attention_heads=2 if is_tiny else 24,
        num_key_value_heads=1 if is_tiny else 8,
        head_dim=32 if is_tiny else 128,
    )


def make_checkpoint(folder: Path, settings: "LlamaConfig") -> int:
    """Write a random model as ``save_pretrained`` would, one file for each layer.

    Every layer has the same random numbers, rolled on by its number.

    Returns:
        Bytes of all weights.
    """
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        layer = parts[2] if parts[1] == "layers" else name
        files.setdefault(f"model-{layer}.safetensors", {})[name] = parameter.shape
    make_folder(folder)
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for number, (file, shapes) in enumerate(files.items()):
            values = {name: _values(shape, number) for name, shape in shapes.items()}
            save_file(values, folder / file, metadata={"format": "pt"})
        settings.save_pretrained(folder)
        places = {name: file for file, shapes in files.items() for name in shapes}
        write_json(index, {"metadata": {}, "weight_map": places})
    return sum(2 * parameter.numel() for parameter in model.parameters())


def _values(shape: torch.Size, number: int) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(shape.numel())
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
    return values.roll(number)


def jobs(folder: Path, device: str, weight_bytes: int, *, is_tiny: bool) -> Iterator[Job]:
    """What is measured; ours comes first."""
    batch_size, length, num_batches = (2, 512, 64) if device == "cuda" else (4, 32, 4)
    if is_tiny:
        batch_size, length, num_batches = 2, 8, 4
    job = Job("streamed", str(folder), device, num_batches, batch_size, length)
    max_memory_bytes = 8 << 20 if is_tiny else weight_bytes // 10
    for blocks in (1, 2, 4):
        block_tokens = job.num_tokens // blocks
        yield replace(job, block_tokens=block_tokens, max_memory_bytes=max_memory_bytes)
    yield replace(job, variant="accelerate disk")
    if _free_bytes(device) > 1.5 * weight_bytes:
        yield replace(job, variant="in memory")


def _free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) << 10


def run(job: Job) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "mkd_fast.benchmarks.streamed_run", json.dumps(asdict(job))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def bench(folder: Path, out: Path, device: str, *, is_tiny: bool) -> Path:
    """Measure everything and write the CSV.

    Raises:
        RuntimeError: the streamed teacher's logits are not those of the others.
        OSError: the checkpoint or the results cannot be written.
    """
    settings = config(is_tiny=is_tiny)
    weight_bytes = make_checkpoint(folder, settings)
    todo = list(jobs(folder, device, weight_bytes, is_tiny=is_tiny))
    known = provenance(torch.device(device))
    rows: list[dict[str, object]] = []
    for job in todo:
        limits = run(replace(job, variant="limits"))
        measured = run(job)
        row = _row(job, measured, limits, _cost(settings, weight_bytes))
        rows.append({**row, "weight_bytes": weight_bytes, **known})
        print(*(f"{name}={rows[-1].get(name)}" for name in _COLUMNS[:8]), flush=True)
    digests = [row.pop("digest") for row in rows]
    for row, digest in zip(rows, digests, strict=True):
        row["is_same"] = digest == digests[-1]
    path = out / slug(known["device"]) / "streamed.csv"
    write_rows(path, ("op", *_COLUMNS, *known), rows)
    others = [job.variant for job, row in zip(todo, rows, strict=True) if not row["is_same"]]
    if device == "cpu" and others:
        raise checks.logits_differ(others)
    return path


def _cost(settings: "LlamaConfig", weight_bytes: int) -> Cost:
    """Of layers and head, with 2 bytes and 2 operations a token for each weight."""
    embedding_bytes = 2 * settings.vocab_size * settings.hidden_size
    return Cost(weight_bytes - embedding_bytes, float(weight_bytes - embedding_bytes))


def _row(
    job: Job, measured: Mapping[str, Any], limits: Mapping[str, float], cost: Cost
) -> dict[str, object]:
    row = {
        "op": "streamed",
        "variant": job.variant,
        "max_memory_bytes": job.max_memory_bytes,
        "tokens": job.num_tokens,
        "batch_tokens": job.batch_size * job.length,
        "tokens_per_s": job.num_tokens / measured["seconds"],
        **{name: measured[name] for name in ("peak_rss_bytes", "peak_gpu_bytes", "digest")},
        **limits,
    }
    if job.variant == "in memory":
        return row
    rates = limits["read_bytes_per_s"], limits["flops_per_s"]
    block_tokens = job.block_tokens or job.batch_size * job.length
    row |= {
        "block_tokens": block_tokens,
        "predicted_tokens_per_s": 1 / cost.seconds_per_token(block_tokens, *rates),
        "predicted_bytes_per_token": cost.bytes_per_token(block_tokens),
        "balanced_block_tokens": cost.balanced_block_tokens(*rates),
    }
    if job.variant == "streamed":  # accelerate maps files, which no counter sees
        row["read_bytes_per_token"] = measured["read_bytes"] / job.num_tokens
    return row


def main() -> None:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(description="A teacher larger than memory.")
    parser.add_argument("folder", type=Path, help="of the checkpoint: 6.4 GB")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="show that it runs, not how fast")
    arguments = parser.parse_args()
    path = bench(arguments.folder, arguments.out, arguments.device, is_tiny=arguments.tiny)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
