"""What fits into how much memory: models of known sizes, and the settings that make them fit.

``python -m mkd_fast.benchmarks.fits`` writes ``benchmarks/results/predicted/fits.csv`` and ``.md``:
the peak that ``mkd-fast plan`` predicts of a process on a CPU. Of a model its config alone is
needed. Encoders read 32 texts of 128 tokens a step, causal language models 8 of 512; students have
half of the layers and the whole vocabulary. Settings are added one after the other, those of least
cost first.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from mkd_fast.benchmarks import results
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.train.config import Config, from_dict
from mkd_fast.train.planning.advice import Change
from mkd_fast.train.planning.stages import CAPTURE, FINETUNE, TRAIN, predict
from mkd_fast.train.planning.workload import FromLength

BUDGETS_GIB = (4, 8, 16, 24, 80)
STAGES = (TRAIN, CAPTURE, FINETUNE)
_PROCESS_BYTES = 480 << 20  # as on the machine on which plan.csv was measured
_COLUMNS = ("model", "parameters", "stage", "settings", "predicted_gib")


@dataclass(frozen=True)
class Model:
    """A published model's shape.

    Attributes:
        name: as it is known.
        family: the name of its config's class, without "Config".
        shape: what differs from that class's defaults.
    """

    name: str
    family: str
    shape: Mapping[str, Any]

    @property
    def is_causal(self) -> bool:
        """Whether it is a language model; else it classifies texts."""
        return self.family == "Llama"

    def save(self, folder: Path) -> None:
        """Write its config, of which a plan is made."""
        getattr(transformers, f"{self.family}Config")(**self.shape).save_pretrained(folder)

    def config(self, folder: Path) -> Config:
        """The recipe that needs most."""
        kind, keep, rows = "sequence_classification", "logits", 32
        if self.is_causal:
            kind, keep, rows = "causal_lm", "hidden", 8
        optim = {"batch_size": rows, "precision": "bfloat16"}
        return from_dict(
            {
                "run": {"device": "cpu"},
                "task": {"kind": kind},
                "teacher": {"model": str(folder)},
                "capture": {"keep": keep, "batch_size": rows},
                "student": {"vocabulary": "all"},
                "finetune": optim,
                "train": optim,
            }
        )


def _encoder(name: str, family: str, columns: int, width: int, layers: int) -> Model:
    shape = {
        "vocab_size": columns,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64 if width > 384 else 12,
        "max_position_embeddings": 514,
    }
    return Model(name, family, shape)


def _decoder(
    name: str,
    columns: int,
    width: int,
    layers: int,
    heads: tuple[int, int],
    feed_forward: int,
    *,
    is_tied: bool = True,
) -> Model:
    shape = {
        "vocab_size": columns,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "tie_word_embeddings": is_tied,
    }
    return Model(name, "Llama", shape)


MODELS = (
    _encoder("multilingual-e5-small", "Bert", 250_037, 384, 12),
    _encoder("XLM-R base", "XLMRoberta", 250_002, 768, 12),
    _encoder("XLM-R large", "XLMRoberta", 250_002, 1024, 24),
    _decoder("SmolLM2-135M", 49_152, 576, 30, (9, 3), 1536),
    _decoder("SmolLM2-360M", 49_152, 960, 32, (15, 5), 2560),
    _decoder("SmolLM2-1.7B", 49_152, 2048, 24, (32, 32), 8192),
    _decoder("Llama-3.2-1B", 128_256, 2048, 16, (32, 8), 8192),
    _decoder("Llama-3.1-8B", 128_256, 4096, 32, (32, 8), 14_336, is_tied=False),
)


def settings(config: Config, stage: str) -> Iterator[tuple[str, Config]]:
    """Names of settings for a stage, each added to those before, and the recipe with them."""
    yield "as it is", config
    if stage == CAPTURE:
        return
    section, optim = ("train", config.train) if stage == TRAIN else ("finetune", config.finetune)
    added: list[tuple[str, Change]] = [
        ("parts", Change({(section, "accumulate"): optim.batch_size}, "")),
        ("twice", Change({(section, "checkpointing"): True}, "")),
        ("8 bits", Change({(section, "optimizer"): "adamw8bit"}, "")),
    ]
    if stage == TRAIN and config.capture.keep == "hidden":
        added.append(("sampled", Change({("capture", "keep"): "sampled:50"}, "")))
    for name, change in added:
        config = change.of(config)
        yield name, config


def rows_of(model: Model, folder: Path, length: int) -> Iterator[dict[str, object]]:
    """Predictions for one model, with samples of so many tokens."""
    model.save(folder)
    source, config = FromLength(length), model.config(folder)

    for stage in STAGES:
        for name, changed in settings(config, stage):
            peak = predict(changed, source.workload(changed), stage, _PROCESS_BYTES)
            parameters, gib = peak.parts["weights"] // 4, peak.num_bytes / 2**30
            yield dict(zip(_COLUMNS, (model.name, parameters, stage, name, gib), strict=True))


def table(rows: list[results.Row], stage: str) -> str:
    """Markdown: a row for each model, and the settings with which it fits each budget."""
    by_model: dict[str, list[results.Row]] = {}
    for row in rows:
        if row["stage"] == stage:
            by_model.setdefault(row["model"], []).append(row)
    lines = []
    for name, found in by_model.items():
        parameters = f"{float(found[0]['parameters']) / 1e6:,.0f} M"
        peak = f"{float(found[0]['predicted_gib']):.1f}"
        cells = (cell(found, budget) for budget in BUDGETS_GIB)
        lines.append(TableRow((name, parameters, peak, *cells)))
    heads = (stage, "parameters", "GiB as it is", *(f"{budget} GiB" for budget in BUDGETS_GIB))
    return Table("", heads, (tuple(lines),)).to_markdown().lstrip()


def cell(found: Sequence[results.Row], budget_gib: int) -> str:
    """The settings with which a model fits, or "no"; ``found`` are rows in their order."""
    for number, row in enumerate(found):
        if float(row["predicted_gib"]) <= budget_gib:
            added = [each["settings"] for each in found[1 : number + 1]]
            return " + ".join(added) or "as it is"
    return "no"


def main() -> None:
    """Write and print the tables."""
    out = Path("benchmarks/results/predicted")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as folder:
        for model in MODELS:
            length = 512 if model.is_causal else 128
            rows += rows_of(model, Path(folder) / model.name.replace(" ", "_"), length)
            sys.stdout.write(f"{model.name}\n")
            sys.stdout.flush()
    results.write_rows(out / "fits.csv", _COLUMNS, rows)
    read = results.read_rows(out / "fits.csv")
    markdown = "\n".join(table(read, stage) for stage in STAGES)
    (out / "fits.md").write_text(markdown, encoding="utf-8")
    sys.stdout.write(markdown)


if __name__ == "__main__":
    main()
