"""Turns a causal language model in a GGUF file into an ordinary model folder."""

from importlib.util import find_spec
from pathlib import Path

from mkd_fast.checks import teacher as checks
from mkd_fast.quiet import quiet_transformers


def check_gguf_installed() -> None:
    """Raise RuntimeError unless the extra ``gguf`` is installed."""
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise checks.missing_gguf_extra(package)


def save_model_folder(path: Path, folder: Path) -> None:
    """Write model (dequantised to float32, safetensors) and tokenizer as ``transformers`` does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
