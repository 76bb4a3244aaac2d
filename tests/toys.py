"""Tiny random models of four families, toy data and toy recipes, all made on the spot."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rlhf_kit_hf.options import DecodeOptions
from rlhf_kit_hf.sampler import DecodeSampler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from rlhf_kit.ops.sequence import pad
from rlhf_kit.types import Prompts, Samples, Sampling, TextBatch

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIALS)
CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with a ChatML template and a padding token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _config(kind: str) -> Any:
    # A large initializer: with the usual 0.02 every answer would be nearly uniform, and a wrong
    # position or a shifted column would hide in the fourth decimal.
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "eos_token_id": VOCABULARY - 1}
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
    }
    match kind:
        case "llama":
            return LlamaConfig(**common, **shape, num_key_value_heads=1)
        case "qwen3":  # tied head, and norms inside attention
            return Qwen3Config(
                **common, **shape, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True
            )
        case "neox":  # parallel residual, partial rotary, biases
            return GPTNeoXConfig(**common, **shape)
        case "gpt2":  # learned positions
            return GPT2Config(
                **common, n_embd=32, n_layer=4, n_head=2, n_positions=CONTEXT, bos_token_id=None
            )
        case "opt":  # learned positions with an offset, ReLU, norms before
            return OPTConfig(
                vocab_size=VOCABULARY,
                init_std=0.2,
                eos_token_id=VOCABULARY - 1,
                hidden_size=32,
                word_embed_proj_dim=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                ffn_dim=64,
                max_position_embeddings=CONTEXT,
            )
    raise ValueError(kind)


def write_toy_model(kind: str, folder: Path) -> Path:
    """Random weights of one family in float32 safetensors, with the toy tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(_config(kind)).float()
        if not model.config.tie_word_embeddings:
            # Rows should end at different places: raise the spread of the logit of the end.
            with torch.no_grad():
                model.get_output_embeddings().weight[VOCABULARY - 1] *= 4
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def plain_model(folder: Path) -> Any:
    """The same weights through transformers alone, as an independent witness."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


ANSWERS = ("The sea is grey.", "Tea!", "You are kind.", "Because.")
PROMPTS = ("Hi", "What is the sea like in winter?", "Say something nice.", "Why?")


def prompts(tokenizer: Any, texts: tuple[str, ...] = PROMPTS) -> Prompts:
    """Left-padded prompts of different lengths."""
    rows: list[dict[str, Any]] = [{"prompt": text} for text in texts]
    tokens, mask = pad([tokenizer.prompt(row) for row in rows], tokenizer.pad_id, left=True)
    order = torch.arange(len(rows))
    return Prompts(tokens, mask, rows, order, order)


def respond(
    policy: Any, asked: Prompts, length: int, temperature: float = 1.0, key: int = 0
) -> Samples:
    """What the default sampler draws."""
    sampling = Sampling(length, temperature, key)
    return DecodeSampler(DecodeOptions())(policy, asked, sampling)


def texts(tokenizer: Any, *answers: str) -> TextBatch:
    """Right-padded prompts with answers, the answer being the target."""
    rows = [tokenizer.prompt({"prompt": p}) for p in PROMPTS[: len(answers)]]
    ends = [tokenizer.response(a) for a in answers]
    tokens, mask = pad([r + e for r, e in zip(rows, ends, strict=True)], tokenizer.pad_id)
    target = mask.clone()
    for i, row in enumerate(rows):
        target[i, : len(row)] = False
    return TextBatch(tokens, mask, target)


def train(policy: Any, batch: TextBatch, rate: float = 0.05) -> None:
    """One plain gradient step on the likelihood of a few answers."""
    parameters = list(policy.parameters())
    assert parameters
    loss = -policy.next_token_logprobs(batch).sum() / batch.predicted.sum()
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.data -= rate * g


def trained_folder(context: Any, folder: Path) -> Path:
    """What an SFT stage leaves: weights that are not the pretrained ones."""
    policy = context.memory().policy(None)
    for _ in range(3):  # the first step moves only one of LoRA's two factors
        train(policy, texts(context.tokenizer, *ANSWERS), rate=0.5)
    policy.save(folder)
    return folder


@torch.no_grad()
def hand_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """One unpadded forward pass, one token after another, in float64."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    return torch.stack(
        [
            # The token at place p was chosen by the logits of place p - 1.
            torch.log_softmax(logits[len(prompt) + r - 1] / temperature, -1)[token]
            for r, token in enumerate(response)
        ]
    )


REWARD = """
def reward(responses):
    return [sum(map(ord, text)) % 101 / 101 for text in responses]  # hardly ever a tie
"""


def write_data(folder: Path) -> None:
    """Demonstrations, prompts, running text and a reward, small and the same every time."""
    words = ("sea", "bus", "cat", "rain", "tea", "oak", "bell", "kite", "moon", "hill", "song")
    splits = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    demonstrations = [
        {"prompt": f"A {w}?", "response": f"The {w} is fine.", "split": s}
        for w, s in zip((*words, "lamp"), splits, strict=True)
    ]
    some = [
        {"id": f"p{i}", "prompt": f"{'Tell me of' if i % 2 else 'Now'} {w}", "split": s}
        for i, (w, s) in enumerate(zip((*words, "frog"), splits, strict=True))
    ]
    for name, rows in (("demonstrations", demonstrations), ("prompts", some)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    line = "The {} stood by the {} and nobody said a word about it.\n\n"
    pairs = ((a, b) for a in words for b in words)
    (folder / "text.txt").write_text("".join(line.format(a, b) for a, b in pairs) * 4)
    (folder / "reward.py").write_text(REWARD)


def toy_recipe_values(model: Path, memory: str) -> dict[str, Any]:
    """A complete pipeline of five stages that takes seconds."""
    sampling = {"max_new_tokens": 6, "batch_size": 16}
    gold = {"use": "python", "path": "reward.py"}
    strategy: dict[str, Any] = {"use": memory, "dtype": "float32", "device": "cpu"}
    if memory == "hydra":
        strategy["trainable_layers"] = 2
    if memory == "lora":
        strategy["rank"] = 4
    rate = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0}
    proxy = {"use": "reward_model", "from": "reward_model"}
    return {
        "name": "toy",
        "seed": 1,
        "model": {"use": "pretrained", "name": str(model)},
        "memory": strategy,
        "data": {
            "demonstrations": {"use": "demonstrations", "path": "demonstrations.jsonl"},
            "prompts": {"use": "prompts", "path": "prompts.jsonl"},
            "pretraining": {"use": "text", "path": "text.txt"},
            "comparisons": {"use": "collected", "from": "collect"},
        },
        "stages": {
            "sft": {"use": "sft", "epochs": 1, "batch_size": 4, "optimizer": rate},
            "collect": {
                "use": "collect",
                "from": "sft",
                "completions": 3,
                "labeler": {"use": "scripted", "reward": gold},
                "sampling": sampling,
            },
            "reward_model": {
                "use": "reward_model",
                "from": "sft",
                "comparisons": "comparisons",
                "demonstrations": "demonstrations",
                "batch_size": 4,
                "clear_margin": 0.0,
                "optimizer": rate,
            },
            "ppo": {
                "use": "ppo_ptx",
                "from": "sft",
                "reward": proxy,
                "ptx": {"text": "pretraining", "coef": 0.5, "per_episode": 0.25, "length": 32},
                "steps": 3,
                "rollout_batch": 8,
                "minibatch": 4,
                "micro_batch": 4,
                "sampling": sampling,
                "optimizer": rate,
                "critic": {"learning_rate": 1e-2},
            },
            "evaluate": {
                "use": "evaluate",
                "baseline": "sft",
                "candidates": {"ppo": "ppo"},
                "gold": gold,
                "reward": proxy,
                "pretraining": "pretraining",
                "pretraining_tokens": 256,
                "pretraining_length": 32,
                "sampling": sampling,
            },
        },
    }


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over them, block by block; None removes nothing."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(change, dict) and "use" not in change
        result[key] = merged(old, change) if both else change  # type: ignore[arg-type]
    return result


def write_toy_recipe(folder: Path, model: Path, memory: str, **overrides: Any) -> Path:
    """Write data and a recipe. A keyword is a stage or a top-level key: ``ppo={"steps": 2}``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    values = toy_recipe_values(model, memory)
    for key, change in overrides.items():
        owner = values["stages"] if key in values["stages"] else values
        owner |= merged(owner, {key: change})
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def environment() -> dict[str, str]:
    """For subprocesses: the same import path, and as many threads, so that sums come out alike."""
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}


COMMAND = (sys.executable, "-m", "rlhf_kit.cli.main")
