"""Accuracy and macro-F1 for each language, with languages seen and unseen in training apart.

Shapes: N samples or labelled tokens, B samples of a batch, S tokens, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mkd_fast.checks import evaluate as checks
from mkd_fast.evaluate.scores import LanguageScore, ModelScores, grouped

_Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution
_NUM_RESAMPLES = 1000
_NO_LABEL = -100
_NO_PREDICTION = -1  # stands in for the class of a sample whose logits hold a NaN


class LabelledBatch(Protocol):
    """What `predict` reads of a batch."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, int64 [B, S]."""

    @property
    def attention_mask(self) -> Tensor:
        """1 where a token is real, int64 [B, S]."""

    @property
    def labels(self) -> Tensor:
        """True classes, int64 [B], or [B, S] with -100 at tokens that have none."""

    @property
    def sample_ids(self) -> Tensor:
        """Row numbers of the samples in their text, int64 [B]."""


@dataclass(frozen=True)
class Predictions:
    """Predicted and true classes, int64 [N] each, in rising order of sample id.

    Where tokens have classes, those of a sample stand together, in their order.
    """

    sample_ids: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]


def predict(
    model: nn.Module, batches: Iterable[LabelledBatch], device: torch.device | str
) -> Predictions:
    """Most likely class of every sample, or of every labelled token; dropout off.

    The classes stay on the device until the last batch: one transfer, no wait per batch. The
    model's training mode is put back afterwards.

    Args:
        model: Sequence classifier, already on `device`, whose output has `logits` [B, C]; or token
            classifier, [B, S, C].
        batches: Batches in any order; each sample once.
        device: Where the token ids go.

    Raises:
        ValueError: No batches, a sample id given twice, or a NaN among a sample's logits.
    """
    predicted, true, sample_ids, samples = [], [], [], []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                logits = model(
                    input_ids=batch.input_ids.to(device, non_blocking=True),
                    attention_mask=batch.attention_mask.to(device, non_blocking=True),
                ).logits
                classes = logits.argmax(-1).masked_fill(logits.isnan().any(-1), _NO_PREDICTION)
                samples.append(batch.sample_ids)
                of_labels, labels = batch.sample_ids, batch.labels
                if labels.dim() > 1:
                    tokens = (labels != _NO_LABEL).flatten().nonzero().squeeze(1)
                    of_labels = of_labels.repeat_interleave(labels.shape[1])[tokens]
                    labels = labels.flatten()[tokens]
                    classes = classes.flatten()[tokens.to(device, non_blocking=True)]
                predicted.append(classes)
                true.append(labels)
                sample_ids.append(of_labels)
    finally:
        model.train(was_training)
    if not predicted:
        raise checks.nothing_to_predict()
    _check_each_once(_to_numpy(samples))
    return _ordered(_to_numpy(sample_ids), _to_numpy(predicted), _to_numpy(true))


def score_languages(
    model: str,
    predicted: npt.ArrayLike,
    true: npt.ArrayLike,
    languages: Sequence[str],
    *,
    seen_languages: Collection[str],
) -> ModelScores:
    """Accuracy and macro-F1 for each language that occurs in `languages`, sorted by name.

    Args:
        model: Name under which the scores are reported.
        predicted: Predicted classes, integers [N].
        true: True classes, integers [N].
        languages: Language of each sample, length N.
        seen_languages: Languages of the training data. One without a test sample has no score.

    Raises:
        TypeError: Classes are not integers.
        ValueError: Lengths differ, or there are no samples.
    """
    predicted_N, true_N = _classes("predicted", predicted), _classes("true", true)
    if not predicted_N.shape == true_N.shape == (len(languages),):
        raise checks.lengths_differ(predicted_N.shape, true_N.shape, len(languages))
    if not languages:
        raise checks.nothing_to_score(model)
    languages_N = np.asarray(languages)
    scores = []
    for language in sorted(set(languages)):
        rows = languages_N == language
        num_samples = int(rows.sum())
        share = accuracy(predicted_N[rows], true_N[rows])
        values = {"accuracy": share, "macro_f1": macro_f1(predicted_N[rows], true_N[rows])}
        interval = wilson_interval(share, num_samples)
        scores.append(LanguageScore(language, num_samples, values, interval))
    return grouped(model, scores, seen_languages)


def accuracy(predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    """Share of the samples whose predicted class is the true one; [N] each, N >= 1."""
    return float(np.mean(predicted == true))


def macro_f1(predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN); [N] each, N >= 1.

    The classes are those that occur among the true or the predicted ones, scikit-learn's choice;
    one that is only predicted, or never, has F1 = 0. A class without either is left out: there is
    nothing to say about it.
    """
    classes_C, codes = np.unique(np.concatenate([predicted, true]), return_inverse=True)
    predicted_codes_N, true_codes_N = np.split(codes, 2)
    hits = true_codes_N[predicted_codes_N == true_codes_N]
    num_hits_C = np.bincount(hits, minlength=len(classes_C))
    num_mentions_C = np.bincount(codes, minlength=len(classes_C))  # (TP + FP) + (TP + FN)
    return float(np.mean(2 * num_hits_C / num_mentions_C))


def wilson_interval(share: float, num_samples: int) -> tuple[float, float]:
    """The 95 % score interval of a binomial share: all x with (share - x)^2 <= z^2 x (1 - x) / n.

    It takes samples as independent. Samples made from the same template are not, so for them it is
    too narrow; and it says nothing about other seeds of the training.

    Args:
        share: Observed share, 0 to 1.
        num_samples: n, at least 1.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    z2_over_n = _Z_95**2 / num_samples
    centre = (share + z2_over_n / 2) / (1 + z2_over_n)
    spread = math.sqrt(share * (1 - share) * z2_over_n + z2_over_n**2 / 4) / (1 + z2_over_n)
    # Rounding may push a bound past the share, or past 0 and 1, when the share is 0 or 1.
    return max(0.0, min(share, centre - spread)), min(1.0, max(share, centre + spread))


def bootstrap_interval(
    rows_NC: npt.NDArray[Any], of_sums: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]
) -> tuple[float, float]:
    """The 95 % interval of a number that depends on sums over samples, by drawing these anew.

    The seed is fixed. It says nothing about other seeds of the training.

    Args:
        rows_NC: What each sample adds to the sums.
        of_sums: The number for each of R resamples, [R], from their sums, [R, C].

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife"; percentiles.
    """
    num = len(rows_NC)
    draws_RN = np.random.default_rng(0).multinomial(num, [1 / num] * num, size=_NUM_RESAMPLES)
    low, high = np.quantile(of_sums(draws_RN @ rows_NC), [0.025, 0.975])
    return float(low), float(high)


def _classes(argument: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    classes = np.asarray(values)
    if classes.size and not np.issubdtype(classes.dtype, np.integer):
        raise checks.classes_not_integers(argument, classes.dtype)
    return classes.astype(np.int64)


def _to_numpy(parts: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    return torch.cat(list(parts)).cpu().numpy()


def _ordered(
    sample_ids_N: npt.NDArray[np.int64],
    predicted_N: npt.NDArray[np.int64],
    true_N: npt.NDArray[np.int64],
) -> Predictions:
    order = np.argsort(sample_ids_N, kind="stable")
    sample_ids_N, predicted_N, true_N = sample_ids_N[order], predicted_N[order], true_N[order]
    if (no_class := np.unique(sample_ids_N[predicted_N == _NO_PREDICTION])).size:
        raise checks.nan_logits(no_class[:5].tolist(), int(no_class.size))
    return Predictions(sample_ids_N, predicted_N, true_N)


def _check_each_once(sample_ids_N: npt.NDArray[np.int64]) -> None:
    ids, counts = np.unique(sample_ids_N, return_counts=True)
    if (repeated := ids[counts > 1]).size:
        raise checks.sample_predicted_twice(int(repeated[0]))
