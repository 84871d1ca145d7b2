"""Every kind of target: what a loss gets is what the teacher said, as far as the kind promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, Gemma2Config, Gemma2ForCausalLM

from mkd_fast import kd_loss, linear_kd_loss
from mkd_fast.losses.targets import (
    Int8Hidden,
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    TeacherHead,
)
from mkd_fast.teacher.cache.kinds import (
    LogitsKind,
    LogitsRows,
    Origin,
    Read,
    Sampled,
    States,
    TopK,
    uniform_numbers,
)
from mkd_fast.teacher.capture import capture
from mkd_fast.teacher.keep_logits import Asked, Kept, keep_logits, keep_logits_in_torch

VOCAB_SIZES = st.sampled_from([1, 2, 5, 61, 65_536, 131_072, 250_037, 2**18, 2**18 + 1, 2**24])


def drawn(
    kind: Sampled, z: torch.Tensor, seed: int = 0, keeps: Callable[..., Kept] = keep_logits
) -> dict[str, np.ndarray]:
    """What is stored of rows of logits that belong to one sample."""
    origin = Origin(np.array([0]), np.array([len(z)]))
    uniforms = torch.from_numpy(uniform_numbers(seed, kind.num_draws, origin))
    asked = Asked(
        kind.num_columns,
        draw_temperature=kind.temperature,
        proposal_exponent=kind.proposal_exponent,
    )
    return stored_of(kind, z, keeps(z, torch.arange(len(z)), asked, uniforms))


def stored_of(kind: LogitsKind, z: torch.Tensor, kept: Kept) -> dict[str, np.ndarray]:
    """By the name of its tensor."""
    made = kind.on_device(LogitsRows(z, torch.arange(len(z)), kept))
    return kind.on_host({name: rows.numpy() for name, rows in made.items()}).tensors


def reading(stored: dict[str, np.ndarray], padding: int = 0) -> Read:
    """Stored rows, as a batch of samples of one row, with empty samples at its end."""

    def read(name: str, fill: int) -> np.ndarray:
        rows = stored[name]
        if name.endswith((".ids", ".weights")):  # on axes of their own
            return rows
        return np.concatenate([rows, np.full((padding, rows.shape[1]), fill, rows.dtype)])

    return read


@settings(max_examples=200, deadline=None)
@given(vocab_size=VOCAB_SIZES, data=st.data())
def test_packed_entries_come_back(vocab_size, data):
    kept = data.draw(st.integers(1, min(vocab_size, 6)))
    ids = data.draw(st.lists(st.integers(-1, vocab_size - 1), min_size=kept, max_size=kept))
    distances = data.draw(
        st.lists(st.floats(0, 5e4, width=32) | st.just(np.inf), min_size=kept, max_size=kept)
    )
    kind = TopK(kept, vocab_size, (1.0,))
    packed = kind.pack(np.array([ids], np.int32), np.array([distances], np.float32))
    assert packed.shape == (1, kept * (4 if vocab_size <= 2**18 else 5))
    got_ids, got = kind.unpack(packed)
    assert got_ids.tolist() == [ids]
    for number, distance, found in zip(ids, distances, got[0].tolist(), strict=True):
        if number >= 0:  # half a step of float16, and a whole one where its last bit is lost
            steps = 1.5 if 2**17 < vocab_size <= 2**18 else 0.5
            assert found == distance or abs(found - distance) <= steps * max(
                2**-10 * distance, 2**-24
            )


def test_the_farthest_logits_stay_finite():
    kind = TopK(2, 250_037, (1.0,))
    ids = np.array([[250_036, 0]], np.int32)
    _, distances = kind.unpack(kind.pack(ids, np.array([[0.0, 3e38]], np.float32)))
    assert distances.tolist() == [[0.0, 57_344.0]]


def test_logits_of_minus_infinity_and_padding(tmp_path):
    z = torch.tensor([[1.0, -torch.inf, 3.0, -torch.inf]])
    kind = TopK(3, 4, (1.0, 2.0))
    asked = Asked(4, num_top=3, temperatures=kind.temperatures)
    no_draws = torch.empty(1, 0, dtype=torch.float64)
    stored = stored_of(kind, z, keep_logits(z, torch.zeros(1, dtype=torch.int64), asked, no_draws))
    teacher = kind.target(reading(stored, padding=1), temperature=2.0)
    assert teacher.logits.tolist() == [[3.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]]
    assert teacher.ids[0, :2].tolist() == [2, 0]
    assert (teacher.ids[1] == -1).all()
    assert_within_budget(teacher.log_z[:1], (z.double() / 2).logsumexp(-1), (z / 2).logsumexp(-1))


@pytest.mark.parametrize("keeps", [keep_logits, keep_logits_in_torch])
@pytest.mark.parametrize("exponent", [1.0, 0.7, 1.3])
def test_sampled_gradients_are_those_of_the_dense_loss_on_average(exponent, keeps):
    torch.manual_seed(0)
    num_rows, num_columns, temperature = 4000, 40, 1.5
    z = (3 * torch.randn(1, num_columns)).expand(num_rows, -1)
    student = torch.randn(1, num_columns, dtype=torch.float64, requires_grad=True)
    kind = Sampled(20, num_columns, temperature, exponent)
    teacher = kind.target(reading(drawn(kind, z, keeps=keeps)), temperature)
    wants = PackedSampledTeacher if exponent == 1.0 else SampledTeacher
    assert isinstance(teacher, wants)
    rows = student.expand(num_rows, -1)
    options = {"temperature": temperature, "reduction": "none"}
    loss = kd_loss(rows, teacher, impl="eager", **options).loss
    (each,) = torch.autograd.grad(loss.sum(), rows)
    dense = kd_loss(student, z[:1].double(), temperature=temperature).loss
    (exact,) = torch.autograd.grad(dense, student)
    error = each.mean(0) - exact[0]
    standard_error = each.std(0) / num_rows**0.5
    # 40 columns: beyond 4.5 standard errors once in 4,000 seeds
    assert (error.abs() <= 4.5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("keeps", [keep_logits, keep_logits_in_torch])
def test_improbable_ids_are_drawn_as_often_as_they_should_be(keeps):
    """250,000 columns that share 1 %: a float32 sum would lose every one of them."""
    num_columns, num_rows = 250_037, 64
    z = torch.zeros(num_columns)
    z[0] = np.log(99 * (num_columns - 1))
    kind = Sampled(250, num_columns, 1.0, 1.0)
    stored = drawn(kind, z.expand(num_rows, -1), 1, keeps)
    teacher = kind.target(reading(stored), 1.0)
    is_rare = teacher.ids > 0
    draws = num_rows * 250
    share = (teacher.weights * is_rare).sum().item() / num_rows
    assert abs(share - 0.01) <= 4.5 * (0.01 * 0.99 / draws) ** 0.5
    # and they are spread evenly: the mean of uniform ids, again within 4.5 standard errors
    ids = teacher.ids[is_rare].double() / num_columns
    assert abs(ids.mean() - 0.5) <= 4.5 * (1 / 12 / len(ids)) ** 0.5


@pytest.mark.parametrize(
    ("num_draws", "num_columns", "is_packed"),
    [
        (50, 250_037, True),
        (63, 2**18, True),
        (64, 2**18, False),
        (100, 131_072, True),
        (255, 2**24, False),
        (1, 1, True),
        (8, 9, True),
    ],
)
def test_draws_are_packed_where_ids_and_counts_allow(num_draws, num_columns, is_packed):
    kind = Sampled(num_draws, num_columns, 1.0, 1.0)
    z = torch.full((2, num_columns), -torch.inf)
    z[0, -1] = z[1, num_columns // 2] = 0.0  # every draw is the same id
    teacher = kind.target(reading(drawn(kind, z)), 1.0)
    assert isinstance(teacher, PackedSampledTeacher) == is_packed
    if isinstance(teacher, PackedSampledTeacher):
        teacher = teacher.unpacked()
    assert teacher.ids.tolist() == [[num_columns - 1], [num_columns // 2]]
    assert teacher.weights.tolist() == [[1.0], [1.0]]


def test_draws_depend_on_seed_and_sample_only(tmp_path, causal, make_batches):
    batches = make_batches()
    options = {"keep": "sampled:9", "shard_bytes": 300}
    together = capture(causal, batches, tmp_path / "together", **options)
    alone = [
        {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None],
         "sample_ids": number[None]}
        for batch in batches
        for ids, mask, number in zip(
            batch.input_ids, batch.attention_mask, batch.sample_ids, strict=True
        )
    ]  # fmt: skip
    apart = capture(causal, alone[::-1], tmp_path / "apart", **options)
    another = capture(causal, batches, tmp_path / "another", **options, seed=1)
    ids = together.sample_ids
    entries = [cache.batch(ids).teacher.entries for cache in (together, apart, another)]
    # forward passes of other shapes may round otherwise, which moves a draw once in a while
    assert entries[0].shape[:2] == entries[1].shape[:2]
    same = entries[0][..., :2, :] == entries[1][..., :2, :]
    assert same.double().mean() > 0.98
    assert (entries[0].shape != entries[2].shape) or not torch.equal(entries[0], entries[2])


@pytest.fixture(scope="module")
def masked() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    model = BertForMaskedLM(config).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


@pytest.fixture(scope="module")
def capped() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        final_logit_softcapping=3.0,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("model_name", ["causal", "masked", "capped"])
@pytest.mark.parametrize("keep", ["hidden", ("hidden", "logits")])
def test_logits_from_the_cached_head_are_the_models(
    tmp_path, request, make_batches, model_name, keep
):
    model = request.getfixturevalue(model_name)
    batches = make_batches()
    cache = capture(model, batches, tmp_path / "cache", keep=keep, hidden_layers=(1,))
    assert model.get_output_embeddings().weight.shape[0] == 61
    cap = cache.manifest.outputs.softcap
    assert cap == (3.0 if model_name == "capped" else None)
    for batch in batches:
        got = cache.batch(batch.sample_ids, keep="hidden")
        assert isinstance(got.teacher, TeacherHead)
        with torch.inference_mode():
            expected = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=True,
            )
        logits = torch.nn.functional.linear(got.teacher.hidden, *got.head.on("cpu"))
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        mask = got.hidden_mask
        torch.testing.assert_close(logits[mask], expected.logits[mask])
        assert torch.equal(got.hidden[0][mask], expected.hidden_states[1][mask].bfloat16())


def test_a_cached_head_trains_as_the_cached_logits_do(tmp_path, capped, make_batches):
    batch = make_batches(1)[0]
    cache = capture(capped, [batch], tmp_path / "cache", keep=("hidden", "logits"))
    torch.manual_seed(1)
    grads = []
    for keep in ("hidden", "logits"):
        got = cache.batch(batch.sample_ids, keep=keep)
        weight = (0.1 * torch.randn(61, 8, generator=torch.manual_seed(2))).requires_grad_()
        states = torch.randn(*got.hidden_mask.shape, 8, generator=torch.manual_seed(3))
        # cached logits are capped already, those of the head are not
        cap = cache.manifest.outputs.softcap if keep == "hidden" else None
        out = linear_kd_loss(
            states, weight, got.teacher, mask=got.hidden_mask, temperature=2.0, teacher_softcap=cap
        )
        out.loss.backward()
        grads.append((out.loss.detach(), weight.grad))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_several_kinds_in_one_pass(tmp_path, causal, make_batches):
    keep = ("logits", "topk:3", "topk:61", "sampled:5", "sampled:9", "hidden")
    batches = make_batches()
    cache = capture(causal, batches, tmp_path / "cache", keep=keep, shard_bytes=4000)
    assert len(cache.manifest.shards) > 1
    kinds: list[type] = [torch.Tensor, SparseTeacher, SparseTeacher]
    kinds += [PackedSampledTeacher, PackedSampledTeacher, TeacherHead]
    for batch in batches:
        ids = batch.sample_ids
        for kind, wants in zip(keep, kinds, strict=True):
            assert isinstance(cache.batch(ids, keep=kind).teacher, wants)
        got = cache.batch(ids, keep="topk:61")
        dense = cache.batch(ids, keep="logits").teacher[got.hidden_mask]
        everything = got.teacher.logits[got.hidden_mask]
        order = got.teacher.ids[got.hidden_mask].long()
        error = (dense.gather(-1, order) - everything).abs()
        # float16 keeps 11 bits of a distance, and float32 24 of a logit
        distances = everything[:, :1] - everything
        assert (error <= 2**-11 * distances + 2**-23 * dense.abs().amax()).all()
    with pytest.raises(ValueError, match=r"keep must be one of those in .*, got none named"):
        cache.batch(ids)
    with pytest.raises(ValueError, match=r"\['logits', .*'hidden'\], got 'topk:4'"):
        cache.batch(ids, keep="topk:4")
    with pytest.raises(ValueError, match=r"log_z for, \[1.0\], got 2.0|temperature must be one"):
        cache.batch(ids, keep="sampled:5", temperature=2.0)


def test_hidden_states_in_eight_bits(tmp_path, causal, make_batches):
    batches = make_batches()
    cache = capture(
        causal,
        batches,
        tmp_path / "cache",
        keep="topk:2",
        hidden_layers=(1, 2),
        hidden_dtype="int8",
    )
    for batch in batches:
        got = cache.batch(batch.sample_ids)
        with torch.inference_mode():
            states = causal(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=True,
            ).hidden_states
        for hidden, layer in zip(got.hidden, (1, 2), strict=True):
            assert isinstance(hidden, Int8Hidden)
            rows = states[layer][got.hidden_mask]
            half_a_step = rows.abs().amax(-1, keepdim=True) / 127 / 2
            error = (hidden.dequantised()[got.hidden_mask] - rows).abs()
            assert (error <= half_a_step * (1 + 1e-5)).all()


def test_a_row_of_zeros_in_eight_bits():
    made = States("hidden.1", "int8").on_device(torch.zeros(2, 3))
    assert not made["hidden.1"].any()
    assert made["hidden.1.scale"].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("keep", ["hidden", "sampled:4", "topk:3", "logits"])
def test_a_batch_moves_with_all_it_has(tmp_path, causal, make_batches, keep):
    batches = make_batches()
    cache = capture(causal, batches, tmp_path / "cache", keep=keep, hidden_layers=(1,))
    batch = cache.batch(batches[0].sample_ids)
    moved = batch.to("meta")
    parts = moved.teacher if keep == "logits" else list(vars(moved.teacher).values())
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    assert {part.device.type for part in [*tensors, *moved.hidden]} == {"meta"}
    if keep == "hidden":  # a head is moved once
        again = cache.batch(batches[1].sample_ids).to("meta")
        assert again.teacher.weight is moved.teacher.weight


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), sample_id=st.integers(-(2**63), 2**63 - 1))
def test_any_sample_id_is_a_key(seed, sample_id):
    uniforms = uniform_numbers(seed, 3, Origin(np.array([sample_id]), np.array([2])))
    assert uniforms.shape == (2, 3)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
