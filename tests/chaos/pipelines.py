"""Recipes whose every stage has state to lose, and recipes of their first stages only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from toys import merged, write_toy_recipe

_GOLD = {"use": "python", "path": "reward.py"}
_PROXY = {"use": "reward_model", "from": "reward_model"}
_SAMPLING = {"max_new_tokens": 6, "batch_size": 6}

_EVERY = {
    "sft": {"batch_size": 2, "epochs": 2, "micro_batch": 1},
    "collect": {"sampling": _SAMPLING},
    "reward_model": {"batch_size": 2, "epochs": 2, "micro_batch": 1},
    # The trained model tells stories and hardly ever ends one.
    "ppo": {"steps": 6, "sampling": _SAMPLING, "gate": {"skip": ["end"]}},
    "best_of_n": {
        "use": "best_of_n",
        "from": "sft",
        "split": "train",
        "samples_per_prompt": 4,
        "proxies": {"proxy": _PROXY},
        "gold": _GOLD,
        "sampling": _SAMPLING,
    },
    "evaluate": {"sampling": {**_SAMPLING, "batch_size": 2}, "pretraining_tokens": 64},
}

# Averages and controllers: what is moved a little in every step.
_MOVING = {
    "sft": {
        "residual_dropout": 0.1,
        "pretraining": "pretraining",
        "pretraining_fraction": 0.5,
        "pretraining_length": 32,
    },
    "reward_model": {"head_init": "probe", "pooling": "mean"},
    "ppo": {
        "ema": 0.8,
        "kl": {"coef": 0.1, "controller": {"use": "adaptive", "target": 0.1, "horizon": 50}},
        "ptx": {"controller": {"use": "adaptive", "every": 1}},
        "normalize": {"scores": {"use": "running"}},
        "critic": {"normalizer": {"use": "running"}},
    },
}

# A bound with rollbacks, a critic with weights of its own, several passes over a rollout.
_BOUNDED = {
    "sft": {"select_by": _GOLD, "select_prompts": 2, "sampling": _SAMPLING},
    "ppo": {
        "inner_epochs": 2,
        "kl": {"limit": 0.02, "on_limit": "rollback"},
        "critic": {
            "value": {"use": "separate", "from": "reward_model"},
            "normalizer": {"use": "running"},
        },
        "normalize": {"rewards": {"use": "whiten", "shift_mean": False}},
    },
}

# What came from outside: other stages, another estimator and loss.
_LEARNS = {
    "from": "sft",
    "comparisons": "comparisons",
    "epochs": 2,
    "batch_size": 4,
    "micro_batch": 2,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
}
_GUESTS = {
    "ppo": {
        "advantage": {"use": "grpo"},
        "policy_loss": {"use": "grpo"},
        "samples_per_prompt": 2,
        "kl": {"coef": 0.0},
    },
    "dpo": {"use": "dpo", **_LEARNS},
    "kto": {"use": "kto", **_LEARNS},
    "evaluate": {"candidates": {"ppo": "ppo", "dpo": "dpo", "kto": "kto"}},
}

KINDS = {"moving": _MOVING, "bounded": _BOUNDED, "guests": _GUESTS}
_LAST = "evaluate"


def write_pipeline(folder: Path, model: Path, memory: str, kind: str) -> list[tuple[str, Path]]:
    """Write data and recipes; each stage, with the recipe that ends with it.

    Args:
        folder: of the project.
        model: a folder of a model.
        memory: "hydra", "lora" or "full".
        kind: of ``KINDS``.
    """
    path = write_toy_recipe(folder, model, memory)
    values = yaml.safe_load(path.read_text())
    values["stages"] = merged(merged(values["stages"], _EVERY), KINDS[kind])
    if kind == "guests":
        del values["stages"]["ppo"]["critic"]  # nothing would read it
    values["stages"][_LAST] = values["stages"].pop(_LAST)
    values["observers"] = {"samples": {"use": "samples", "every": 2, "count": 2}}
    found = []
    for number, id in enumerate(values["stages"], 1):
        path = folder / f"{number}-{id}.yaml"
        first = dict(list(values["stages"].items())[:number])
        # Data that nobody uses is refused; these two are used without being named.
        used = {*_words(first), "demonstrations", *(["prompts"] if number > 1 else [])}
        data = {name: source for name, source in values["data"].items() if name in used}
        path.write_text(yaml.safe_dump({**values, "data": data, "stages": first}, sort_keys=False))
        found.append((id, path))
    return found


def _words(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    if isinstance(values, dict):
        for value in values.values():
            yield from _words(value)
