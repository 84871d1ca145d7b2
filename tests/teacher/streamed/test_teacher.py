"""What a streamed teacher says is what the ordinary forward pass says, bit by bit."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from teacher_families import FAMILIES

from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.streamed import StreamedTeacher


def load(family, folder, dtype="auto"):
    with quiet_transformers():
        return family.model_class.from_pretrained(folder, dtype=dtype).eval()


def plain(model, batch, **options):
    with torch.inference_mode():
        return model(**batch, **options)


def head_input(model, batch):
    caught = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    plain(model, batch)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as stored", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(saved, batches, name, dtype):
    family, folder = saved(name)
    model = load(family, folder, dtype or "auto")
    layers = range(model.config.num_hidden_layers + 1)
    has_head = model.get_output_embeddings() is not None
    with StreamedTeacher(folder, family.model_class, dtype=dtype, block_tokens=30) as teacher:
        results = list(teacher.run(batches, hidden_layers=layers, wants_last_hidden=has_head))
    assert [batch for batch, _ in results] == batches
    for batch, got in results:
        expected = plain(model, batch, output_hidden_states=True)
        assert torch.equal(got.logits, expected.logits)
        for layer in layers:
            assert torch.equal(got.hidden_states[layer], expected.hidden_states[layer]), layer
        if has_head:
            assert torch.equal(got.last_hidden, head_input(model, batch))


def test_buffers_are_not_rounded_on_the_way_to_a_wider_dtype(saved, batches, tmp_path):
    """Gemma's scale of embeddings is no weight, but has the model's dtype."""
    family, folder = saved("gemma3")
    with quiet_transformers():
        load(family, folder, torch.bfloat16).save_pretrained(tmp_path)
    model = load(family, tmp_path, torch.float32)
    with StreamedTeacher(tmp_path, family.model_class, dtype=torch.float32) as teacher:
        for batch, got in teacher.run(batches):
            assert torch.equal(got.logits, plain(model, batch).logits)


@pytest.mark.parametrize("name", ["bert masked", "gemma2", "llama tied"])
def test_without_the_head(saved, batches, name):
    family, folder = saved(name)
    model = load(family, folder)
    last = model.config.num_hidden_layers
    with StreamedTeacher(folder, family.model_class) as teacher:
        for batch, got in teacher.run(
            batches, hidden_layers=(last,), wants_logits=False, wants_last_hidden=True
        ):
            assert got.logits is None
            assert torch.equal(got.last_hidden, head_input(model, batch))
            hidden = plain(model, batch, output_hidden_states=True).hidden_states[last]
            assert torch.equal(got.hidden_states[last], hidden)
        weight, bias = teacher.head()
        lighter, whole = teacher.cost(wants_logits=False), teacher.cost()
    head = model.get_output_embeddings()
    assert torch.equal(weight, head.weight)
    assert bias is None if head.bias is None else torch.equal(bias, head.bias)
    stored = sum(tensor.nbytes for tensor in head.parameters())
    assert whole.block_bytes - lighter.block_bytes == stored
    assert whole.flops_per_token - lighter.flops_per_token == 2 * head.weight.numel()


def test_a_checkpoint_in_many_files(saved, batches, tmp_path):
    family, folder = saved("llama tied")
    model = load(family, folder)
    with quiet_transformers():
        model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    with StreamedTeacher(tmp_path, hf.AutoModelForCausalLM) as teacher:
        for batch, got in teacher.run(batches):
            assert torch.equal(got.logits, plain(model, batch).logits)


def test_weights_that_are_no_safetensors_are_converted(saved, batches, tmp_path):
    family, folder = saved("bert masked")
    model = load(family, folder)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with StreamedTeacher(tmp_path, family.model_class) as teacher:
        for batch, got in teacher.run(batches):
            assert torch.equal(got.logits, plain(model, batch).logits)


def test_under_autocast(saved, batches):
    family, folder = saved("qwen3")
    model = load(family, folder)
    with StreamedTeacher(folder, family.model_class) as teacher:
        for batch, got in teacher.run(batches, autocast=torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(got.logits, plain(model, batch).logits)


@pytest.mark.parametrize("block_tokens", [1, 14, 28, 1000])
def test_the_block_size_changes_nothing(saved, batches, block_tokens):
    family, folder = saved("gemma3")
    model = load(family, folder)
    with StreamedTeacher(folder, family.model_class, block_tokens=block_tokens) as teacher:
        for _ in range(2):  # and it can run again
            results = list(teacher.run(batches))
            for batch, got in results:
                assert torch.equal(got.logits, plain(model, batch).logits)


def test_states_go_to_files_where_the_memory_is_short(saved, batches, tmp_path, monkeypatch):
    family, folder = saved("llama")
    model = load(family, folder)
    spilled = tmp_path / "new" / "spilled"
    with StreamedTeacher(folder, family.model_class, spill_folder=spilled) as teacher:
        budget = teacher._budget(SimpleNamespace(layers=frozenset(), logits=True))
    num_spilled = []
    few_bytes = budget.weight_bytes + 42 * budget.row_bytes + 14 * budget.work_bytes + 1000
    with StreamedTeacher(
        folder,
        family.model_class,
        spill_folder=spilled,
        max_memory_bytes=few_bytes,
        block_tokens=1000,
    ) as teacher:
        for batch, got in teacher.run(batches, hidden_layers=(0, 2)):
            num_spilled.append(len(list(spilled.rglob("state-*.bin"))))
            expected = plain(model, batch, output_hidden_states=True)
            assert torch.equal(got.logits, expected.logits)
            for layer in (0, 2):
                assert torch.equal(got.hidden_states[layer], expected.hidden_states[layer])
    assert num_spilled == [6, 3, 0]
    assert not list(spilled.iterdir())


def test_batches_may_be_objects(saved, batches):
    family, folder = saved("llama")
    objects = [SimpleNamespace(**batch) for batch in batches]
    with StreamedTeacher(folder, family.model_class) as teacher:
        assert [batch for batch, _ in teacher.run(objects)] == objects


def test_a_run_that_is_given_up_leaves_the_teacher_usable(saved, batches):
    family, folder = saved("llama")
    model = load(family, folder)
    with StreamedTeacher(folder, family.model_class, block_tokens=14) as teacher:
        next(teacher.run(batches))
        for batch, got in teacher.run(batches):
            assert torch.equal(got.logits, plain(model, batch).logits)


def test_the_head_of_a_classifier(saved, batches):
    family, folder = saved("bert classifier")
    with StreamedTeacher(folder, family.model_class) as teacher:
        with pytest.raises(ValueError, match=r"must have an output embedding, got Bert"):
            teacher.run(batches, wants_last_hidden=True)
        with pytest.raises(ValueError, match=r"head: the model must have an output embedding"):
            teacher.head()


def test_a_layer_that_does_not_exist(saved, batches):
    family, folder = saved("llama")
    with (
        StreamedTeacher(folder, family.model_class) as teacher,
        pytest.raises(ValueError, match=r"hidden_layers must be numbers from 0 to 3, got \[4\]"),
    ):
        teacher.run(batches, hidden_layers=(4,))


def test_too_little_memory(saved, batches):
    family, folder = saved("llama")
    with (
        StreamedTeacher(folder, family.model_class, max_memory_bytes=1000) as teacher,
        pytest.raises(ValueError, match=r"must hold two stages of weights, [\d,]+ bytes.*1,000\."),
    ):
        next(teacher.run(batches))


def test_weights_that_are_missing(saved):
    _, folder = saved("bert masked")
    message = r"must have every weight of BertForSequenceClassification.*got none for.*classifier"
    with pytest.raises(ValueError, match=message):
        StreamedTeacher(folder, hf.BertForSequenceClassification)


def test_a_file_that_is_cut_short(saved, tmp_path):
    family, folder = saved("llama")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with StreamedTeacher(tmp_path, family.model_class) as teacher:
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.truncate(9000)
        batch = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[1]])}
        with pytest.raises(ValueError, match=r"model\.safetensors must have .* bytes, got"):
            next(teacher.run([batch]))


def test_weights_that_transformers_dequantises(batches, tmp_path):
    """An fp8 checkpoint, as it is loaded where there are no fp8 kernels."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = hf.LlamaConfig(vocab_size=61, num_attention_heads=2, **sizes)
    with quiet_transformers():
        hf.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        weights[f"{name}_scale_inv"] = torch.rand([size // 128 for size in weights[name].shape])
        weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config.save_pretrained(tmp_path)
    options = {"quantization_config": hf.FineGrainedFP8Config(dequantize=True)}
    with quiet_transformers():
        model = hf.LlamaForCausalLM.from_pretrained(tmp_path, **options).eval()
    with StreamedTeacher(tmp_path, hf.LlamaForCausalLM, options=options) as teacher:
        for batch, got in teacher.run(batches):
            assert torch.equal(got.logits, plain(model, batch).logits)


def test_weights_that_stay_quantised(saved, monkeypatch):
    family, folder = saved("llama")
    monkeypatch.setattr(hf.LlamaForCausalLM, "is_quantized", True, raising=False)
    monkeypatch.setattr(hf.LlamaForCausalLM, "hf_quantizer", 4, raising=False)
    with pytest.raises(ValueError, match=r"must be floating-point numbers.*for int\. Dequantise"):
        StreamedTeacher(folder, family.model_class)


def test_without_accelerate(saved, monkeypatch):
    family, folder = saved("llama")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"accelerate must be installed.*mkd_fast\[streaming\]"):
        StreamedTeacher(folder, family.model_class)


def test_a_model_of_two_lists(tmp_path):
    config = hf.BartConfig(
        vocab_size=61,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
    )
    with quiet_transformers():
        hf.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    message = r"StreamedTeacher: Bart.* must have one nn\.ModuleList.*'model.encoder.layers' \(2\)"
    with pytest.raises(ValueError, match=message):
        StreamedTeacher(tmp_path, hf.BartForConditionalGeneration)
