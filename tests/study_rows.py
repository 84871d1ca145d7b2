"""Rows of a study that was never run: scores drawn around given ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SEEN, UNSEEN = ("de", "en"), ("fi", "sw", "th")
NUM_GROUPS, GROUP_SIZE = 40, 5
GRID = {
    "starts": ["scratch", "embeddings", "pretrained", "finetuned"],
    "objectives": ["labels", "logit_mse", "kl", "kl_hidden", "hidden"],
    "fractions": [1.0, 0.01],
    "seeds": [0, 1, 2],
    "num_layers": [6, 3],
    "depth": "stride",
    "depths": ["first", "last"],
}
Quality = Callable[[Mapping[str, Any], str], float]


def arm(**fields: Any) -> dict[str, Any]:
    """What makes an arm, with the usual values."""
    usual = {"start": "finetuned", "depth": "stride", "objective": "kl", "fraction": 1.0}
    return {**usual, "num_layers": 6, **fields}


def layers_of(fields: Mapping[str, Any]) -> list[int]:
    """As the choices are made of a teacher of 12 layers."""
    number = fields["num_layers"]
    chosen = {"first": range(number), "stride": range(12 // number - 1, 12, 12 // number)}
    return list(chosen.get(fields["depth"], range(12 - number, 12)))


def write_study(
    folder: Path,
    arms: list[dict[str, Any]],
    quality: Quality,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    seed: int = 0,
    metric: str = "accuracy",
) -> list[dict[str, Any]]:
    """A study's folder; quality(arm, language) is the chance that an example comes out right.

    Examples of a group are alike: all of them are hard or easy for every model.
    """
    generator = np.random.default_rng(seed)
    num = NUM_GROUPS * GROUP_SIZE
    groups = {x: [f"g{n // GROUP_SIZE}" for n in range(num)] for x in (*SEEN, *UNSEEN)}
    hard = {x: np.repeat(generator.normal(0, 0.1, NUM_GROUPS), GROUP_SIZE) for x in groups}

    def correct(chance: float, language: str) -> Any:
        right = generator.random(num) < chance + hard[language]
        if metric == "span_f1":
            return {
                "tp": right.astype(int).tolist(),
                "fp": [0] * num,
                "fn": (~right).astype(int).tolist(),
            }
        if metric == "masked_accuracy":  # of two tokens a text
            return {"right": (2 * right).astype(int).tolist(), "tokens": [2] * num}
        return np.packbits(right).tobytes().hex()

    def scores(chance: float) -> dict[str, float]:
        beside = {"perplexity": 10 / chance, "kl_to_teacher": 1 - chance}
        return {metric: chance, "n": num, **(beside if metric == "masked_accuracy" else {})}

    def of_model(chance: Callable[[str], float]) -> dict[str, Any]:
        return {
            "parameters": 13_000_000,
            "correct": {x: correct(chance(x), x) for x in groups},
            "scores": {x: scores(chance(x)) for x in groups},
        }

    before = {x: {metric: 0.3 if x in SEEN else 0.2, "n": num} for x in groups}
    rows = []
    for fields in arms:
        for training_seed in seeds:
            luck = generator.normal(0, 0.02)
            dev = quality(fields, SEEN[0])
            rows.append(
                {
                    "key": f"cell{len(rows)}",
                    **fields,
                    "seed": training_seed,
                    "layers": layers_of(fields),
                    "learning_rate": 3e-4,
                    "metric": metric,
                    "before": before if fields["start"] == "finetuned" else None,
                    "probe": {"0.0001": 0.4, "0.0003": 0.5},
                    "steps": 80,
                    "seconds": 9.0,
                    "curve": [{"step": n, "dev": dev * n / 80} for n in (0, 10, 20, 40, 80)],
                    **of_model(lambda x, fields=fields, luck=luck: quality(fields, x) + luck),  # type: ignore[misc]
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "name": "made up",
        "task": "masked_lm" if metric == "masked_accuracy" else "sequence_classification",
        "metric": metric,
        "chance": {"accuracy": 0.25, "span_f1": 0.0, "masked_accuracy": 0.1}[metric],
        "seen": SEEN,
        "unseen": UNSEEN,
        "labels": ["dim", "off", "on", "open"],
        "sizes": {"num_train": 1200, "num_dev": 100, "num_test": num * len(groups)},
        "config": {"study": GRID},
        "keys": [row["key"] for row in rows],
    }
    teacher = {**of_model(lambda _: 0.9), "dev": 0.9}
    for name, content in (("study", info), ("groups", groups), ("teacher", teacher)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    write_cells(folder, rows)
    return rows


def write_cells(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Put other rows in place."""
    (folder / "cells.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
