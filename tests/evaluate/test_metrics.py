import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mkd_fast.evaluate.metrics import macro_f1, predict, score_languages, wilson_interval
from mkd_fast.evaluate.scores import LanguageScore, ModelScores

EPS = np.finfo(np.float64).eps


def f1_by_definition(predicted: list[int], true: list[int]) -> float:
    """Precision and recall class by class, 0 where one is not defined."""
    values = []
    for label in set(predicted) | set(true):
        pairs = list(zip(predicted, true, strict=True))
        hits = sum(p == t == label for p, t in pairs)
        precision = hits / predicted.count(label) if label in predicted else 0.0
        recall = hits / true.count(label) if label in true else 0.0
        values.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return math.fsum(values) / len(values)


# --- macro-F1 ---


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        pytest.param([2], [2], 1.0, id="one sample, right"),
        pytest.param([1], [2], 0.0, id="one sample, wrong: two classes, none hit"),
        # class 0: 2 hits, 1 false alarm: 4/5; class 1: 1 hit, 1 missed: 2/3; mean 11/15
        pytest.param([0, 0, 0, 1], [0, 0, 1, 1], 11 / 15, id="by hand"),
        # class 0: 2 / (2 + 2) * 2 = 2/3; class 1 never predicted: 0
        pytest.param([0, 0], [0, 1], 1 / 3, id="a class is never predicted"),
        # class 0: 2/3; class 7 is predicted and never true: 0
        pytest.param([0, 7], [0, 0], 1 / 3, id="a class is only predicted"),
        pytest.param([0, 9], [0, 9], 1.0, id="classes in between do not count"),
    ],
)
def test_macro_f1_by_hand(predicted: list[int], true: list[int], expected: float) -> None:
    assert macro_f1(np.array(predicted), np.array(true)) == pytest.approx(
        expected, rel=4 * EPS, abs=0
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_macro_f1_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    predicted, true = (list(column) for column in zip(*pairs, strict=True))
    exact = f1_by_definition(predicted, true)
    assert macro_f1(np.array(predicted), np.array(true)) == pytest.approx(exact, rel=32 * EPS)


# --- interval ---


@given(st.integers(1, 5000), st.data())
def test_wilson_bounds_solve_its_equation(num_samples: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, num_samples)) / num_samples
    z2 = 1.959963984540054**2
    low, high = wilson_interval(share, num_samples)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        distance, spread = (share - bound) ** 2, z2 * bound * (1 - bound) / num_samples
        assert abs(distance - spread) <= 16 * EPS


@pytest.mark.parametrize(
    ("share", "num_samples", "expected"),
    [
        pytest.param(0.0, 1, (0.0, 0.7934506856227626), id="one sample, wrong: z2 / (1 + z2)"),
        pytest.param(1.0, 1, (0.20654931437723745, 1.0), id="one sample, right: 1 / (1 + z2)"),
        pytest.param(0.5, 10, (0.2365930905125640, 0.7634069094874361), id="five of ten"),
    ],
)
def test_wilson_by_hand(share: float, num_samples: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(share, num_samples) == pytest.approx(expected, rel=16 * EPS, abs=EPS)


# --- scores of languages ---


def test_languages_are_scored_apart_and_grouped() -> None:
    scores = score_languages(
        "teacher",
        predicted=[0, 0, 0, 1, 5, 3],
        true=[0, 0, 1, 1, 5, 4],
        languages=["en", "en", "en", "en", "de", "th"],
        seen_languages=["en", "de", "fr"],
    )
    of_en = {"accuracy": 0.75, "macro_f1": scores.seen[1].values["macro_f1"]}
    assert scores == ModelScores(
        "teacher",
        seen=(
            LanguageScore("de", 1, {"accuracy": 1.0, "macro_f1": 1.0}, wilson_interval(1, 1)),
            LanguageScore("en", 4, of_en, wilson_interval(0.75, 4)),
        ),
        unseen=(LanguageScore("th", 1, {"accuracy": 0.0, "macro_f1": 0.0}, wilson_interval(0, 1)),),
    )
    assert of_en["macro_f1"] == pytest.approx(11 / 15, rel=4 * EPS)


@pytest.mark.parametrize(
    ("predicted", "true", "languages", "kind", "message"),
    [
        pytest.param(
            [1, 2],
            [1, 2, 3],
            ["en"] * 3,
            ValueError,
            "score_languages: predicted, true and languages must have one entry for each sample, "
            "got shapes (2,), (3,) and 3 languages. "
            "Take the languages of the rows that predictions.sample_ids names.",
            id="lengths differ",
        ),
        pytest.param(
            [],
            [],
            [],
            ValueError,
            "score_languages: there must be at least one test sample, got none for 'teacher'. "
            "Check the test split.",
            id="no samples",
        ),
        pytest.param(
            [0.9],
            [1],
            ["en"],
            TypeError,
            "score_languages: predicted must hold class numbers, integers, got float64. "
            "Take the argmax of the logits first.",
            id="logits instead of classes",
        ),
    ],
)
def test_bad_scores_input(
    predicted: list[int],
    true: list[int],
    languages: list[str],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        score_languages("teacher", predicted, true, languages, seen_languages=["en"])


# --- predict ---


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    sample_ids: Tensor


def batch(classes: list[int], labels: list[int], sample_ids: list[int]) -> Batch:
    ids = torch.tensor(classes)[:, None]
    return Batch(ids, torch.ones_like(ids), torch.tensor(labels), torch.tensor(sample_ids))


class OneHot(nn.Module):
    """Class c for the token id c; NaN for id 3; and it notes the modes it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        logits = nn.functional.one_hot(input_ids[:, 0], 4) * attention_mask[:, :1].float()
        return SimpleNamespace(logits=logits.masked_fill(input_ids == 3, math.nan))


def test_predictions_come_in_order_of_sample_id() -> None:
    batches = [batch([2, 0], [2, 1], [7, 3]), batch([1], [1], [5])]
    result = predict(OneHot(), batches, "cpu")
    assert result.sample_ids.tolist() == [3, 5, 7]
    assert result.predicted.tolist() == [0, 1, 2]
    assert result.true.tolist() == [1, 1, 2]
    assert result.predicted.dtype == result.true.dtype == result.sample_ids.dtype == np.int64


@pytest.mark.parametrize("training", [True, False])
def test_predict_runs_without_dropout_and_restores_the_mode(training: bool) -> None:
    model = OneHot().train(training)
    predict(model, [batch([0], [0], [0])], "cpu")
    assert model.modes == [(False, True)]
    assert model.training is training


class SyncingOps(TorchDispatchMode):
    """Notes every operation whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique"}:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_predict_never_waits_for_a_batch() -> None:
    class Plain(nn.Module):  # one_hot without a number of classes asks for the largest id
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=input_ids * torch.arange(4.0))

    with SyncingOps() as ops:
        predict(Plain(), [batch([0, 1], [0, 1], [0, 1]), batch([2], [2], [2])], "cpu")
        assert ops.seen == []
        assert torch.ones(1).item() == 1.0
    assert ops.seen == ["_local_scalar_dense"], "the probe itself must work"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        pytest.param(
            [],
            "predict: batches must hold at least one sample, got none. "
            "An iterator that was read before is empty: pass a list, or make it anew.",
            id="no batches",
        ),
        pytest.param(
            [batch([0, 1], [0, 1], [4, 6]), batch([2], [2], [4])],
            "predict: batches must hold each sample once, got sample id 4 twice. "
            "Predict each text in a call of its own: sample ids are row numbers.",
            id="sample given twice",
        ),
        pytest.param(
            [batch([0, 3, 3], [0, 1, 1], [4, 9, 8])],
            "predict: logits must be numbers, got NaN for 2 samples, the first of them [8, 9]. "
            "The model's weights are broken: go back to a checkpoint from before the loss "
            "diverged.",
            id="NaN logits",
        ),
    ],
)
def test_bad_batches(batches: list[Batch], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        predict(OneHot(), batches, "cpu")


# --- predict, where tokens have classes ---


class OneHotTokens(nn.Module):
    """Class c for the token id c; NaN for id 3."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        logits = nn.functional.one_hot(input_ids, 4).float()
        return SimpleNamespace(logits=logits.masked_fill(input_ids[..., None] == 3, math.nan))


def token_batch(ids: list[list[int]], labels: list[list[int]], sample_ids: list[int]) -> Batch:
    input_ids = torch.tensor(ids)
    labels_t, samples = torch.tensor(labels), torch.tensor(sample_ids)
    return Batch(input_ids, torch.ones_like(input_ids), labels_t, samples)


def test_labelled_tokens_are_predicted_in_their_order() -> None:
    batches = [
        token_batch([[3, 2, 1, 0], [0, 0, 2, 3]], [[-100, 2, 2, -100], [1, 0, -100, -100]], [7, 2]),
        token_batch([[1, 2]], [[-100, 0]], [5]),
    ]
    result = predict(OneHotTokens(), batches, "cpu")
    assert result.sample_ids.tolist() == [2, 2, 5, 7, 7]
    assert result.predicted.tolist() == [0, 0, 2, 2, 1]
    assert result.true.tolist() == [1, 0, 0, 2, 2]


def test_a_sample_without_a_labelled_token_has_no_prediction() -> None:
    result = predict(OneHotTokens(), [token_batch([[1], [2]], [[-100], [2]], [0, 1])], "cpu")
    assert result.sample_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([token_batch([[3, 3]], [[1, 1]], [4])], "NaN for 1 samples, the first of them [4]"),
        ([token_batch([[1]], [[-100]], [4])] * 2, "got sample id 4 twice"),
    ],
)
def test_bad_batches_of_tokens(batches: list[Batch], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        predict(OneHotTokens(), batches, "cpu")
