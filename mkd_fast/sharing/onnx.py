"""ONNX: a student as a graph, kept only if its outputs are shown to be the model's.

torch's own exporter makes it (``dynamo=True``), batch and sequence free. An output may err twice
as much against the model in float64 as torch in float32 does, and one rounding more.
"""

import itertools
import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast.checks import sharing as checks
from mkd_fast.files import make_folder, writing_into
from mkd_fast.quiet import quiet_transformers
from mkd_fast.sharing.push import finished_model
from mkd_fast.sharing.record import RunRecord

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
_CLASSES = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}
_BATCH_SIZES = (1, 8, 4)  # of the shortest texts, those of middle length, the longest
_MEASURED_SECONDS = 2.0
_FEWEST_TURNS = 5
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """What an export is worth.

    Attributes:
        folder: the graph, with the model's tokenizer, config and card.
        shapes: the batches of test text it was checked on, samples and tokens.
        difference: largest absolute difference from torch in float32.
        error, torch_error: largest absolute error against the model in float64, of onnxruntime and
            of torch in float32.
        speedup: torch's time over onnxruntime's: 20th, 50th and 80th percentile of pairs.
        size_bytes: of the graph's files.
    """

    folder: Path
    shapes: tuple[tuple[int, int], ...]
    difference: float
    error: float
    torch_error: float
    speedup: tuple[float, float, float]
    size_bytes: int

    def __str__(self) -> str:
        shapes = ", ".join(f"{samples} x {tokens}" for samples, tokens in self.shapes)
        low, middle, high = self.speedup
        return (
            f"{self.folder / FILE}: {self.size_bytes / 1e6:.1f} MB\n"
            f"  outputs on test text ({shapes}): at most {self.difference:.2e} from torch's;"
            f" against float64 onnxruntime errs by {self.error:.2e}, torch by"
            f" {self.torch_error:.2e}\n"
            f"  onnxruntime takes 1/{middle:.2f} of torch's time (1/{low:.2f} to 1/{high:.2f},"
            f" {torch.get_num_threads()} threads)"
        )


class _Logits(nn.Module):
    """A model as a function of its two inputs; what a decoder would cache is left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        logits: Tensor = out.logits
        return logits


def export(run: Path, *, model: str = "student", out: Path | None = None) -> Exported:
    """Write a trained model as ONNX into a folder that is usable by itself, and time it.

    Args:
        run: folder of a finished run, whose test text the graph is checked on.
        model: "student" or "scratch".
        out: a new or empty folder; None is "onnx" in the run's.

    Raises:
        ValueError: the run is not finished or has no such model, the folder holds files, or the
            graph's outputs are not the model's; then nothing is kept.
        RuntimeError: a package is missing; names the extra that has it.
        OSError: the folder cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise checks.onnx_not_installed(package)
    record, folder = finished_model(run, model, "export")
    out = out or run / "onnx" / model
    if out.exists() and any(out.iterdir()):
        raise checks.folder_in_use("export", out)
    make_folder(out)
    module = _Logits(_load(record, folder)).eval()
    batches = list(_batches(record, folder))
    with TemporaryDirectory(dir=out.parent) as scratch, writing_into(out.parent):
        graph = Path(scratch) / FILE
        _write_graph(module, batches[1], graph)
        exported = _judged(module, batches, graph, out)
        for path in (*Path(scratch).iterdir(), *folder.iterdir()):
            if path.name != "model.safetensors":
                shutil.copyfile(path, out / path.name)
    return exported


def _load(record: RunRecord, folder: Path) -> nn.Module:
    import transformers

    with quiet_transformers():
        model = getattr(transformers, _CLASSES[record.task]).from_pretrained(folder)
    model.config.use_cache = False
    loaded: nn.Module = model.float()
    return loaded


def _batches(record: RunRecord, folder: Path) -> Iterator[Inputs]:
    """Real test text in several lengths, as the model reads it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    data = record.settings["data"]
    texts = [data.get("text_prefix", "") + text for text in _texts(record.folder)]
    texts.sort(key=len)
    begins = (0, max(0, len(texts) // 2 - 4), max(0, len(texts) - 4))
    for begin, size in zip(begins, _BATCH_SIZES, strict=True):
        rows = tokenizer(
            texts[begin : begin + size],
            padding=True,
            truncation=True,
            max_length=data["max_length"],
            return_tensors="pt",
        )
        yield {name: rows[name] for name in INPUTS}


def _texts(folder: Path) -> list[str]:
    texts = []
    for line in (folder / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        said = row.get("messages") or ()
        words = row.get("tokens") or [message["content"] for message in said]
        texts.append(row.get("text") or " ".join(words))
    return texts


def _write_graph(module: nn.Module, example: Inputs, path: Path) -> None:
    free = {0: "batch", 1: "sequence"}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of torchvision, which no model here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated calls, and axes of one name
            program = torch.onnx.export(
                module,
                tuple(example[name] for name in INPUTS),
                input_names=INPUTS,
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(INPUTS, free),
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None, "dynamo=True returns a program"
    program.save(path)


def _judged(module: nn.Module, batches: Sequence[Inputs], graph: Path, out: Path) -> Exported:
    """Outputs compared and timed.

    Raises:
        ValueError: the graph is not the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def of_onnx(batch: Inputs) -> Any:
        return session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]

    with torch.inference_mode():
        of_torch = [module(**batch) for batch in batches]
        ratios = list(_ratios(module, of_onnx, batches))
        exact = [module.double()(**batch) for batch in batches]
    found = [torch.from_numpy(of_onnx(batch)) for batch in batches]
    shapes = tuple((len(ids), ids.shape[1]) for batch in batches for ids in [batch["input_ids"]])
    reals = [batch["attention_mask"].bool() for batch in batches]

    def largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
        """Over what is read of the outputs: not at padding."""
        parts = [(a.double() - b.double()).abs() for a, b in zip(ours, theirs, strict=True)]
        read = [p[r] if p.dim() == 3 else p for p, r in zip(parts, reals, strict=True)]
        return max(part.max().item() for part in read)

    error, torch_error = largest(found, exact), largest(of_torch, exact)
    most = max(logits.abs().max().item() for logits in exact)
    allowed = 2 * torch_error + torch.finfo(torch.float32).eps * most
    if not error <= allowed:
        raise checks.onnx_differs(error, allowed, ", ".join(f"{b} x {s}" for b, s in shapes))
    low, middle, high = np.quantile(ratios, [0.2, 0.5, 0.8]).tolist()
    return Exported(
        out,
        shapes,
        largest(found, of_torch),
        error,
        torch_error,
        (low, middle, high),
        sum(path.stat().st_size for path in graph.parent.iterdir()),
    )


def _ratios(module: nn.Module, of_onnx: Any, batches: Sequence[Inputs]) -> Iterator[float]:
    """Torch's time over onnxruntime's, in turns, over all batches; the first turn warms up."""
    until = time.monotonic() + _MEASURED_SECONDS
    for turn in itertools.count():
        times = [time.perf_counter()]
        for run in (lambda batch: module(**batch), of_onnx):
            for batch in batches:
                run(batch)
            times.append(time.perf_counter())
        if turn:
            yield (times[1] - times[0]) / (times[2] - times[1])
            if turn >= _FEWEST_TURNS and time.monotonic() > until:
                return
