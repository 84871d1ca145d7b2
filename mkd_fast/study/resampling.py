"""How sure a difference is: resampled test examples and seeds, paired.

Two students are compared on the same examples and, where both have them, with the same seeds. What
could have come out otherwise are the examples that were drawn and the seeds: so both are resampled
with replacement, crossed (the pigeonhole bootstrap, Owen 2007, arXiv 0704.3110), the same draw for
every model. Examples of one template are drawn together. Languages and arms stay as they are: the
interval speaks of other sentences and other seeds, not of other languages.

With few seeds a bootstrap over them is too narrow by about sqrt((S - 1) / S); what is drawn is
widened by the inverse around its mean, as far as seeds go (Davison and Hinkley 1997, section 3.2).

Where a pair of arms has a single seed, the interval speaks of other sentences alone.

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
        num_seeds: seeds of each.
        is_floor: no resample is on the other side of 0, so that the p-value is at most this.
    """

    value: float
    low: float
    high: float
    p_value: float
    num_pairs: int
    num_seeds: int
    is_floor: bool

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Resampling:
    """The same draws of examples and seeds for every question about a study."""

    def __init__(
        self, results: StudyResults, num_resamples: int = NUM_RESAMPLES, seed: int = 0
    ) -> None:
        self._results, self._num_resamples, self._seed = results, num_resamples, seed
        generator = np.random.default_rng(seed)
        self._weights = {
            language: _draws(generator, num_resamples, len(sums.counted))
            for language, sums in sorted(results.teacher.sums.items())
        }
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

        Where some pairs have fewer seeds than others, as in a study that is not finished, those of
        the most seeds count, with the seeds that the first of them has.
        """
        seeds_of = {pair: self._seeds_of(pair) for pair in pairs}
        seeds = max(seeds_of.values(), key=len, default=())
        whole = [pair for pair, others in seeds_of.items() if set(seeds) <= set(others)]
        if not seeds:
            return None
        drawn = np.mean([self._of_pair(pair, seeds, group) for pair in whole], axis=0)
        value, others = float(drawn[0]), drawn[1:]
        low, high = np.quantile(others, (0.025, 0.975))
        fewest = min(int((others <= 0).sum()), int((others >= 0).sum()))
        p_value = min(1.0, 2 * (1 + fewest) / (1 + len(others)))
        return Difference(
            value, float(low), float(high), p_value, len(whole), len(seeds), is_floor=fewest == 0
        )

    def _seeds_of(self, pair: tuple[Arm, Arm]) -> tuple[int, ...]:
        """Those that both arms have, rising."""
        ours, theirs = (self._results.by_arm.get(arm, {}) for arm in pair)
        return tuple(sorted(ours.keys() & theirs.keys()))

    def _of_pair(self, pair: tuple[Arm, Arm], seeds: Sequence[int], group: str) -> Floats:
        ours, theirs = (self._results.by_arm[arm] for arm in pair)
        of_seeds = [
            self.model(ours[seed], group) - self.model(theirs[seed], group) for seed in seeds
        ]
        mean: Floats = (self._weights_of(len(seeds)) * np.stack(of_seeds, axis=1)).sum(1)
        return mean

    def _weights_of(self, num_seeds: int) -> Floats:
        """Of seeds, ``[R, num_seeds]``; the same at every call."""
        generator = np.random.default_rng((self._seed, num_seeds))
        return _widened(_draws(generator, self._num_resamples, num_seeds))


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
