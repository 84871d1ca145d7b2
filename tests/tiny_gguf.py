"""A Llama of one layer in a GGUF file: 4-bit blocks in one matrix, float32 elsewhere."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, HEADS, FEED_FORWARD, POSITIONS = 32, 2, 64, 128
# Every byte is a token, as in any byte-level vocabulary; then one merge and the special tokens.
TOKENS = [*sorted(ByteLevel.alphabet()), "on", "<|im_start|>", "<|im_end|>"]
START, END = len(TOKENS) - 2, len(TOKENS) - 1
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}
QUANTISED = "model.layers.0.mlp.down_proj.weight"


def write(path: Path) -> LlamaForCausalLM:
    """Write a random model; return it with the weights that the file's 4-bit blocks stand for."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
        )
    ).eval()
    writer = gguf.GGUFWriter(path, "llama")
    _add_settings(writer)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        kind = None
        if name == QUANTISED:
            kind = gguf.GGMLQuantizationType.Q4_1
            values = gguf.quants.quantize(values, kind)
            weight.data = torch.from_numpy(gguf.quants.dequantize(values, kind).copy())
        if "q_proj" in name or "k_proj" in name:
            # llama.cpp rotates neighbours, transformers the halves of a head.
            halves = values.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(WIDTH, WIDTH)
        module = name.removesuffix(".weight")
        writer.add_tensor(f"{NAMES[module]}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_settings(writer: gguf.GGUFWriter) -> None:
    writer.add_vocab_size(len(TOKENS))
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    control = [gguf.TokenType.CONTROL] * 2
    writer.add_token_types([*[gguf.TokenType.NORMAL] * (len(TOKENS) - 2), *control])
    writer.add_token_merges(["o n"])
    writer.add_bos_token_id(START)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(END)
    writer.add_chat_template("{{ messages[0]['content'] }}")
