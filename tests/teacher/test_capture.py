"""What the cache returns is what a plain forward pass returns."""

import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from budget import assert_within_budget

from mkd_fast.losses.targets import SparseTeacher
from mkd_fast.teacher import kept, merge, repair
from mkd_fast.teacher.cache import Fingerprints, TeacherCache
from mkd_fast.teacher.capture import CaptureProgress, capture


def plain(model, batch, **options):
    with torch.inference_mode():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return model(**inputs, **options)


def real_rows(rows, batch, sample):
    return rows[sample][batch.attention_mask[sample].bool()]


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_hidden_states_of_a_classifier(tmp_path, classifier, make_batches, side):
    batches = make_batches(side=side)
    cache = capture(
        classifier,
        batches,
        tmp_path / "cache",
        keep="logits",
        hidden_layers=(-1, 0),
        shard_bytes=600,
    )
    assert len(list((tmp_path / "cache").glob("shard-*"))) > 2
    assert len(cache) == 15
    for batch in batches:
        expected = plain(classifier, batch, output_hidden_states=True)
        got = cache.batch(batch.sample_ids)
        assert torch.equal(got.teacher, expected.logits)
        assert torch.equal(got.hidden_mask.sum(1), batch.attention_mask.sum(1))
        for hidden, layer in zip(got.hidden, (2, 0), strict=True):
            assert hidden.dtype == torch.bfloat16
            assert not hidden[~got.hidden_mask].any()
            for sample, mask in enumerate(got.hidden_mask):
                rows = real_rows(expected.hidden_states[layer], batch, sample)
                assert torch.equal(hidden[sample][mask], rows.bfloat16())


@pytest.mark.parametrize("side", ["right", "left"])
def test_topk_of_a_causal_model_for_each_token(tmp_path, causal, make_batches, side):
    batches = make_batches(side=side)
    temperatures = (1.0, 2.5)
    cache = capture(causal, batches, tmp_path / "cache", keep="topk:4", temperatures=temperatures)
    for batch in batches:
        logits = plain(causal, batch).logits
        for temperature in temperatures:
            got = cache.batch(batch.sample_ids, temperature=temperature)
            assert isinstance(got.teacher, SparseTeacher)
            assert (got.teacher.ids[~got.hidden_mask] == -1).all()
            for sample, mask in enumerate(got.hidden_mask):
                rows = real_rows(logits, batch, sample)
                top = rows.topk(4)
                assert torch.equal(got.teacher.ids[sample][mask], top.indices.int())
                assert torch.equal(got.teacher.logits[sample][mask][:, 0], top.values[:, 0])
                distances = top.values[:, :1] - top.values
                error = (got.teacher.logits[sample][mask] - top.values).abs()
                assert (error <= 2**-11 * distances + 2**-23 * top.values.abs().amax()).all()
                assert_within_budget(
                    got.teacher.log_z[sample][mask],
                    (rows.double() / temperature).logsumexp(-1),
                    (rows / temperature).logsumexp(-1),
                )


def test_topk_of_a_classifier_for_each_sample(tmp_path, classifier, make_batches):
    batches = make_batches()
    cache = capture(classifier, batches, tmp_path / "cache", keep="topk:2")
    got = cache.batch(batches[1].sample_ids)
    top = plain(classifier, batches[1]).logits.topk(2)
    assert torch.equal(got.teacher.ids, top.indices.int())
    assert got.teacher.log_z.shape == (3,)
    assert got.hidden_mask is None


def test_dense_logits_for_each_token(tmp_path, causal, make_batches):
    batches = make_batches()
    cache = capture(causal, batches, tmp_path / "cache", keep="logits")
    got = cache.batch(batches[0].sample_ids, temperature=3.0)
    logits = plain(causal, batches[0]).logits
    assert torch.equal(got.teacher[got.hidden_mask], logits[got.hidden_mask])
    assert not got.teacher[~got.hidden_mask].any()


def test_columns_past_vocab_size_are_dropped(tmp_path, causal, make_batches):
    batches = make_batches(num_batches=1)
    got = capture(causal, batches, tmp_path / "cache", keep="topk:3", vocab_size=50).batch(
        batches[0].sample_ids
    )
    logits = plain(causal, batches[0]).logits[..., :50]
    assert got.teacher.ids.max() < 50
    real = logits[got.hidden_mask]
    exact = real.double().logsumexp(-1)
    assert_within_budget(got.teacher.log_z[got.hidden_mask], exact, real.logsumexp(-1))


def test_bfloat16_logits_stay_bfloat16(tmp_path, classifier, make_batches):
    batches = make_batches()
    cache = capture(classifier, batches, tmp_path / "cache", keep="logits", logits_dtype="bfloat16")
    got = cache.batch(batches[0].sample_ids).teacher
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, plain(classifier, batches[0]).logits.bfloat16())


def test_autocast_is_what_the_teacher_computes_in(tmp_path, classifier, make_batches):
    batches = make_batches()
    cache = capture(classifier, batches, tmp_path / "cache", keep="logits", autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(classifier, batches[0]).logits
    assert torch.equal(cache.batch(batches[0].sample_ids).teacher, expected.float())
    assert cache.fingerprints.precision == "autocast bfloat16"


def test_minus_infinity_is_a_legal_logit(tmp_path, echo, make_batches):
    batches = make_batches()
    with torch.no_grad():
        echo.table[:, 2] = -torch.inf
    cache = capture(echo, batches, tmp_path / "cache", keep="logits", fingerprints=ORIGIN)
    assert (cache.batch(batches[0].sample_ids).teacher[:, 2] == -torch.inf).all()


ORIGIN = Fingerprints(teacher="echo", tokenizer="letters", dataset="random")


def test_batches_may_be_mappings(tmp_path, echo, make_batches):
    batches = make_batches()
    one = capture(echo, batches, tmp_path / "one", keep="logits", fingerprints=ORIGIN)
    two = capture(echo, map(vars, batches), tmp_path / "two", keep="logits", fingerprints=ORIGIN)
    assert one.manifest == two.manifest


def test_the_model_is_left_as_it_was(tmp_path, causal, make_batches):
    causal.train()
    try:
        capture(causal, make_batches(), tmp_path / "cache", keep="topk:4")
        assert causal.training
        assert causal.config.use_cache
        assert all(parameter.grad is None for parameter in causal.parameters())
    finally:
        causal.eval()


def test_progress_counts_samples_and_tokens(tmp_path, echo, make_batches):
    seen: list[CaptureProgress] = []
    batches = make_batches(num_batches=2)
    capture(
        echo, batches, tmp_path / "cache", keep="logits", fingerprints=ORIGIN, progress=seen.append
    )
    tokens = [int(batch.attention_mask.sum()) for batch in batches]
    assert seen == [CaptureProgress(3, tokens[0]), CaptureProgress(6, sum(tokens))]


def test_a_finished_cache_is_only_opened(tmp_path, echo, make_batches):
    options = {"keep": "logits", "fingerprints": ORIGIN}
    capture(echo, make_batches(), tmp_path / "cache", **options)
    again = capture(echo, None, tmp_path / "cache", **options)
    assert len(again) == 15


def test_resume_false_captures_anew(tmp_path, echo, make_batches):
    folder = tmp_path / "cache"
    capture(echo, make_batches(), folder, keep="logits", fingerprints=ORIGIN, shard_bytes=100)
    cache = capture(echo, make_batches(2), folder, keep="topk:2", fingerprints=ORIGIN, resume=False)
    assert len(cache) == 6
    assert {path.name for path in folder.iterdir()} == {
        "capture.json",
        "index.safetensors",
        "manifest.json",
        "shard-00000.safetensors",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": "topk:2"}, "keep ('topk:2',), got keep ('logits',)"),
        ({"shard_bytes": 7}, "shard_bytes 7, got shard_bytes 268435456"),
        (
            {"fingerprints": replace(ORIGIN, dataset="novels")},
            "dataset 'novels', got dataset 'random'",
        ),
        (
            {"fingerprints": replace(ORIGIN, teacher="other")},
            "teacher 'other', got teacher 'echo'",
        ),
    ],
)
def test_a_cache_of_another_plan_is_refused(tmp_path, echo, make_batches, change, message):
    options = {"keep": "logits", "fingerprints": ORIGIN}
    capture(echo, make_batches(), tmp_path / "cache", **options)
    with pytest.raises(ValueError, match=r"capture: .* must be of") as caught:
        capture(echo, make_batches(), tmp_path / "cache", **options | change)
    assert message in str(caught.value)
    assert "resume=False" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "top:4"}, "keep must be one or several of 'logits', 'topk:K', "),
        ({"keep": "topk:0"}, "and 'hidden', got 'topk:0'. Pass e.g. 'topk:64'"),
        ({"keep": "topk:²"}, "got 'topk:²'"),
        ({"keep": "sampled:256"}, "'sampled:N' (N <= 255) and 'hidden', got 'sampled:256'"),
        ({"keep": ()}, "got ()"),
        ({"keep": ("logits", "logits")}, "got ('logits', 'logits')"),
        ({"keep": "hidden"}, "keep='hidden' needs a model whose get_output_embeddings() is a"),
        ({"proposal_exponent": 0.0}, "proposal_exponent must be positive, got 0.0"),
        ({"hidden_dtype": "int4"}, "hidden_dtype must be a known name, got 'int4'"),
        ({"keep": "topk:7"}, "keep must not select more than the 6 columns there are"),
        ({"keep": "topk:2", "temperatures": ()}, "temperatures must be at least one"),
        ({"keep": "topk:2", "temperatures": (1.0, 1.0)}, "temperatures must be at least one"),
        ({"keep": "topk:2", "temperatures": (0.0,)}, "temperatures must be positive, got 0.0"),
        ({"vocab_size": 7}, "vocab_size must not exceed the teacher's 6 columns, got 7"),
        ({"vocab_size": -1}, "vocab_size must be positive, got -1"),
        ({"shard_bytes": 0}, "shard_bytes must be positive, got 0"),
        ({"logits_dtype": "float8"}, "logits_dtype must be a known name, got 'float8'"),
    ],
)
def test_arguments_out_of_range(tmp_path, echo, make_batches, options, message):
    options = {"keep": "logits", "fingerprints": ORIGIN} | options
    with pytest.raises(ValueError, match="capture: ") as caught:
        capture(echo, make_batches(), tmp_path / "cache", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("layers", [(3,), (-4,), (1, 1), (2, -1)])
def test_layers_out_of_range(tmp_path, classifier, make_batches, layers):
    with pytest.raises(ValueError, match="hidden_layers must be different numbers from -3 to 2"):
        capture(classifier, make_batches(), tmp_path / "c", keep="logits", hidden_layers=layers)


def test_batches_that_make_no_sense(tmp_path, echo, make_batches):
    good = make_batches(num_batches=1)[0]
    options = {"keep": "logits", "fingerprints": ORIGIN}
    with pytest.raises(ValueError, match="batches must hold samples, got none"):
        capture(echo, [], tmp_path / "empty", **options)
    with pytest.raises(ValueError, match=r"sample ids must differ, got \d+ twice"):
        capture(echo, [good, good], tmp_path / "twice", **options)
    with pytest.raises(ValueError, match=r"a batch must have input_ids \[B, S\]"):
        capture(echo, [replace(good, sample_ids=good.sample_ids[:2])], tmp_path / "c", **options)
    with pytest.raises(TypeError, match=r"got dict without attention_mask, sample_ids\."):
        capture(echo, [{"input_ids": good.input_ids}], tmp_path / "d", **options)


@pytest.mark.parametrize(
    ("keep", "value"), [("logits", torch.nan), ("logits", torch.inf), ("topk:2", torch.nan)]
)
def test_outputs_that_are_not_finite_are_not_stored(tmp_path, echo, make_batches, keep, value):
    batches = make_batches(num_batches=1)
    with torch.no_grad():
        echo.table[batches[0].input_ids[2, 0], 3] = value
    with pytest.raises(ValueError, match=r"the teacher's .*log.* must be finite") as caught:
        capture(echo, batches, tmp_path / "cache", keep=keep, fingerprints=ORIGIN)
    assert str(batches[0].sample_ids.tolist()) in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "fact"),
    [
        (SimpleNamespace(logits=torch.zeros(4)), "[4]"),
        (SimpleNamespace(last_hidden_state=None), "outputs without logits"),
    ],
)
def test_outputs_that_are_no_logits(tmp_path, echo, make_batches, outputs, fact):
    echo.forward = lambda input_ids, attention_mask: outputs
    message = f"the teacher's logits must be [B, V] or [B, S, V], got {fact}"
    with pytest.raises(ValueError, match=re.escape(message)):
        capture(echo, make_batches(), tmp_path / "cache", keep="logits", fingerprints=ORIGIN)


def test_a_folder_of_other_files_is_left_alone(tmp_path, echo, make_batches):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="must be new, empty or left by the same") as caught:
        capture(echo, make_batches(), tmp_path, keep="logits", fingerprints=ORIGIN)
    assert "'thesis.tex'" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_teacher_is_fingerprinted_where_nobody_did(tmp_path, classifier, make_batches):
    cache = capture(classifier, make_batches(), tmp_path / "cache", keep="logits")
    assert asdict(cache.fingerprints) == {
        "teacher": cache.fingerprints.teacher,
        "tokenizer": None,
        "chat_template": None,
        "dataset": None,
        "precision": "float32",
    }
    assert len(cache.fingerprints.teacher) == 64
    assert (
        TeacherCache.open(tmp_path / "cache", expect=cache.fingerprints).manifest == cache.manifest
    )


@pytest.mark.parametrize("keep", ["topk:3", "sampled:4"])
def test_what_rounds_otherwise_does_not_go_on(tmp_path, monkeypatch, echo, make_batches, keep):
    """Not a capture, nor a repair or a merge, with what was made by the C++ kernels or without."""
    options = {"keep": keep, "fingerprints": ORIGIN, "shard_bytes": 1}
    batches, other_batches = make_batches(3), make_batches(2)
    by = capture(echo, batches, tmp_path / "whole", **options).manifest.outputs.rounds_as
    with pytest.raises(KeyboardInterrupt):
        capture(echo, batches, tmp_path / "stopped", **options, progress=stop)
    monkeypatch.setattr(kept, "rounds_as", lambda logits: "another")
    message = rf"must be of rounds_as 'another', got rounds_as '{re.escape(by)}'"
    with pytest.raises(ValueError, match=message):
        capture(echo, batches, tmp_path / "stopped", **options)
    capture(echo, other_batches, tmp_path / "other", **options)
    with pytest.raises(ValueError, match="must be of outputs"):
        merge([tmp_path / "other", tmp_path / "whole"], tmp_path / "merged")
    (tmp_path / "whole" / "shard-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        repair(tmp_path / "whole", echo, batches, fingerprints=ORIGIN)


def stop(progress: CaptureProgress) -> None:
    """As a user does, once something is written."""
    if progress.num_samples > 3:
        raise KeyboardInterrupt


def test_only_what_is_made_of_logits_says_by_what(tmp_path, causal, make_batches):
    caches = {
        keep: capture(causal, make_batches(1), tmp_path / keep, keep=keep)
        for keep in ("logits", "hidden", "topk:2", "sampled:3")
    }
    said = {keep: cache.manifest.outputs.rounds_as for keep, cache in caches.items()}
    assert said["logits"] is None
    assert said["hidden"] is None
    assert said["topk:2"] == said["sampled:3"]
    assert said["topk:2"] is not None
