from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_rows import SEEN, arm, write_study

from mkd_fast.study.resampling import Resampling, holm
from mkd_fast.study.results import Arm, read_results

COPIED, SCRATCH = Arm(**arm()), Arm(**arm(start="scratch"))


def study(folder: Path, better_by: float, **options: Any) -> Any:
    def quality(fields: Any, language: str) -> float:
        return 0.5 + better_by * (fields["start"] == "finetuned")

    write_study(folder, [arm(), arm(start="scratch")], quality, **options)
    return read_results(folder)


def test_the_difference_is_that_of_the_scores(tmp_path: Path) -> None:
    results = study(tmp_path, 0.2)
    found = Resampling(results).difference([(COPIED, SCRATCH)], "seen")
    means = [
        np.mean([cell.score(SEEN) for cell in results.by_arm[arm].values()])
        for arm in (COPIED, SCRATCH)
    ]
    assert found is not None
    assert found.value == pytest.approx(means[0] - means[1])
    assert found.low < found.value < found.high
    assert found.is_clear
    assert found.num_pairs == 1


def test_an_arm_against_itself_differs_by_nothing(tmp_path: Path) -> None:
    found = Resampling(study(tmp_path, 0.2)).difference([(COPIED, COPIED)], "unseen")
    assert found is not None
    assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_clear


def test_the_sign_turns_with_the_pair(tmp_path: Path) -> None:
    resampling = Resampling(study(tmp_path, 0.2))
    one, other = (
        resampling.difference([pair], "seen") for pair in ((COPIED, SCRATCH), (SCRATCH, COPIED))
    )
    assert one is not None
    assert other is not None
    assert (one.value, one.low) == pytest.approx((-other.value, -other.high))
    assert one.p_value == other.p_value


def test_pairs_that_lack_a_seed_are_left_out(tmp_path: Path) -> None:
    results = study(tmp_path, 0.2)
    del results.by_arm[SCRATCH][1]
    assert Resampling(results).difference([(COPIED, SCRATCH)], "seen") is None


def test_one_seed_is_compared_by_examples_alone(tmp_path: Path) -> None:
    found = Resampling(study(tmp_path, 0.2, seeds=(4,))).difference([(COPIED, SCRATCH)], "seen")
    assert found is not None
    assert found.is_clear


def test_where_nothing_differs_few_intervals_say_so(tmp_path: Path) -> None:
    """Templates and seeds are drawn anew in each study: 95 % of intervals should hold 0.

    Were more than 16 of 100 to miss it, the chance of each would be above 5 % at odds of 40,000
    to 1 (binomial).
    """
    wrong = 0
    for seed in range(100):
        results = study(tmp_path / str(seed), 0.0, seed=seed)
        found = Resampling(results, 500).difference([(COPIED, SCRATCH)], "seen")
        wrong += found is not None and found.is_clear
    assert wrong <= 16


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
