"""A recipe of one stage that takes a second, with model and data: to try a plugin in a run.

``python -m rlhf_kit.testing.recipe FOLDER [STAGE]`` writes it; then, for example,
``rlhf-kit run FOLDER/ppo.yaml --plugin mine.py ppo.reward=mine``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.testing.model import toy_model

_REWARD = """\
def reward(responses):
    return [sum(map(ord, text)) % 101 / 101 for text in responses]
"""
_WORDS = ("sea", "bus", "cat", "rain", "tea", "oak", "bell", "kite", "moon", "hill")
_SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2

_SAMPLING = {"max_new_tokens": 4, "batch_size": 8}
_RATE = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0}
_PYTHON = {"use": "python", "path": "reward.py"}
_COMPARED = {"comparisons": "comparisons", "batch_size": 4, "optimizer": _RATE}
_STAGES: dict[str, dict[str, Any]] = {
    "sft": {"use": "sft", "epochs": 1, "batch_size": 8, "optimizer": _RATE},
    "collect": {
        "use": "collect",
        "completions": 2,
        "labeler": {"use": "scripted", "reward": _PYTHON},
        "sampling": _SAMPLING,
    },
    "reward_model": {"use": "reward_model", **_COMPARED},
    "ppo": {
        "use": "ppo_ptx",
        "reward": _PYTHON,
        "ptx": {"text": "text", "length": 32, "per_episode": 0.5},
        "steps": 2,
        "rollout_batch": 4,
        "minibatch": 4,
        "micro_batch": 2,
        "sampling": _SAMPLING,
        "optimizer": _RATE,
    },
    "dpo": {"use": "dpo", **_COMPARED},
    "kto": {"use": "kto", **_COMPARED},
}
_DATA = {
    "sft": ("demonstrations",),
    "collect": ("prompts",),
    "ppo": ("prompts", "text"),
}


def toy_recipe(folder: Path, stage: str = "ppo") -> Path:
    """Write a recipe of one stage into ``folder``, with the toy model and all that it reads.

    Args:
        folder: made if it is not there.
        stage: "sft", "collect", "reward_model" or "ppo"; "dpo" or "kto" with rlhf-kit-guests.

    Returns:
        The recipe, ``<stage>.yaml``.
    """
    toy_model(folder / "model")
    (folder / "reward.py").write_text(_REWARD)
    for name, rows in _rows().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = "The {} stood by the {} and nobody said a word about it.\n\n"
    text = "".join(line.format(a, b) for a in _WORDS for b in _WORDS)
    (folder / "text.txt").write_text(text * 4)
    files = {"text": "text.txt"}
    values = {
        "model": {"use": "pretrained", "name": "./model"},
        "memory": {"use": "full", "dtype": "float32", "device": "cpu"},
        "data": {
            name: {"use": name, "path": files.get(name, f"{name}.jsonl")}
            for name in _DATA.get(stage, ("comparisons",))
        },
        "stages": {stage: _STAGES[stage]},
    }
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False))
    return path


def _rows() -> dict[str, list[dict[str, Any]]]:
    placed = list(zip(_WORDS, _SPLITS, strict=True))
    return {
        "prompts": [{"prompt": f"Tell me of a {w}", "split": s} for w, s in placed],
        "demonstrations": [
            {"prompt": f"A {w}?", "response": f"The {w} is fine.", "split": s} for w, s in placed
        ],
        "comparisons": [
            {
                "prompt": f"Which {w}?",
                "completions": [f"The {w}.", "No!"],
                "ranks": [0, 1],
                "split": s,
            }
            for w, s in placed
        ],
    }


if __name__ == "__main__":
    print(toy_recipe(Path(sys.argv[1]), *sys.argv[2:3]))
