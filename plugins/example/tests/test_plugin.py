"""The package as rlhf-kit sees it: its declarations, and the recipe that comes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parent.parent / "example.yaml"


def check(*overrides: str) -> subprocess.CompletedProcess[str]:
    """`rlhf-kit check example.yaml ...`, whether or not the script is on the path."""
    code = "from rlhf_kit.cli.main import main; main()"
    command = [sys.executable, "-c", code, "check", str(RECIPE), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_declarations(check_plugin) -> None:
    components = check_plugin("rlhf_kit_example.plugin")
    assert [(c.seam, c.name) for c in components] == [
        ("reward", "brevity"),
        ("policy_loss", "gspo"),
        ("advantage", "rloo"),
    ]


def test_the_recipe_is_right() -> None:
    found = check()
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == "ok"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["ppo.samples_per_prompt=1"], "advantage 'rloo' compares the responses to one prompt"),
        (["ppo.normalize.advantages=whiten"], "advantage 'rloo' normalises its advantages itself"),
        (["ppo.samples_per_prompt=3"], "32 responses cannot be divided by samples_per_prompt 3"),
        (["ppo.reward.rewards.brevity.targe=3"], "did you mean 'target'"),
        (["ppo.policy_loss.clip_low=2"], "clip_low"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(overrides: list[str], says: str) -> None:
    found = check(*overrides)
    assert found.returncode == 2
    assert says in found.stderr
