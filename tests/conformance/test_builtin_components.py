"""Every built-in component through the kit that strangers use, found as a stranger's would be."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_kit.components import Component
from rlhf_kit.errors import NumericsError
from rlhf_kit.plugins import load_plugins
from rlhf_kit.registry import Registry
from rlhf_kit.testing import (
    build,
    check_advantage,
    check_component,
    check_kl_controller,
    check_labeler,
    check_nll_loss,
    check_normalizer,
    check_plugin,
    check_policy_loss,
    check_preference_loss,
    check_ptx_controller,
    check_reward,
    check_value_loss,
    made_up_samples,
    part,
)

_LOADED = load_plugins()
# Other distributions may be installed beside; only rlhf-kit's own components are tested here.
_OWN = [c for package, _, c in _LOADED.components if package == "rlhf-kit"]
_CHECKS = {
    "policy_loss": check_policy_loss,
    "value_loss": check_value_loss,
    "nll_loss": check_nll_loss,
    "preference_loss": check_preference_loss,
    "advantage": check_advantage,
    "normalizer": check_normalizer,
    "ptx_controller": check_ptx_controller,
    "kl_controller": check_kl_controller,
}


def of(seam: str, name: str) -> Component:
    return Registry(_LOADED).find(seam, f"rlhf-kit/{name}", "test", "test")[0]


def test_every_builtin_plugin_loads() -> None:
    assert [b.cause for b in _LOADED.broken if b.package == "rlhf-kit"] == []
    assert {(c.seam, c.name) for c in _OWN} >= {
        ("stage", "sft"),
        ("stage", "collect"),
        ("stage", "reward_model"),
        ("stage", "ppo_ptx"),
        ("stage", "evaluate"),
        ("advantage", "gae"),
        ("policy_loss", "ppo_clip"),
        ("value_loss", "clipped_value"),
        ("preference_loss", "pairwise"),
        ("reward", "weighted_sum"),
        ("memory", "hydra"),
        ("model", "gguf"),
        ("data", "prompts"),
    }


@pytest.mark.parametrize("component", _OWN, ids=lambda c: f"{c.seam}-{c.name}")
def test_declaration(component: Component) -> None:
    check_component(component)


@pytest.mark.parametrize(
    "module",
    [
        "rlhf_kit_instructgpt",
        "rlhf_kit_policy_gradient",
        "rlhf_kit_evaluation",
        "rlhf_kit_hf",
        "rlhf_kit_rewards",
        "rlhf_kit_data",
    ],
)
def test_plugin_lists_its_components_without_torch(module: str) -> None:
    assert check_plugin(f"{module}.plugin")


def needed(component: Component) -> dict[str, Any]:
    return {"needs": component.needs} if component.needs else {}


@pytest.mark.parametrize(
    "component", [c for c in _OWN if c.seam in _CHECKS], ids=lambda c: f"{c.seam}-{c.name}"
)
@pytest.mark.parametrize("seed", [0, 1])
def test_implementation(component: Component, seed: int) -> None:
    check = _CHECKS[component.seam]
    if component.seam in ("kl_controller", "ptx_controller"):
        check(build(component), **needed(component))
    else:
        check(build(component), seed=seed, **needed(component))


@pytest.mark.parametrize(
    "options",
    [{"lam": 0.0}, {"discount": 0.9, "lam": 1.0}],
)
def test_gae_with_other_options(options: dict[str, Any]) -> None:
    gae = of("advantage", "gae")
    check_advantage(build(gae, **options), needs=gae.needs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whiten", {"shift_mean": False}),
        ("whiten", {"unbiased": True}),
        ("running", {"shift_mean": False}),
        ("running", {"clip": 0.5}),
    ],
)
def test_normalizers_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_normalizer(build(of("normalizer", name), **options))


@pytest.mark.parametrize("score", ["compound", "pos", "neg", "neu"])
def test_vader(score: str) -> None:
    pytest.importorskip("vaderSentiment")
    scores = check_reward(build(of("reward", "vader"), part=score))
    if score == "compound":
        kind, hateful = scores[0].item(), scores[5].item()
        assert kind > 0 > hateful


def test_python_reward(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def reward(responses, rows):\n    return [len(r) / 10 for r in responses]\n")
    scores = check_reward(build(of("reward", "python"), path=path))
    assert scores.tolist()[:2] == pytest.approx([3.2, 0.3])


def test_python_reward_may_read_the_rows(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def right(responses, rows):\n"
        "    return [float(row['answer'] in text) for text, row in zip(responses, rows)]\n"
    )
    reward = build(of("reward", "python"), path=path, function="right")
    rows = [{"prompt": "6 x 7?", "answer": "42"}, {"prompt": "1 + 1?", "answer": "2"}]
    scores = check_reward(reward, made_up_samples(["It is 42.", "It is 3."], rows))
    assert scores.tolist() == [1.0, 0.0]


def test_weighted_sum(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def length(responses):\n    return [len(r) for r in responses]\n"
        "def ends(samples):\n    return samples.finished.float()\n"
    )
    python = of("reward", "python")
    parts = {name: part(python, path=path, function=name) for name in ("length", "ends")}
    reward = build(of("reward", "weighted_sum"), rewards=parts, weights={"length": -0.5})
    samples = made_up_samples(["four", "sixsix"])
    assert check_reward(reward, samples).tolist() == [-2.0 + 1.0, -3.0 + 0.0]


def test_scripted_labeler(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def reward(responses):\n    return [float(len(r)) for r in responses]\n")
    longest = part(of("reward", "python"), path=path)
    labeler = build(of("labeler", "scripted"), reward=longest, tie_margin=0.5)
    check_labeler(labeler)
    ranks, scores, _ = labeler(made_up_samples(["aa", "b", "cccc", "dd"], samples_per_prompt=4))
    assert ranks == [1, 3, 0, 1]  # competition ranks: two second places, no third
    assert scores == [2.0, 1.0, 4.0, 2.0]


def test_scripted_labeler_refuses_a_reward_of_nan(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def reward(responses):\n    return [float('nan')] * len(responses)\n")
    labeler = build(of("labeler", "scripted"), reward=part(of("reward", "python"), path=path))
    with pytest.raises(NumericsError, match="score nan for response 0"):
        labeler(made_up_samples())
