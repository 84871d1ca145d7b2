from pathlib import Path

import torch

from mkd_fast.benchmarks import fits, plan
from mkd_fast.benchmarks.results import read_rows

ROOT = Path(__file__).parents[2]


def test_a_tiny_recipe_is_planned_and_run():
    found = list(plan.measure(torch.device("cpu"), is_tiny=True))
    cases = [f"{plan.TINY.name}: {stage}" for stage in ("fine-tune", "capture", "copy")]
    assert [each.case for each in found[::3]] == [*cases, f"{plan.TINY.name}: train, as it is"]
    assert all(each.holds for each in found[2::3])


def test_the_settings_that_fit_come_in_their_order():
    found = [
        {"predicted_gib": gib, "settings": name}
        for gib, name in (("9", "as it is"), ("7", "parts"), ("3", "twice"))
    ]
    assert fits.cell(found, 9) == "as it is"
    assert fits.cell(found, 8) == "parts"
    assert fits.cell(found, 4) == "parts + twice"
    assert fits.cell(found, 2) == "no"


def test_every_setting_takes_less_than_the_one_before(tmp_path):
    model = fits.Model(
        "tiny",
        "Llama",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 4096,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
        },
    )
    sizes: dict[object, dict[object, float]] = {}
    for row in fits.rows_of(model, tmp_path, 64):
        sizes.setdefault(row["stage"], {})[row["settings"]] = row["predicted_gib"]
    assert {stage: list(found) for stage, found in sizes.items()} == {
        "train": ["as it is", "parts", "twice", "8 bits", "sampled"],
        "capture": ["as it is"],
        "fine-tune": ["as it is", "parts", "twice", "8 bits"],
    }
    for stage in ("train", "fine-tune"):
        assert sizes[stage]["parts"] < sizes[stage]["as it is"]
        assert sizes[stage]["8 bits"] < sizes[stage]["twice"]


def test_the_page_has_the_committed_tables():
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks" / "results"
    for line in (folder / "predicted" / "fits.md").read_text(encoding="utf-8").splitlines():
        assert line in page
    (path,) = folder.glob("*/plan.csv")
    for line in plan.table(read_rows(path)).strip().splitlines():
        assert line in page
