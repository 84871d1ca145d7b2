"""Builds the encoder and the tokenizer that an ``E5S1`` file holds (``e5_format``)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mkd_fast.checks import teacher as checks
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.e5_format import E5File, E5Tokenizer

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

_LAYER_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def save_model_folder(file: E5File, tokenizer_json: str, folder: Path) -> None:
    """Write encoder and tokenizer as ``transformers`` does (float32, safetensors)."""
    with quiet_transformers():
        encoder_of(file).save_pretrained(folder)
    tokenizer = tokenizer_of(file.tokenizer, tokenizer_json, file.shape.num_positions)
    tokenizer.save_pretrained(folder)


def encoder_of(file: E5File) -> "BertModel":
    """Build the ``BertModel`` without pooler; the rows past the last piece are kept.

    Raises:
        ValueError: the file lacks a tensor of the encoder, or one has another size.
    """
    import torch
    from transformers import BertConfig, BertModel

    shape = file.shape
    config = BertConfig(
        vocab_size=shape.num_rows,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.num_positions,
        type_vocab_size=shape.num_token_types,
        layer_norm_eps=shape.norm_epsilon,
        hidden_act="gelu",
        pad_token_id=file.tokenizer.pad_id,
        bos_token_id=file.tokenizer.bos_id,
        eos_token_id=file.tokenizer.eos_id,
    )
    model = BertModel(config, add_pooling_layer=False)
    names = _names_in_file(shape.num_layers)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            name = names[parameter_name]
            array = file.tensors.get(name)
            if array is None or array.size != parameter.numel():
                raise checks.e5_tensor_missing(name, parameter.numel(), array)
            parameter.copy_(torch.from_numpy(array.reshape(parameter.shape).copy()))
    return model


def tokenizer_of(
    tokenizer: E5Tokenizer, tokenizer_json: str, max_length: int
) -> "PreTrainedTokenizerFast":
    """Put the file's own pieces into the tokenizer whose normaliser and template they share.

    For the full model these are the pieces that ``tokenizer_json`` has already.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    pieces = tokenizer.pieces
    settings = json.loads(tokenizer_json)
    settings["model"]["vocab"] = list(zip(pieces, tokenizer.scores, strict=True))
    for added in settings["added_tokens"]:
        added["id"] = pieces.index(added["content"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        bos_token=pieces[tokenizer.bos_id],
        eos_token=pieces[tokenizer.eos_id],
        cls_token=pieces[tokenizer.bos_id],
        sep_token=pieces[tokenizer.eos_id],
        pad_token=pieces[tokenizer.pad_id],
        unk_token=pieces[tokenizer.unk_id],
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _names_in_file(num_layers: int) -> dict[str, str]:
    """Map each parameter of ``BertModel`` to its name in the file."""
    modules = {
        f"encoder.layer.{layer}.{module}": f"l{layer}.{short}"
        for layer in range(num_layers)
        for short, module in _LAYER_MODULES.items()
    }
    modules["embeddings.LayerNorm"] = "emb.ln"
    names = {
        f"{module}.{kind}": f"{short}.{kind[0]}"
        for module, short in modules.items()
        for kind in ("weight", "bias")
    }
    for short, table in (("word", "word"), ("pos", "position"), ("type", "token_type")):
        names[f"embeddings.{table}_embeddings.weight"] = f"emb.{short}"
    return names
