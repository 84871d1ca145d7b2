"""Every weight is in one part, and none in two."""

from collections import Counter

import pytest
import transformers as hf

from mkd_fast.teacher.streamed.checkpoint import open_checkpoint
from mkd_fast.teacher.streamed.parts import divide


@pytest.mark.parametrize("name", ["bert masked", "gpt-2", "llama tied", "xlm-r classifier"])
@pytest.mark.parametrize("is_table_wanted_whole", [False, True])
def test_every_weight_is_in_one_part(saved, tmp_path, name, is_table_wanted_whole):
    family, folder = saved(name)
    checkpoint = open_checkpoint(folder, family.model_class, None, tmp_path, {})
    largest = 1 << 30 if is_table_wanted_whole else 0
    parts = divide(checkpoint.model, checkpoint.weights, None, largest)
    assert len(parts.layers) == len(parts.layer_modules) == 3
    stages = [*parts.layers, parts.head, parts.resident]
    seen = Counter(weight for stage in stages for weight in stage.weights)
    assert (parts.table is None) == is_table_wanted_whole
    if parts.table is not None:
        seen[parts.table] += 1
    assert seen == Counter(checkpoint.weights.values())


def test_a_list_that_is_named(saved, tmp_path):
    _, folder = saved("llama")
    checkpoint = open_checkpoint(folder, hf.LlamaForCausalLM, None, tmp_path, {})
    parts = divide(checkpoint.model, checkpoint.weights, "model.layers", 0)
    assert parts.layer_modules == list(checkpoint.model.model.layers)
    with pytest.raises(ValueError, match=r"layer_list='model\.blocks' among these lists"):
        divide(checkpoint.model, checkpoint.weights, "model.blocks", 0)
