"""The small English language model of the package glassllm as a transformers folder.

glassllm ships a trained decoder with RMSNorm, rotary positions, grouped-query attention, SwiGLU
and a tied head: a Llama in all but three conventions, which the conversion removes exactly:
its matrices are [in, out]; its rotary embedding turns adjacent coordinates, that of transformers
coordinate i and i + half; and its tokenizer is a character BPE over "▁" for the space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}

# The model continues stories: a conversation is its text so far.
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


def write_trained_model(folder: Path) -> Path:
    """Write weights, config and tokenizer of glassllm's English model into ``folder``."""
    import glassllm

    source, vocabulary = glassllm.load_pretrained("en")
    model = _model(source)
    model.save_pretrained(folder)
    _tokenizer(vocabulary).save_pretrained(folder)
    return folder


def _model(source: Any) -> LlamaForCausalLM:
    cfg = source.cfg
    config = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.d_model,
        intermediate_size=int(8 * cfg.d_model / 3),
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads,
        max_position_embeddings=cfg.max_len,
        rms_norm_eps=cfg.eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_base},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    size = cfg.d_model // cfg.n_heads
    state: dict[str, Tensor] = {}
    for name, parameter in source.named_parameters().items():
        value = torch.tensor(parameter.data, dtype=torch.float32)
        if name.endswith(("W_Q", "W_K")):
            value = _half_split(value, size)
        state[_renamed(name)] = value if value.dim() == 1 or name == "E" else value.T.contiguous()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(state)
    return model.eval()


def _half_split(weight: Tensor, size: int) -> Tensor:
    """Reorder the output coordinates of each head: evens first, then odds. [in, heads * size]"""
    heads = weight.view(len(weight), -1, size // 2, 2)
    return heads.transpose(2, 3).reshape(len(weight), -1)


_NAMES = {
    "E": "model.embed_tokens.weight",
    "norm_f.gamma": "model.norm.weight",
    "norm1.gamma": "input_layernorm.weight",
    "norm2.gamma": "post_attention_layernorm.weight",
    "attn.W_Q": "self_attn.q_proj.weight",
    "attn.W_K": "self_attn.k_proj.weight",
    "attn.W_V": "self_attn.v_proj.weight",
    "attn.W_O": "self_attn.o_proj.weight",
    "ffn.W1": "mlp.gate_proj.weight",
    "ffn.W3": "mlp.up_proj.weight",
    "ffn.W2": "mlp.down_proj.weight",
}


def _renamed(name: str) -> str:
    if not name.startswith("blocks."):
        return _NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_NAMES[rest]}"


def _tokenizer(source: Any) -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.BPE(vocab=dict(source.token_to_id), merges=source.merges, unk_token="<unk>")
    )
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **SPECIALS
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
