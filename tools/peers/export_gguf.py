"""A Llama checkpoint directory as an fp16 GGUF file, the format that llama.cpp reads.

Needs the Python packages gguf and numpy.
"""
import json
import pathlib

import gguf
import numpy as np

# Names inside a layer: checkpoint -> GGUF.
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_safetensors(path):
    """Name -> float32 array of every tensor in a bf16, fp16 or float32 safetensors file."""
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[begin:end], {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = raw.astype(np.float32).reshape(entry["shape"])
    return tensors


def interleave_rotary(weight, heads):
    """Rows of each head from (first half, second half) to pairs (i, i + half), as llama.cpp rotates."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return halves.transpose(0, 2, 1, 3).reshape(weight.shape)


def add_parameters(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer, tokenizer, vocabulary):
    text_of = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    text_of.update(special)
    merges = (m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([text_of.get(i, f"<unused {i}>") for i in range(vocabulary)])
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
                            for i in range(vocabulary)])
    writer.add_token_merges(list(merges))


def export(model_directory, path):
    """Writes the checkpoint in `model_directory`, one file and tied embeddings, to `path`."""
    model = pathlib.Path(model_directory)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    weights = read_safetensors(model / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    add_parameters(writer, config)
    add_tokenizer(writer, tokenizer, config["vocab_size"])

    def add(name, array):
        writer.add_tensor(name, array.astype(np.float32 if array.ndim == 1 else np.float16))

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    for layer in range(config["num_hidden_layers"]):
        for source, target in LAYER_TENSORS.items():
            weight = weights[f"model.layers.{layer}.{source}.weight"]
            if target == "attn_q":
                weight = interleave_rotary(weight, config["num_attention_heads"])
            elif target == "attn_k":
                weight = interleave_rotary(weight, config["num_key_value_heads"])
            add(f"blk.{layer}.{target}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
