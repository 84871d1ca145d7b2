"""One measurement of a teacher on the disk, in a process of its own so that its memory is its own.

``python -m mkd_fast.benchmarks.streamed_run JSON`` prints what it measured as JSON;
``mkd_fast.benchmarks.streamed`` calls it.
"""

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkd_fast.benchmarks.harness import time_ms
from mkd_fast.quiet import quiet_transformers
from mkd_fast.resident import status_bytes
from mkd_fast.teacher.streamed import StreamedTeacher
from mkd_fast.teacher.streamed.reading import Reader, stored_tensors


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        variant: of ``VARIANTS``, or "limits".
        folder: of the checkpoint.
        device: where it computes.
        num_batches: all of the same size, without padding.
        batch_size: samples of a batch.
        length: tokens of a sample.
        block_tokens: of a streamed teacher.
        max_memory_bytes: of a streamed teacher.
    """

    variant: str
    folder: str
    device: str
    num_batches: int
    batch_size: int
    length: int
    block_tokens: int = 0
    max_memory_bytes: int = 0

    @property
    def num_tokens(self) -> int:
        """Of all batches."""
        return self.num_batches * self.batch_size * self.length

    def batches(self) -> list[dict[str, Tensor]]:
        """Random tokens."""
        generator = torch.Generator().manual_seed(0)
        shape = self.batch_size, self.length
        vocab_size = json.loads((Path(self.folder) / "config.json").read_text())["vocab_size"]
        return [
            {
                "input_ids": torch.randint(vocab_size, shape, generator=generator),
                "attention_mask": torch.ones(shape, dtype=torch.long),
            }
            for _ in range(self.num_batches)
        ]


def streamed(job: Job) -> Iterator[Tensor | None]:
    """Ours, reading as it does where the files are larger than the memory."""
    from transformers import AutoModelForCausalLM

    with StreamedTeacher(
        job.folder,
        AutoModelForCausalLM,
        device=job.device,
        max_memory_bytes=job.max_memory_bytes,
        block_tokens=job.block_tokens,
        past_page_cache=True,
    ) as teacher:
        yield None
        for _, outputs in teacher.run(job.batches()):
            yield outputs.logits


def accelerate_disk(job: Job) -> Iterator[Tensor | None]:
    """The model as accelerate offloads it to the disk: each batch reads all of it."""
    places = dict.fromkeys(("model.embed_tokens", "model.layers", "lm_head"), "disk")
    # accelerate computes where the first module lies that is not on the disk
    places |= dict.fromkeys(("model.norm", "model.rotary_emb"), job.device)
    with tempfile.TemporaryDirectory() as offloaded:
        yield from _ordinary(job, device_map=places, offload_folder=offloaded)


def in_memory(job: Job) -> Iterator[Tensor | None]:
    """The ordinary pass with every weight where it is used."""
    yield from _ordinary(job, device_map={"": job.device})


def _ordinary(job: Job, **placement: Any) -> Iterator[Tensor | None]:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(job.folder, dtype="auto", **placement)
    for parameter in model.parameters():
        if parameter.device.type == "cpu":  # mapped from the file until it is copied
            parameter.data = parameter.data.clone()
    yield None
    for batch in job.batches():
        on_device = {name: tensor.to(job.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            yield model(**on_device, use_cache=False).logits
        forget_files(Path(job.folder))  # as if it did not fit


VARIANTS: Mapping[str, Callable[[Job], Iterator[Tensor | None]]] = {
    "streamed": streamed,
    "accelerate disk": accelerate_disk,
    "in memory": in_memory,
}


def measure(job: Job) -> dict[str, Any]:
    """Run a variant; opening the model is not timed.

    Returns:
        Seconds, bytes read meanwhile (whether from the disk or from the page cache), the process's
        peak memory from its start, and a hash of all logits.
    """
    device, digest = torch.device(job.device), hashlib.sha256()
    running = VARIANTS[job.variant](job)
    next(running)
    forget_files(Path(job.folder))
    read_before, started = _bytes_read(), time.perf_counter()
    for logits in running:
        assert logits is not None
        digest.update(logits.view(torch.uint8).cpu().numpy().data)
    return {
        "seconds": time.perf_counter() - started,
        "read_bytes": _bytes_read() - read_before,
        "peak_rss_bytes": status_bytes("VmHWM"),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "digest": digest.hexdigest(),
    }


def limits(job: Job) -> dict[str, Any]:
    """How fast files are read past the page cache, and how fast a layer's product is computed."""
    folder = Path(job.folder)
    paths = sorted(folder.glob("*.safetensors"))
    tensors = [stored for path in paths for stored in stored_tensors(path).values()]
    room = torch.zeros(max(stored.num_elements for stored in tensors), dtype=torch.bfloat16)
    reader, num_bytes, started = Reader(paths, past_page_cache=True), 0, time.perf_counter()
    for stored in tensors:
        reader.read(stored, room[: stored.num_elements])
        num_bytes += stored.num_bytes
    read_s = time.perf_counter() - started
    reader.close()
    config = json.loads((folder / "config.json").read_text())
    wide, narrow = config["intermediate_size"], config["hidden_size"]
    weight = torch.randn(wide, narrow, device=job.device, dtype=torch.bfloat16)
    given = torch.randn_like(weight[:1]).expand(job.batch_size * job.length, -1).contiguous()
    times_ms = [time_ms(lambda: given @ weight.T, given.device) for _ in range(10)]
    flops_per_s = 2e3 * given.numel() * wide / statistics.median(times_ms)
    return {"read_bytes_per_s": num_bytes / read_s, "flops_per_s": flops_per_s}


def forget_files(folder: Path) -> None:
    """Drop a checkpoint from the page cache, where the system lets us."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    """By read calls of this process so far; pages of mapped files do not count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def main() -> None:
    """Measure what the argument says."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(limits(job) if job.variant == "limits" else measure(job)))


if __name__ == "__main__":
    main()
