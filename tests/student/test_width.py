"""A narrower student computes with the units it kept just what the teacher computes with them."""

import copy
import re

import pytest
import student_families as families
import torch
import transformers as hf
from budget import assert_within_budget
from torch import nn
from transformers.pytorch_utils import Conv1D

from mkd_fast.student import copy_init, copy_with_report

GROUPED = ("llama", "llama, tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3")
SAME_NAMES = ("bert, pad 1", "bert decoder", "xlm-r", "mistral", "smollm3")  # as another family's
REFUSED = ("deberta", "deberta-v2")  # whose positions have projections of their own
CASES = [
    (family, head)
    for family, head in families.CASES
    if head in ("sequence", "masked", "causal") and family not in (*SAME_NAMES, *REFUSED)
]
TURNED = [
    (family, head)
    for family, head in CASES
    if family in ("gpt-2", "gpt-neox", "llama", "llama, tied", "qwen2", "qwen3")
]

# What 12 of 16 units, 10 of 24 feed-forward units, 3 of 4 heads (ungrouped), and 1 of 2 groups of
# 2 heads with 8 units are, evenly spaced.
RESIDUAL = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
UNITS = [0, 2, 4, 7, 9, 12, 14, 16, 19, 21]
HEADS = list(range(12))
GROUPED_HEADS, GROUP = list(range(16)), list(range(8))


def make(family, head, **settings):
    grouped = {"num_key_value_heads": 2} if family in GROUPED else {}
    return families.make(family, head, num_attention_heads=4, **grouped, **settings)


def narrower(teacher, family, **settings):
    heads = {"num_heads": 2} if family in GROUPED else {}
    sizes = {"hidden_size": 12, "intermediate_size": 10, **heads}
    return copy_init(teacher, num_layers=families.NUM_LAYERS, **{**sizes, **settings})


def side_by_side(rows, length, times=3):
    """The same rows of several parts, one after another."""
    return [part * length + row for part in range(times) for row in rows]


def kept_indices(name, family):
    """What a matrix keeps of its inputs and outputs, by its name in the teacher: written by hand.

    Returns:
        Inputs, outputs; None for all.
    """
    heads = GROUPED_HEADS if family in GROUPED else HEADS
    group = GROUP if family in GROUPED else HEADS
    interleaved = [head * 12 + row for head in range(3) for row in range(12)]  # q k v of each head
    feed_forward = 24 if family != "gpt-2" else 64
    units = UNITS if family != "gpt-2" else [i * 64 // 10 for i in range(10)]
    for pattern, inputs, outputs in (
        (r"\.(query|q_lin|q_proj|query_proj)$", RESIDUAL, heads),
        (r"\.(key|value|[kv]_lin|[kv]_proj|key_proj|value_proj)$", RESIDUAL, group),
        (r"\.(c_attn|Wqkv)$", RESIDUAL, side_by_side(HEADS, 16)),
        (r"\.query_key_value$", RESIDUAL, interleaved),
        (r"\.(attention\.output\.dense|out_lin|o_proj|attn\.c_proj|attn\.Wo|attention\.dense)$",
         heads, RESIDUAL),
        (r"\.Wi$", RESIDUAL, side_by_side(units, feed_forward, 2)),
        (r"\.(intermediate\.dense|lin1|gate_proj|up_proj|c_fc|dense_h_to_4h)$", RESIDUAL, units),
        (r"\.(output\.dense|lin2|down_proj|mlp\.c_proj|mlp\.Wo|dense_4h_to_h)$", units, RESIDUAL),
        (r"(decoder|vocab_projector|lm_head|score|out_proj|^classifier)$", RESIDUAL, None),
        (r"(dense|pre_classifier|vocab_transform)$", RESIDUAL, RESIDUAL),
    ):  # fmt: skip
        if re.search(pattern, name):
            if re.search(r"classifier\.dense$|pre_classifier$", name):
                return RESIDUAL, RESIDUAL
            return inputs, outputs
    raise AssertionError(f"no rule for {name}")


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_product_is_the_teachers_with_the_dropped_units_at_zero(family, head):
    teacher = make(family, head)
    student = narrower(teacher, family)
    families.outputs(student)
    scale = (16 / 12) ** 0.5 if family.startswith("gemma") else 1.0
    num_products = 0
    for name, matrix in student.named_modules():
        if not isinstance(matrix, nn.Linear | Conv1D):
            continue
        inputs, outputs = kept_indices(name, family)
        wide = teacher.get_submodule(name)
        length = wide.nx if isinstance(wide, Conv1D) else wide.in_features
        x = torch.randn(3, len(inputs), generator=torch.Generator().manual_seed(0))
        dropped_at_zero = torch.zeros(3, length).index_copy_(1, torch.tensor(inputs), x)
        with torch.no_grad():
            found, plain = matrix(x), wide(dropped_at_zero)
            exact = wide.double()(dropped_at_zero.double())
            wide.float()
        if outputs is not None:
            plain, exact = plain[:, outputs], exact[:, outputs]
        tied = matrix.weight is student.get_input_embeddings().weight
        factor = scale if tied else 1.0  # Gemma's embeddings, and so the head that is tied to them
        assert_within_budget(found, factor * exact, factor * plain, name)
        num_products += 1
    assert num_products >= 4 * families.NUM_LAYERS


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_other_tensor_is_the_kept_part_of_the_teachers(family, head):
    teacher = make(family, head)
    weights, student = teacher.state_dict(), narrower(teacher, family)
    matrices = {name for name, m in student.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for name, tensor in student.state_dict().items():
        if name.rpartition(".")[0] in matrices or family.startswith("gemma"):
            continue
        wanted = weights[name]
        for axis, length in enumerate(wanted.shape):
            if tensor.shape[axis] != length:
                assert (length, tensor.shape[axis]) == (16, 12), name
                wanted = wanted.index_select(axis, torch.tensor(RESIDUAL))
        assert torch.equal(tensor, wanted), name


@pytest.mark.parametrize("width", ["uniform", "activation"])
@pytest.mark.parametrize(("family", "head"), CASES)
def test_keeping_all_of_the_width_is_the_teacher_bit_for_bit(family, head, width):
    teacher = make(family, head)
    sizes = {"hidden_size": 16, "num_heads": 4, "width": width, "calibration": [families.inputs()]}
    student = copy_init(teacher, num_layers=families.NUM_LAYERS, **sizes)
    assert student.config.to_dict() == teacher.config.to_dict()
    families.assert_equal(families.outputs(student), families.outputs(teacher))


def test_units_are_chosen_by_calibration_text_where_there_is_some():
    teacher, text = make("llama", "causal"), [families.inputs()]
    for text_or_none, width in ((text, "activation"), (None, "uniform")):
        student = narrower(teacher, "llama", calibration=text_or_none)
        named = narrower(teacher, "llama", calibration=text_or_none, width=width)
        families.assert_equal(families.outputs(student), families.outputs(named))


@pytest.mark.parametrize(("family", "head"), TURNED)
def test_turning_the_stream_without_cutting_it_changes_nothing_but_rounding(family, head):
    teacher = make(family, head)
    student = narrower(
        teacher,
        family,
        hidden_size=16,
        num_heads=4,
        intermediate_size=None,
        width="pca",
        calibration=[families.inputs()],
    )
    words = student.get_input_embeddings().weight
    assert not torch.allclose(words, teacher.get_input_embeddings().weight)
    with torch.no_grad():
        found = student(**families.inputs())[0]
        exact = teacher.double()(**families.inputs())[0]
        rounded = rounded_weights(teacher)(**families.inputs())[0]
    assert_within_budget(found, exact, rounded.float())


def rounded_weights(teacher):
    """The teacher, in float64, with the error that a student's weights have: each rounded once."""
    moved = copy.deepcopy(teacher).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in moved.parameters():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor += torch.finfo(torch.float32).eps * tensor.abs().max() * noise
    return moved


@pytest.mark.parametrize("width", ["activation", "pca"])
def test_a_narrower_student_that_is_saved_and_loaded_says_the_same(tmp_path, width):
    teacher = make("llama, tied", "causal")
    student = narrower(teacher, "llama, tied", width=width, calibration=[families.inputs()])
    assert student.config.tie_word_embeddings is (width == "activation")
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    families.assert_equal(families.outputs(loaded), families.outputs(student))


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "gpt-neox", "deberta-v3", "modernbert"])
def test_a_uniform_student_that_is_saved_and_loaded_says_the_same(tmp_path, family):
    student = narrower(make(family, "sequence"), family)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    families.assert_equal(families.outputs(loaded), families.outputs(student))


def test_depth_width_and_vocabulary_are_cut_together():
    teacher = make("xlm-r", "sequence")
    student, report = copy_with_report(
        teacher, [1, 4], hidden_size=8, intermediate_size=12, keep_token_ids=range(20)
    )
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 8, 2)
    assert config.vocab_size == 20
    words = teacher.get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, words[:20, ::2])
    query = "roberta.encoder.layer.{}.attention.self.query.weight"
    rows = {row.name: row for row in report.tensors}
    assert rows[query.format(1)].source == query.format(4)
    assert rows[query.format(1)].how == "residual units (uniform 8 of 16), heads 0 2"
    assert rows["roberta.encoder.layer.0.intermediate.dense.weight"].how == (
        "residual units (uniform 8 of 16), feed-forward units (uniform 12 of 24)"
    )
    assert rows["roberta.embeddings.word_embeddings.weight"].how == (
        "kept tokens' rows, residual units (uniform 8 of 16)"
    )
    assert sum(part.parameters_after for part in report.parts) == student.num_parameters()
    assert sum(part.parameters_before for part in report.parts) == teacher.num_parameters()


def test_groups_keep_their_heads_or_as_many_of_each():
    teacher = make("llama", "sequence")
    name = "model.layers.0.self_attn.{}_proj.weight"
    before = {part: teacher.state_dict()[name.format(part)].view(-1, 8, 16) for part in "qk"}
    for settings, queries, keys in (
        ({"num_heads": 2}, [0, 1], [0]),
        ({"num_heads": 2, "num_key_value_heads": 2}, [0, 2], [0, 1]),
        ({"num_heads": 1, "num_key_value_heads": 1}, [0], [0]),
    ):
        student = copy_init(teacher, num_layers=6, **settings)
        after = {part: student.state_dict()[name.format(part)].view(-1, 8, 16) for part in "qk"}
        assert torch.equal(after["q"], before["q"][queries])
        assert torch.equal(after["k"], before["k"][keys])


def refuse(message, teacher, error=ValueError, **settings):
    with pytest.raises(error, match=f"^copy_init: .*{re.escape(message)}"):
        copy_init(teacher, num_layers=2, **settings)


def test_sizes_that_a_teacher_cannot_be_cut_to_are_refused():
    bert, llama = make("bert", "sequence"), make("llama", "sequence")
    refuse("hidden_size must lie in [1, 16], as the teacher has 16, got 32. A copy", bert,
           hidden_size=32)  # fmt: skip
    refuse("intermediate_size must lie in [1, 24]", bert, intermediate_size=0)
    refuse("num_heads must lie in [1, 4]", llama, num_heads=5)
    refuse("num_key_value_heads must lie in [1, 2]", llama, num_key_value_heads=4)
    refuse("hidden_size must be a multiple of 4, the length of a head, for this family has no "
           "head_dim of its own, got 10. Pass 8 or 12.", bert, hidden_size=10)  # fmt: skip
    refuse("num_heads must be hidden_size / 4 = 2, for this family has no head_dim of its own, "
           "got 3. Pass one of the two.", bert, hidden_size=8, num_heads=3)  # fmt: skip
    refuse("num_heads must be a multiple of 2, the query heads that share a key/value head, got 3.",
           llama, num_heads=3)  # fmt: skip
    refuse("num_heads must be num_key_value_heads = 1 times 1 to 2, the same number of each group, "
           "got 3. Pass", llama, num_heads=3, num_key_value_heads=1)  # fmt: skip
    refuse("must be a model that its family can have, got LlamaConfig: ValueError: The hidden size "
           "(9) is not a multiple", llama, hidden_size=9, num_heads=2)  # fmt: skip
    assert copy_init(bert, num_layers=2, num_heads=3).config.hidden_size == 12


def test_a_choice_by_data_wants_data():
    teacher = make("llama", "sequence")
    refuse('calibration must be batches of text for width="pca", got None. Pass dicts', teacher,
           hidden_size=8, width="pca")  # fmt: skip
    refuse("width must be a known name, got 'best'.", teacher, hidden_size=8, width="best")
    refuse("must have input_ids and attention_mask, got list without them.", teacher, TypeError,
           hidden_size=8, width="activation", calibration=[[]])  # fmt: skip
    nothing = {**families.inputs(), "attention_mask": torch.zeros(2, 13, dtype=torch.int64)}
    refuse("calibration", teacher, hidden_size=8, width="activation", calibration=[nothing])


@pytest.mark.parametrize(
    ("family", "head", "why"),
    [
        ("bert", "sequence", "norms scale units of the stream"),
        ("modernbert", "masked", "norms scale units of the stream"),
        ("gemma2", "causal", "norms scale units of the stream, or of what is written to it"),
        ("gpt-2", "bare", "outputs are the stream itself"),
    ],
)
def test_a_stream_with_directions_of_its_own_is_not_turned(family, head, why):
    refuse(why, make(family, head), hidden_size=12, width="pca", calibration=[families.inputs()])


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_with_units_bound_to_their_place_is_refused(family):
    teacher = make(family, "sequence")
    refuse(
        "a teacher that is made narrower must do the same with its units in another order, got "
        f"{type(teacher).__name__}, whose residual units are bound to their place.",
        teacher,
        hidden_size=12,
    )


def test_a_family_whose_units_are_not_found_is_refused():
    experts = hf.MixtralForCausalLM(
        hf.MixtralConfig(**families.GROUPED, num_local_experts=2, num_experts_per_tok=1)
    )
    refuse("got MixtralForCausalLM, whose feed-forward units", experts, hidden_size=12)
    refuse(
        "the config of a teacher that is made narrower must say hidden_size, num_attention_heads "
        "and intermediate_size, got Gemma3ForConditionalGeneration without hidden_size",
        families.make_multimodal(),
        hidden_size=12,
    )
