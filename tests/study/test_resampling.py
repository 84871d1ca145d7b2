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


def test_an_arm_without_cells_is_compared_with_none(tmp_path: Path) -> None:
    results = study(tmp_path, 0.2)
    del results.by_arm[SCRATCH]
    assert Resampling(results).difference([(COPIED, SCRATCH)], "seen") is None


def test_seeds_count_that_both_arms_of_a_pair_have(tmp_path: Path) -> None:
    results = study(tmp_path, 0.2)
    del results.by_arm[SCRATCH][1]
    found = Resampling(results).difference([(COPIED, SCRATCH)], "seen")
    scores = [
        np.mean([results.by_arm[arm][seed].score(SEEN) for seed in (0, 2)])
        for arm in (COPIED, SCRATCH)
    ]
    assert found is not None
    assert found.num_seeds == 2
    assert found.value == pytest.approx(scores[0] - scores[1])


def test_pairs_of_fewer_seeds_than_others_are_left_out(tmp_path: Path) -> None:
    arms = [arm(start=start, fraction=f) for start in ("finetuned", "scratch") for f in (1.0, 0.1)]
    write_study(tmp_path, arms, lambda fields, _: 0.5 + 0.2 * (fields["start"] == "finetuned"))
    results = read_results(tmp_path)
    little = Arm(**arm(fraction=0.1)), Arm(**arm(start="scratch", fraction=0.1))
    resampling = Resampling(results)
    both = resampling.difference([(COPIED, SCRATCH), little], "seen")
    del results.by_arm[little[1]][2]
    one = resampling.difference([(COPIED, SCRATCH), little], "seen")
    alone = resampling.difference([(COPIED, SCRATCH)], "seen")
    assert both is not None
    assert (both.num_pairs, both.num_seeds) == (2, 3)
    assert one == alone


def test_one_seed_is_compared_by_examples_alone(tmp_path: Path) -> None:
    found = Resampling(study(tmp_path, 0.2, seeds=(4,))).difference([(COPIED, SCRATCH)], "seen")
    assert found is not None
    assert found.is_clear
    assert found.num_seeds == 1


def test_a_p_value_that_no_resample_speaks_against_is_the_least_there_is(tmp_path: Path) -> None:
    sure, unsure = (
        Resampling(study(tmp_path / str(by), by), 100).difference([(COPIED, SCRATCH)], "seen")
        for by in (0.3, 0.0)
    )
    assert sure is not None
    assert unsure is not None
    assert (sure.p_value, sure.is_floor) == (2 / 100, True)
    assert not unsure.is_floor


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
