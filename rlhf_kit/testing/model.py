"""A language model of random weights in the format of transformers: 259 tokens, 2 layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HIDDEN, _INNER, _LAYERS, _HEAD = 16, 32, 2, 8


def toy_model(folder: Path, *, seed: int = 7) -> Path:
    """Write a tiny Llama (arXiv:2302.13971) whose tokens are bytes, with a ChatML template.

    Returns:
        ``folder``, for ``model: {use: pretrained, name: ...}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _config(),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": _SPECIAL[0],
            "eos_token": _SPECIAL[2],
            "chat_template": _TEMPLATE,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file(_weights(seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 256 + len(_SPECIAL),
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HIDDEN // _HEAD,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 255 + len(_SPECIAL),
        "dtype": "float32",
    }


def _weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = 256 + len(_SPECIAL)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (words, _HIDDEN), "norm": (_HIDDEN,)}
    for layer in range(_LAYERS):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (_HIDDEN,),
                "post_attention_layernorm": (_HIDDEN,),
                "self_attn.q_proj": (_HIDDEN, _HIDDEN),
                "self_attn.k_proj": (_HEAD, _HIDDEN),
                "self_attn.v_proj": (_HEAD, _HIDDEN),
                "self_attn.o_proj": (_HIDDEN, _HIDDEN),
                "mlp.gate_proj": (_INNER, _HIDDEN),
                "mlp.up_proj": (_INNER, _HIDDEN),
                "mlp.down_proj": (_HIDDEN, _INNER),
            }.items()
        }
    found = {
        # Larger than usual, so that answers differ and one that is wrong shows.
        f"model.{name}.weight": 0.2 * torch.randn(shape, generator=generator)
        if len(shape) > 1
        else torch.ones(shape)
        for name, shape in shapes.items()
    }
    found["lm_head.weight"] = 0.2 * torch.randn((words, _HIDDEN), generator=generator)
    found["lm_head.weight"][-1] *= 4  # so that some responses end early
    return found


def _tokenizer() -> dict[str, Any]:
    """A token for each byte, as letters that can be seen (openai/gpt-2, ``bytes_to_unicode``)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = sorted([*map(chr, seen), *(chr(256 + n) for n in range(256 - len(seen)))])
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 256 + i, "content": text, "special": True, **special}
            for i, text in enumerate(_SPECIAL)
        ],
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {letter: i for i, letter in enumerate(letters)},
            "merges": [],
        },
    }
