"""How sure a difference is: resampled test examples and seeds, paired.

Two students are compared on the same examples and, where both have them, with the same seeds. What
could have come out otherwise are the examples that were drawn and the seeds: so both are resampled
with replacement, crossed (the pigeonhole bootstrap, Owen 2007, arXiv 0704.3110), the same draw for
every model. Examples of one template are drawn together. Languages and arms stay as they are: the
interval speaks of other sentences and other seeds, not of other languages.

With few seeds a bootstrap over them is too narrow by about sqrt((S - 1) / S); what is drawn is
widened by the inverse around its mean, as far as seeds go (Davison and Hinkley 1997, section 3.2).

Shapes: R resamples, the first of them what was observed; G groups of a language; S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mkd_fast.study.results import Arm, Floats, Model, StudyResults, Sums

NUM_RESAMPLES = 4_000


@dataclass(frozen=True)
class Difference:
    """A mean difference of scores, its 95 % interval and two-sided p-value.

    Attributes:
        num_pairs: pairs of arms it is the mean of.
    """

    value: float
    low: float
    high: float
    p_value: float
    num_pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Resampling:
    """The same draws of examples and seeds for every question about a study."""

    def __init__(
        self, results: StudyResults, num_resamples: int = NUM_RESAMPLES, seed: int = 0
    ) -> None:
        self._results = results
        generator = np.random.default_rng(seed)
        self._weights = {
            language: _draws(generator, num_resamples, len(sums.counted))
            for language, sums in sorted(results.teacher.sums.items())
        }
        self._seed_weights = _widened(_draws(generator, num_resamples, len(results.seeds)))
        self._of_model: dict[tuple[int, str], Floats] = {}

    def model(self, model: Model, group: str) -> Floats:
        """Mean score over the languages of a group, ``[R]``."""
        key = (id(model), group)
        if key not in self._of_model:
            scores = [
                _ratio(self._weights[language], model.sums[language])
                for language in self._results.languages(group)
            ]
            self._of_model[key] = np.mean(scores, axis=0)
        return self._of_model[key]

    def difference(self, pairs: Sequence[tuple[Arm, Arm]], group: str) -> Difference | None:
        """How much better the first of each pair is than the second; None without a pair.

        Pairs of which an arm lacks a seed that another cell of the study has are left out.
        """
        found = [
            self._difference_of_arms(ours, theirs, group)
            for ours, theirs in pairs
            if self._is_whole(ours) and self._is_whole(theirs)
        ]
        if not found:
            return None
        drawn = np.mean(found, axis=0)
        value, others = float(drawn[0]), drawn[1:]
        low, high = np.quantile(others, (0.025, 0.975))
        below, above = int((others <= 0).sum()), int((others >= 0).sum())
        p_value = min(1.0, 2 * (1 + min(below, above)) / (1 + len(others)))
        return Difference(value, float(low), float(high), p_value, len(found))

    def _is_whole(self, arm: Arm) -> bool:
        return len(self._results.by_arm.get(arm, ())) == len(self._results.seeds)

    def _difference_of_arms(self, ours: Arm, theirs: Arm, group: str) -> Floats:
        cells = self._results.by_arm
        of_seeds = [
            self.model(cells[ours][seed], group) - self.model(cells[theirs][seed], group)
            for seed in self._results.seeds
        ]
        mean: Floats = (self._seed_weights * np.stack(of_seeds, axis=1)).sum(1)
        return mean


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979), in the same order."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted.tolist()


def _draws(generator: np.random.Generator, num_resamples: int, size: int) -> Floats:
    """How often each of ``size`` things is drawn, ``[R, size]``; the first time once each."""
    drawn = generator.multinomial(size, np.full(size, 1 / size), num_resamples - 1)
    return np.concatenate([np.ones((1, size)), drawn])


def _widened(counts: Floats) -> Floats:
    """Weights of seeds that sum to 1 in each resample, spread as far as S - 1 draws would be."""
    size = counts.shape[1]
    even = np.full_like(counts, 1 / size)
    factor = np.sqrt(size / (size - 1)) if size > 1 else 1.0
    widened: Floats = even + factor * (counts / size - even)
    return widened


def _ratio(weights: Floats, sums: Sums) -> Floats:
    whole = weights @ sums.whole
    ratio: Floats = np.divide(
        weights @ sums.counted, whole, out=np.zeros(len(whole)), where=whole > 0
    )
    return ratio
