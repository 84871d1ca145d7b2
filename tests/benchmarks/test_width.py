"""The benchmark of narrower students runs, and every student of it is as narrow as it says."""

import math

from mkd_fast.benchmarks import width
from mkd_fast.benchmarks.results import read_rows


def test_a_tiny_run_measures_every_way(tmp_path):
    setting = width.tiny()
    rows = list(width.measure(setting))
    assert [(row.variant, row.compensated) for row in rows] == [
        ("top-left", False),
        ("uniform", False),
        ("activation", True),
        ("pca", True),
        ("activation", False),
        ("pca", False),
    ]
    assert all(row.kl_start > 0 for row in rows)
    assert [math.isnan(row.kl_end) for row in rows] == [row.steps == 0 for row in rows]
    written = read_rows(width.write(rows, tmp_path))
    assert [row["variant"] for row in written] == [row.variant for row in rows]
    assert [row["kl_end"] == "" for row in written] == [row.steps == 0 for row in rows]


def test_the_rival_cuts_heads_and_ours_does_not():
    setting = width.tiny()
    size = setting.size
    rival = width.top_left(setting.teacher, size)
    ours = width.Way("uniform").student(setting)
    teacher = setting.teacher.model.layers[0].self_attn.q_proj.weight
    cut = rival.model.layers[0].self_attn.q_proj.weight
    assert (cut == teacher[: 4 * size.head_dim, : size.hidden_size]).all()
    assert rival.config.head_dim == size.head_dim < ours.config.head_dim == 4
