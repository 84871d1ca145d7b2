"""The fidelity table: its measures on gradients that are known, and all of it on tiny teachers."""

import math
import string
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import unigram
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from mkd_fast.benchmarks.fidelity import __main__ as command
from mkd_fast.benchmarks.fidelity import errors, quality, study, tiny
from mkd_fast.benchmarks.fidelity.errors import Comparison, Target, gradient
from mkd_fast.benchmarks.fidelity.numbers import Number
from mkd_fast.benchmarks.fidelity.report import blocks, save_plot
from mkd_fast.benchmarks.fidelity.study import IGNORED, Size
from mkd_fast.benchmarks.results import read_rows
from mkd_fast.losses import SampledTeacher, SparseTeacher

ROOT = Path(__file__).parents[2]
WORDS = [first + second for first in string.ascii_lowercase for second in "aeiou"]
DOCUMENTS = {
    language: [" ".join(WORDS[(7 * d + n * n + 3 * n) % 130] for n in range(40)) for d in range(40)]
    for language in ("en", "de")
}
SIZE = Size(sample_tokens=16, num_held_out=3, num_train=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def rows(folder):
    """What ``--tiny`` measures, as its CSV has it."""
    return measured(folder)


def measured(folder):
    arguments = ["fidelity", str(folder / "work"), "--tiny", "--out", str(folder / "results")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", arguments)
        command.main()
    (path,) = folder.glob("results/*/fidelity.csv")
    return read_rows(path)


def test_measures_of_known_gradients():
    comparison = Comparison()
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    comparison.add((2.0, exact), 1.0, torch.tensor([[3.0, 0.0]]))
    comparison.add((2.0, exact), 4.0, torch.tensor([[3.0, 8.0]]))
    measures = comparison.measures()
    assert measures["relative error of the loss"] == pytest.approx(0.25)
    assert measures["gradient's error"] == pytest.approx(math.sqrt(32 / 50))
    assert measures["gradient's cosine"] == pytest.approx(50 / math.sqrt(50 * 82))
    assert measures["error of the sum"] == 0  # as what is unbiased has it over many tokens


def test_a_targets_tail_is_used():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    kept = SparseTeacher(torch.tensor([[2, 1]]), torch.tensor([[2.0, 1.0]]), logits.logsumexp(-1))
    assert Target("topk:2", tail="drop").of(kept).tail == "drop"
    assert Target("topk:2").of(kept).tail == "bucket"
    assert Target("topk:2", tail="drop").kind == "topk:2, drop"


def test_a_gradient_is_that_of_the_sum_over_tokens():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    certain = SampledTeacher(torch.tensor([[0], [1]]), torch.ones(2, 1))
    loss, grad = gradient(logits, certain, 1.0)
    assert loss == pytest.approx(2 * math.log(2))
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.5], [0.5, -0.5]]))


@pytest.mark.parametrize(
    ("make", "model", "config"),
    [(study.causal, LlamaForCausalLM, LlamaConfig), (study.masked, BertForMaskedLM, BertConfig)],
)
def test_text_is_labelled_for_its_model(make, model, config, tmp_path):
    tokenizer = unigram(WORDS, has_mask=True)
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model(config(vocab_size=len(tokenizer), pad_token_id=1, **sizes)).save_pretrained(tmp_path)
    studied = make("name", str(tmp_path), DOCUMENTS, SIZE, tmp_path)
    ids, labels = studied.held_out.input_ids, studied.held_out.labels
    assert ids.shape == labels.shape == (6, SIZE.sample_tokens)
    assert studied.held_out.languages == ("en",) * 3 + ("de",) * 3
    assert studied.train.input_ids.shape == (5, SIZE.sample_tokens)
    if make is study.causal:
        assert torch.equal(labels[:, :-1], ids[:, 1:])
        assert (labels[:, -1] == IGNORED).all()
    else:
        is_masked = labels != IGNORED
        assert 0 < is_masked.sum() < is_masked.numel() / 2
        assert torch.equal(ids[~is_masked] == tokenizer.mask_token_id, ids[~is_masked] < 0)


def test_everything_is_measured(rows, tmp_path):
    of = {
        tuple(row[name] for name in ("teacher", "kind", "student", "temperature", "measure")):
        float(row["value"]) for row in rows
    }  # fmt: skip
    assert all(map(math.isfinite, of.values()))
    for teacher in ("causal", "masked"):
        error = (teacher, "{}", "trained", "1.0", "gradient's error")
        exact, rounded = (of[error[0], kind, *error[2:]] for kind in ("hidden", "hidden, bfloat16"))
        assert exact < rounded
        for kind in study.SAMPLED:
            draws = [f"gradient's error, mean of {number} draws" for number in (1, 4, 16)]
            of_mean = [of[teacher, kind, "trained", "1.0", name] for name in draws]
            assert of_mean == sorted(of_mean, reverse=True)
        parts = ("", ", sampled:12.ids", ", sampled:12.runs", ", index")
        stored = [of[teacher, "sampled:12", "", "0.0", f"bytes a token{part}"] for part in parts]
        assert stored[0] == pytest.approx(sum(stored[1:]), rel=1e-3)
        assert of[teacher, "teacher", "", "1.0", "held-out KL, nats"] < exact
    save_plot(rows, tmp_path / "plot.svg")
    assert all(name in (tmp_path / "plot.svg").read_text() for name in ("causal", "masked"))
    assert all(blocks(rows).values())


def test_cached_layers_teach_what_live_ones_do_but_for_their_rounding(tmp_path):
    studied = next(tiny.studies(tmp_path))
    dense, live, cached = (
        torch.cat([weight.flatten() for weight in quality.train(studied, source, 0).parameters()])
        for source in (quality.DENSE, quality.LAYERS, quality.INT8_LAYERS)
    )
    assert 0 < (cached - live).norm() < (dense - live).norm()


def test_what_is_measured_is_not_measured_again(rows, folder, monkeypatch):
    monkeypatch.setattr(quality, "train", None)
    monkeypatch.setattr(errors, "gradient", None)
    assert measured(folder) == rows


def test_a_budget_holds():
    within = Number("t", "sampled:50", "", 0.0, "bytes a token", 39.5, at_most=40.0)
    assert within.holds
    assert not Number("t", "sampled:50", "", 0.0, "bytes a token", 40.5, at_most=40.0).holds
    assert Number("t", "hidden", "", 0.0, "bytes a token", 1e3).holds is None
