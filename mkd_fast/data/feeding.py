"""How the samples of a text come to a model: which of them an epoch has, and how they are laid out.

With ``language_temperature`` T, a language of n_l samples makes up a share of each epoch that is
proportional to n_l^(1 / T): as it is at 1, all languages alike at infinity. An epoch has as many
samples as ever. A language goes through all of its samples, in an order drawn anew each time,
before it repeats one, and on where the epoch before left off.

Source of the temperature: multilingual BERT and XLM-R (arXiv 1911.02116, section 3.1, alpha = 1/T).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mkd_fast.data.batches import Batch, collate, length_grouped_batches
from mkd_fast.data.packing import packed_batches
from mkd_fast.data.tokens import TokenisedText

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LanguageSampling:
    """Samples drawn by language.

    Args:
        languages: of each sample of an epoch.
        temperature: T, at least 1.
    """

    languages: Sequence[str]
    temperature: float

    def quotas(self) -> dict[str, int]:
        """Samples of each language in an epoch; they add up to as many as there are."""
        names, counts = np.unique(np.array(self.languages), return_counts=True)
        weights = counts ** (1 / self.temperature)
        exact = len(self.languages) * weights / weights.sum()
        whole = np.floor(exact).astype(np.int64)
        left = len(self.languages) - int(whole.sum())
        whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
        return dict(zip(names.tolist(), whole.tolist(), strict=True))

    def rows(self, seed: int, epoch: int) -> IntArray:
        """The samples of an epoch, which depend on the arguments only."""
        rows_of = {name: list[int]() for name in sorted(set(self.languages))}
        for row, language in enumerate(self.languages):
            rows_of[language].append(row)
        drawn = []
        for language, quota in self.quotas().items():
            rows = rows_of[language]
            for turn in range(epoch * quota // len(rows), -(-(epoch + 1) * quota // len(rows))):
                shuffled = random.Random(f"{seed}/{language}/{turn}").sample(rows, len(rows))
                first = turn * len(rows)
                begin, end = max(epoch * quota - first, 0), (epoch + 1) * quota - first
                drawn += shuffled[begin:end]
        return np.array(drawn, np.int64)


@dataclass(frozen=True)
class Feeding:
    """How samples come to a model; as it is made without arguments, each once in its own row.

    Args:
        row_tokens: samples are packed into rows of up to so many tokens; 0: a row each.
        sampling: of the samples of an epoch; None: all of them.
    """

    row_tokens: int = 0
    sampling: LanguageSampling | None = field(default=None, repr=False)

    def batches(
        self, text: TokenisedText, *, batch_size: int, seed: int, epoch: int
    ) -> list[list[int]]:
        """The samples of each step of an epoch."""
        rows = text.rows_of_epoch(epoch)
        if self.sampling is not None:
            rows = rows[self.sampling.rows(seed, epoch)]
        lengths = text.lengths[rows]
        if self.row_tokens:
            batches = packed_batches(
                lengths, batch_size=batch_size, row_tokens=self.row_tokens, seed=seed, epoch=epoch
            )
        else:
            batches = length_grouped_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
        return [[int(rows[number]) for number in batch] for batch in batches]

    def collate(self, text: TokenisedText, rows: Sequence[int]) -> Batch:
        """The batch of a step."""
        return collate(text, rows, row_tokens=self.row_tokens)


PLAIN = Feeding()


def feeding(
    row_tokens: int, temperature: float, languages: Sequence[str], text: TokenisedText
) -> Feeding:
    """What a recipe asks for.

    Args:
        row_tokens: of packing.
        temperature: of the languages.
        languages: of each text.
        text: the samples that are made of them.
    """
    if temperature == 1.0:
        return Feeding(row_tokens)
    of_samples = text.texts_of_epoch().tolist()
    return Feeding(row_tokens, LanguageSampling([languages[n] for n in of_samples], temperature))
