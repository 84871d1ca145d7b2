"""How well a language model does on a part of the text: at tokens that are hidden, or that follow.

The score is the share of these tokens of which the likeliest is the true one. What is hidden is
drawn once, so that every model is asked for the same. Beside it stand perplexity and KL to the
teacher. All are over the tokens that the students' vocabulary has, of the teacher too.

Shapes: N samples, T texts, M tokens with a label, S tokens of a sample, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mkd_fast.checks import study as checks
from mkd_fast.data.batches import evaluation_batches
from mkd_fast.data.tokens import NO_LABEL, Pieces
from mkd_fast.evaluating import evaluating
from mkd_fast.student import TokenMap
from mkd_fast.train.examiner import (
    CROSS_ENTROPY,
    KL,
    NUM_SUMS,
    RIGHT,
    TOKENS,
    Said,
    said,
    values_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mkd_fast.study.shared import Part

METRICS = {"masked_lm": "masked_accuracy", "causal_lm": "next_accuracy"}


@dataclass(frozen=True, eq=False)
class TeacherSaid:
    """What a teacher said at the labels of some samples, kept to be compared with every student.

    Args:
        whole: its head, over the students' vocabulary, with its input [M, D] in the samples' order.
        begins: int64 [N + 1], the first label of each sample.
    """

    whole: Said
    begins: npt.NDArray[np.int64]

    @classmethod
    @torch.inference_mode()
    def of(
        cls, teacher: "PreTrainedModel", text: Pieces, batch_size: int, token_map: TokenMap | None
    ) -> "TeacherSaid":
        """Run a teacher over a text in its own token ids, with labels in the students'."""
        before = np.concatenate([[0], np.cumsum(text.labels != NO_LABEL)])
        begins = before[text.offsets]
        batches = evaluation_batches(text.lengths, batch_size=batch_size)
        parts = []
        with evaluating(teacher):
            for rows in batches:
                (head, behind), _ = said(teacher, text, rows, token_map)
                parts.append(head.hidden)
        order = np.argsort(_labels_of(begins, [row for rows in batches for row in rows]))
        hidden_MD = torch.cat(parts)[torch.from_numpy(order).to(teacher.device)]
        return cls((replace(head, hidden=hidden_MD), behind), begins)

    def at(self, rows: Sequence[int]) -> Said:
        """At the labels of some samples, as ``said`` has them."""
        head, behind = self.whole
        places = torch.from_numpy(_labels_of(self.begins, rows)).to(head.hidden.device)
        return replace(head, hidden=head.hidden[places]), behind


def _labels_of(begins: npt.NDArray[np.int64], rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """The numbers of the labels of some samples, one after the other."""
    return np.concatenate([np.arange(begins[row], begins[row + 1]) for row in rows])


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a model said of a part of the text.

    Args:
        sums: of each text, as ``examiner`` counts them; float64 [T, 5].
        part: the text.
        metric: the name of the score.
    """

    sums: npt.NDArray[np.float64]
    part: "Part"
    metric: str

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats a token."""
        return self._mean(CROSS_ENTROPY)

    @property
    def score(self) -> float:
        """The share of right tokens, all languages taken together."""
        return self._mean(RIGHT)

    def by_language(self) -> dict[str, dict[str, float]]:
        """Scores of each language, and how many texts it has."""
        return {
            language: {
                self.metric: self._mean(RIGHT, rows),
                "perplexity": float(np.exp(self._mean(CROSS_ENTROPY, rows))),
                "kl_to_teacher": self._mean(KL, rows),
                "n": len(rows),
            }
            for language, rows in self.part.rows_by_language().items()
        }

    def correct(self) -> dict[str, Any]:
        """For each language how many of each text's tokens are right, of how many."""
        counts_T2 = self.sums[:, [RIGHT, TOKENS]].astype(np.int64)
        return {
            language: dict(zip(("right", "tokens"), counts_T2[rows].T.tolist(), strict=True))
            for language, rows in self.part.rows_by_language().items()
        }

    def _mean(self, column: int, rows: Any = slice(None)) -> float:
        sums_5 = self.sums[rows].sum(0)
        return float(sums_5[column] / sums_5[TOKENS])


def listen(
    model: "PreTrainedModel", part: "Part", metric: str, batch_size: int, token_map: TokenMap | None
) -> Spoken:
    """Run a language model over a part of the text.

    Raises:
        FloatingPointError: its logits are not finite.
    """
    text, teacher = part.tokens, part.teacher_said
    assert isinstance(text, Pieces), "what has a teacher's words is of a language model"
    assert teacher is not None
    sums_T5 = torch.zeros(len(part), NUM_SUMS, dtype=torch.float64)
    with torch.inference_mode(), evaluating(model):
        for rows in evaluation_batches(text.lengths, batch_size=batch_size):
            ours, batch = said(model, text, rows, token_map)
            samples_M = batch.picked_sample_ids.cpu()
            values_M5 = torch.cat(list(values_of(ours, teacher.at(rows), batch.labels)))
            texts_M = torch.from_numpy(text.texts)[samples_M]
            sums_T5.index_add_(0, texts_M, values_M5.double().cpu())
    if not bool(sums_T5.isfinite().all()):
        raise checks.logits_not_finite()
    return Spoken(sums_T5.numpy(), part, metric)
