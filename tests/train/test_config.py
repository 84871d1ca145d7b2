"""The settings of a recipe, and every way in which one can be wrong."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_text import write

from mkd_fast.checks.wording import is_ours
from mkd_fast.train.config import Config, from_dict, load
from mkd_fast.train.recipe import to_dict

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(set(FOLDER.glob("*.toml")) - set(FOLDER.glob("study_*.toml")))
# A value other than the default for every key, as TOML gives it.
EVERY_KEY = {
    "run": {"folder": "here", "seed": 3, "device": "cpu", "trackers": ["wandb"]},
    "task": {"kind": "token_classification"},
    "data": {
        "source": "hub",
        "train": "train",
        "dev": "some",
        "test": "validation",
        "seen": ["de", "en"],
        "unseen": ["sw"],
        "vocabulary_text": "more.txt",
        "hub_name": "AmazonScience/massive",
        "hub_config": "all_1.1",
        "text_column": "utt",
        "label_column": "intent",
        "language_column": "locale",
        "entity_types": ["PER"],
        "train_per_intent": 2,
        "dev_per_intent": 3,
        "test_per_intent": 1,
        "text_prefix": "query: ",
        "max_length": 9,
        "num_maskings": 3,
        "mask_share": 0.25,
        "language_temperature": 3.0,
    },
    "teacher": {"model": "folder", "finetuned": True},
    "finetune": {
        "epochs": 1,
        "batch_size": 2,
        "accumulate": 3,
        "head_rate": 10.0,
        "schedule": "wsd",
        "decay": 0.25,
        "learning_rate": 0.5,
        "warmup": 0.0,
        "weight_decay": 0.25,
        "optimizer": "adamw8bit",
        "max_grad_norm": 2.0,
        "precision": "bfloat16",
        "packing": 64,
        "compile": "layers",
        "checkpointing": True,
        "attention": "eager",
        "parallel": "fsdp",
        "freeze": ["embeddings"],
        "checkpoint_every": 5,
        "log_every": 6,
    },
    "capture": {
        "keep": "topk:8",
        "batch_size": 3,
        "shard_megabytes": 1,
        "hidden_dtype": "int8",
        "max_memory": "2GiB",
    },
    "student": {
        "depth": "last",
        "num_layers": 4,
        "hidden_size": 192,
        "num_heads": 6,
        "intermediate_size": 512,
        "width": "pca",
        "calibration_texts": 64,
        "vocabulary": "all",
        "coverage": 0.9,
    },
    "loss": {
        "divergence": "alpha_beta",
        "temperature": 2.0,
        "teacher_temperature": 3.0,
        "kd_weight": 0.5,
        "ce_weight": 0.25,
        "hidden_weight": 0.75,
        "hidden_distance": "cosine",
        "temperature_squared": False,
        "beta": 0.25,
        "alpha_beta": [0.3, 0.7],
        "reduction": "sum",
        "softcap": 30.0,
        "teacher_softcap": 20.0,
        "logit_scale": 0.5,
        "teacher_logit_scale": 0.25,
    },
    "loss_schedule": {
        "kd_weight": ["wsd", 0.0],
        "ce_weight": ["linear", 0.5],
        "hidden_weight": ["cosine", 0.25],
        "warmup": 0.25,
        "decay": 0.5,
    },
    "train": {"epochs": 7},
    "scratch": {"enabled": False, "learning_rate": 0.125, "hidden_weight": 0.5},
    "evaluate": {"batch_size": 4},
}


def test_every_key_of_every_section_arrives():
    assert list(EVERY_KEY) == [field.name for field in dataclasses.fields(Config)]
    resolved = json.loads(json.dumps(to_dict(from_dict(EVERY_KEY))))
    defaults = to_dict(Config())
    for section, values in EVERY_KEY.items():
        if section != "train":  # of the same class as finetune
            kept = {"ignore_index"} if section == "loss" else set()  # the labels are this package's
            assert set(values) == set(defaults[section]) - kept
        for key, value in values.items():
            assert resolved[section][key] == value != defaults[section][key]


def test_a_config_written_down_reads_back_as_it_was():
    config = from_dict(EVERY_KEY)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_an_empty_recipe_is_all_defaults(tmp_path):
    assert load(write(tmp_path, "")) == Config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_we_ship_load(path):
    assert load(path).run.folder == f"runs/{path.stem}"


def test_recipes_are_found():
    assert RECIPES


@pytest.mark.parametrize(
    ("depth", "wanted"), [('"first"', "first"), ("[1, 3]", (1, 3)), ("[]", ())]
)
def test_depth_is_a_name_or_a_list(tmp_path, depth, wanted):
    assert load(write(tmp_path, f"[student]\ndepth = {depth}")).student.depth == wanted


@pytest.mark.parametrize(
    "other", ['[student]\nvocabulary = "all"\n', "[scratch]\nenabled = false\n[student]\n"]
)
def test_rare_tokens_may_go_where_no_hidden_states_are_matched(tmp_path, other):
    recipe = f"{other}coverage = 0.9\n[loss]\nhidden_weight = {int('all' in other)}"
    assert load(write(tmp_path, recipe)).student.coverage == 0.9


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[tran]", ValueError, "sections must be known, got [tran]. Did you mean 'train'?"),
        ("[train]\nepoch = 1", ValueError, "[train]: keys must be known, got 'epoch'. Did you"),
        ("[loss]\ntemprature = 1.0", ValueError, "Did you mean 'temperature'?"),
        ("[evaluate]\nxyz = 1", ValueError, "got 'xyz'. Known: 'batch_size'."),
        ("epochs = 1", ValueError, "sections must be known, got [epochs]."),
        ("train = 1", TypeError, "keys must stand in a section, got 'train' outside of any."),
        ('[train]\nepochs = "3"', TypeError, "[train]: epochs must be int, got '3'."),
        ("[train]\nepochs = 3.0", TypeError, "epochs must be int, got 3.0."),
        ("[train]\nepochs = true", TypeError, "epochs must be int, got True."),
        ("[train]\nlearning_rate = true", TypeError, "learning_rate must be float, got True."),
        ('[train]\nfreeze = "a"', TypeError, "freeze must be tuple[str, ...], got 'a'."),
        ("[train]\nfreeze = [1]", TypeError, "freeze must be str, got 1."),
        ("[scratch]\nenabled = 1", TypeError, "enabled must be bool, got 1."),
        ('[student]\ndepth = ["a"]', TypeError, "depth must be str | tuple[int, ...], got ['a']."),
        ("[student]\ndepth = 1.5", TypeError, "depth must be str | tuple[int, ...], got 1.5."),
        ("[loss]\nalpha_beta = [1.0]", TypeError, "alpha_beta must be"),
        ('[data]\nsource = "file"', ValueError, "got 'file'. Did you mean 'files'?"),
        ("[data]\nsource = 3", ValueError, "source must be a known name, got 3."),
        ('[train]\nprecision = "fp16"', ValueError, "precision must be a known name, got 'fp16'."),
        ('[loss]\ndivergence = "forward"', ValueError, "Did you mean 'forward_kl'?"),
        ("[loss]\ntemperature = -1.0", ValueError, "temperature must be positive, got -1.0."),
        ("[train]\nepochs = 0", ValueError, "[train]: epochs must be positive, got 0."),
        ("[train]\nbatch_size = -8", ValueError, "batch_size must be positive, got -8."),
        ("[train]\naccumulate = 0", ValueError, "accumulate must be positive, got 0."),
        (
            '[loss_schedule]\nce_weight = ["cosin", 0.5]',
            TypeError,
            "ce_weight must be tuple[",
        ),
        ("[loss_schedule]\nce_weight = 0.5", TypeError, "ce_weight must be tuple["),
        ('[loss_schedule]\nkd_weight = ["wsd", -1.0]', ValueError, "kd_weight must be zero or pos"),
        ("[loss_schedule]\nwarmup = 2.0", ValueError, "[loss_schedule]: warmup must lie in [0, 1]"),
        ("[finetune]\nlog_every = 0", ValueError, "log_every must be positive, got 0."),
        ("[train]\ncheckpoint_every = 0", ValueError, "checkpoint_every must be positive, got 0."),
        ("[train]\nlearning_rate = 0.0", ValueError, "learning_rate must be positive, got 0.0."),
        ("[train]\nmax_grad_norm = nan", ValueError, "max_grad_norm must be positive, got nan."),
        ("[train]\nweight_decay = -0.1", ValueError, "weight_decay must be zero or positive"),
        ("[scratch]\nlearning_rate = -1.0", ValueError, "[scratch]: learning_rate must be"),
        ("[evaluate]\nbatch_size = 0", ValueError, "[evaluate]: batch_size must be positive"),
        ("[capture]\nbatch_size = 0", ValueError, "[capture]: batch_size must be positive"),
        ("[capture]\nshard_megabytes = 0", ValueError, "shard_megabytes must be positive, got 0"),
        ('[capture]\nkeep = "topk:0"', ValueError, "got 'topk:0'"),
        ('[student]\ndepth = "strid"', ValueError, "[student]: depth must be a known name"),
        ("[student]\ncalibration_texts = 0", ValueError, "calibration_texts must be positive"),
        ('[student]\nwidth = "wide"', ValueError, "[student]: width must be a known name"),
        ("[student]\nhidden_size = -1", ValueError, "hidden_size must be zero or positive, got -1"),
        ("[student]\nnum_layers = -1", ValueError, "num_layers must be zero or positive, got -1"),
        ("[student]\ncoverage = 0.0", ValueError, "coverage must lie in (0, 1], got 0.0."),
        (
            "[student]\ncoverage = 0.9\n[scratch]\nhidden_weight = 1",
            ValueError,
            "student.coverage must be 1 where words are tagged, tokens masked or states matched",
        ),
        (
            '[student]\ncoverage = 0.9\n[task]\nkind = "token_classification"',
            ValueError,
            "which goes token by token, got 0.9. Leave it out",
        ),
        ("[train]\nwarmup = 10", ValueError, "warmup must lie in [0, 1], got 10.0."),
        ('[data]\nseen = ["a", "b"]\nunseen = ["b"]', ValueError, "seen or unseen, got b as both."),
        ("[train", ValueError, "must be TOML, got"),
        ("[train]\nepochs = three", ValueError, "(at line 2, column 10). Mend that line."),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, kind, message):
    with pytest.raises(kind, match=re.escape(message)) as caught:
        load(write(tmp_path, text))
    assert is_ours(caught.value)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
_KEYS = sorted({key for values in EVERY_KEY.values() for key in values})


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([*EVERY_KEY, "other"]), st.sampled_from([*_KEYS, "other"]), _VALUES)
def test_whatever_stands_in_a_recipe_is_taken_or_refused_in_our_words(section, key, value):
    try:
        config = from_dict({section: {key: value}})
    except (ValueError, TypeError) as error:
        assert is_ours(error)  # noqa: PT017 - either is right
    else:
        written = json.loads(json.dumps(to_dict(config)))
        assert repr(from_dict(written)) == repr(config)  # by repr: nan is not itself


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            {"task": {"kind": "token_classification"}, "data": {"source": "home_intents"}},
            'source = "home_intents" is text for sequence_classification, got',
            id="text without tags",
        ),
        pytest.param(
            {"data": {"source": "home_text"}},
            'source = "home_text" is text for masked_lm or causal_lm, got',
            id="text without labels",
        ),
        pytest.param(
            {"data": {"entity_types": ["PER"]}},
            'entity_types belong to task.kind = "token_classification", got \'sequence_classi',
            id="types without entities",
        ),
        pytest.param(
            {"task": {"kind": "token_classification"}, "loss": {"ignore_index": -1}},
            "loss.ignore_index must be -100, the label of what has none, got -1.",
            id="another label for nothing",
        ),
        pytest.param(
            {"task": {"kind": "masked_lm"}},
            "keep must suit task.kind = \"masked_lm\", got 'logits'.",
            id="every logit of a vocabulary",
        ),
        pytest.param(
            {"capture": {"keep": "hidden"}},
            "keep must suit task.kind = \"sequence_classification\", got 'hidden'.",
            id="a classifier's states",
        ),
        pytest.param(
            {"task": {"kind": "masked_lm"}, "student": {"coverage": 0.9}},
            "student.coverage must be 1 where words are tagged, tokens masked or states matched",
            id="masked tokens that split otherwise",
        ),
        pytest.param(
            {
                "student": {"coverage": 0.9},
                "loss_schedule": {"hidden_weight": ["linear", 1.0]},
            },
            "student.coverage must be 1 where words are tagged, tokens masked or states matched",
            id="states of other tokens that are matched in the end",
        ),
        pytest.param(
            {"task": {"kind": "causal_lm"}},
            "keep must suit task.kind = \"causal_lm\", got 'logits'.",
            id="every logit of a causal model's vocabulary",
        ),
        pytest.param(
            {"train": {"packing": 128}},
            "packing must be 0 for task.kind",
            id="classes of texts in one row",
        ),
        pytest.param(
            {"train": {"accumulate": 2}, "loss": {"reduction": "sum"}},
            'reduction must be "mean" where several processes train, or [train] accumulate is',
            id="parts of what is no mean",
        ),
        pytest.param(
            {"train": {"compile": "cuda_graphs", "accumulate": 2}},
            'a step must be taken whole, its activations kept, where compile = "cuda_graphs"',
            id="a graph over what it wrote",
        ),
        pytest.param(
            {"train": {"compile": "cuda_graphs", "checkpointing": True}},
            'got accumulate above 1, or checkpointing. Set compile = "layers".',
            id="a graph within its own backward pass",
        ),
        pytest.param(
            {"data": {"language_temperature": 0.5}},
            "language_temperature must be at least 1, got 0.5.",
            id="large languages made larger",
        ),
        pytest.param(
            {"data": {"mask_share": 0.0}},
            "mask_share must be positive, got 0.0.",
            id="nothing to be found",
        ),
        pytest.param(
            {"data": {"mask_share": 1.5}},
            "mask_share must lie in [0, 1], got 1.5.",
            id="more than all",
        ),
        pytest.param(
            {"data": {"num_maskings": 0}},
            "num_maskings must be positive, got 0.",
            id="no masking",
        ),
        pytest.param(
            {"task": {"kind": "token_clasification"}},
            "kind must be a known name, got 'token_clasification'. "
            "Did you mean 'token_classification'?",
            id="misspelt",
        ),
    ],
)
def test_a_task_and_its_data_go_together(content, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        from_dict(content)
