"""Normalisers against float64 oracles over everything seen, and inside PPO, also resumed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_kit_policy_gradient.normalizers import Running, Whiten
from rlhf_kit_policy_gradient.options import RunningOptions, WhitenOptions
from safetensors.torch import load_file
from torch import Tensor
from toy_runs import metrics, one_stage, run, run_in_two
from toys import merged
from watchers import write_watcher

from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import InvertibleNormalizer, Stateful
from rlhf_kit.testing import oracles

SEEDS = range(4)


def draw(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Numbers far from 0, and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    x = 5 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask.view(-1)[0] = True
    return x, mask


def statistics(seen: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean and standard deviation of all valid numbers, by two loops."""
    numbers = [
        value
        for x, mask in seen
        for value, valid in zip(x.flatten().tolist(), mask.flatten().tolist(), strict=True)
        if valid
    ]
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum((n - mean) ** 2 for n in numbers) / len(numbers))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_whiten(seed: int, shift_mean: bool, unbiased: bool) -> None:
    x, mask = draw(seed, 4, 6)
    found = Whiten(WhitenOptions(shift_mean=shift_mean, unbiased=unbiased))(x, mask)
    wanted = oracles.whiten(x.tolist(), mask.tolist(), shift_mean=shift_mean, unbiased=unbiased)
    expected = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_whiten_forgets() -> None:
    """Each rollout is scaled by its own numbers: there is nothing for a checkpoint to hold."""
    whiten, (x, mask) = Whiten(WhitenOptions()), draw(0, 4, 6)
    first = whiten(x, mask)
    whiten(100 * x, mask)
    assert torch.equal(whiten(x, mask), first)
    assert not isinstance(whiten, Stateful)
    assert not isinstance(whiten, InvertibleNormalizer)


@pytest.mark.parametrize("seed", SEEDS)
def test_running_statistics_are_those_of_everything_seen(seed: int) -> None:
    """Batches of other sizes and of other means: a mean of means, or of variances, would differ."""
    running, seen = Running(RunningOptions()), []
    for i, shape in enumerate([(3, 5), (8, 2), (1, 1), (2, 9)]):
        x, mask = draw(10 * seed + i, *shape)
        x = x + 20 * i
        seen.append((x, mask))
        dirty = torch.where(mask, x, math.nan)
        found = running(dirty, mask)
        mean, deviation = statistics(seen)
        wanted = torch.where(mask, (x - mean) / deviation, 0.0)
        # After one number alone there is no spread; the first batch has several.
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(running.normalize(x), (x - mean) / deviation)


def test_running_by_hand() -> None:
    """1 and 3, then 8: mean 4, variance (9 + 1 + 16) / 3."""
    running = Running(RunningOptions())
    running.update(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    running.update(torch.tensor([8.0]), torch.tensor([True]))
    running.update(torch.tensor([77.0]), torch.tensor([False]))  # nothing valid: nothing changes
    found = running.normalize(torch.tensor([4.0, 8.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 4 / math.sqrt(26 / 3)], rel=1e-14)


def test_running_without_shift_keeps_zero() -> None:
    running = Running(RunningOptions(shift_mean=False))
    x, mask = draw(0, 5, 5)
    _, deviation = statistics([(x, mask)])
    found = running(x, mask)
    torch.testing.assert_close(found, torch.where(mask, x / deviation, 0.0))
    assert running.normalize(torch.zeros(1)).item() == 0.0
    torch.testing.assert_close(running.denormalize(found)[mask], x[mask])


def test_running_waits_for_a_spread() -> None:
    """A reward that is the same everywhere at first must not be divided by nearly nothing."""
    running, mask = Running(RunningOptions(shift_mean=False)), torch.ones(4, dtype=torch.bool)
    assert running(torch.full((4,), 2.0), mask).tolist() == [2.0] * 4
    assert running(torch.tensor([0.0, 4.0, 0.0, 4.0]), mask)[1].item() == pytest.approx(2.8284271)


def test_running_cuts_what_is_far() -> None:
    """The cut is of what is handed on; the statistics see the number itself."""
    x = torch.tensor([0.0] * 99 + [100.0], dtype=torch.float64)
    mask = torch.ones(100, dtype=torch.bool)
    running, free = Running(RunningOptions(clip=2.0)), Running(RunningOptions())
    found, plain = running(x, mask), free(x, mask)
    assert plain[-1].item() == pytest.approx(99 / math.sqrt(99), rel=1e-12)  # mean 1, variance 99
    assert found[-1].item() == 2.0
    assert torch.equal(found[:-1], plain[:-1])
    assert running.state_dict() == free.state_dict()
    low = Running(RunningOptions(clip=2.0))(-x, mask)
    assert low[-1].item() == -2.0


def test_running_is_the_identity_at_first_and_inverts() -> None:
    running, (x, mask) = Running(RunningOptions()), draw(0, 4, 6)
    assert torch.equal(running.normalize(x), x)
    assert torch.equal(running.denormalize(x), x)
    running.update(x, mask)
    assert not torch.allclose(running.normalize(x), x)
    torch.testing.assert_close(running.denormalize(running.normalize(x)), x)
    assert running.normalize(x.float()).dtype == torch.float32


def test_running_keeps_float64_statistics_of_float32_numbers() -> None:
    """A mean of 1e4 and a spread of 0.1: sums of squares in float32 would be noise."""
    x = (1e4 + 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0))).float()
    running, mask = Running(RunningOptions()), torch.ones(4096, dtype=torch.bool)
    for part in x.split(64):
        running.update(part, mask[:64])
    mean, deviation = statistics([(x, mask)])
    unit = torch.tensor([mean, mean + deviation], dtype=torch.float64)
    assert running.normalize(unit).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_running_state_survives() -> None:
    one, (x, mask) = Running(RunningOptions()), draw(0, 4, 6)
    one.update(x, mask)
    other = Running(RunningOptions())
    other.load_state_dict(one.state_dict())
    more, seen = draw(1, 3, 3)
    assert torch.equal(one(more, seen), other(more, seen))
    assert one.state_dict() == other.state_dict()
    assert isinstance(one, InvertibleNormalizer)


RUNNING = {"use": "running"}
EVERYWHERE: dict[str, dict[str, Any]] = {
    "scores": {"normalize": {"scores": {"use": "running", "clip": 5.0}}},
    "rewards": {"normalize": {"rewards": {"use": "running", "shift_mean": False}}},
    "advantages": {"normalize": {"advantages": RUNNING}},
    "values": {"critic": {"normalizer": RUNNING}},
}
NOWHERE = {"normalize": {"advantages": None}}


@pytest.fixture(scope="module")
def plain(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of PPO without any normaliser."""
    folder = tmp_path_factory.mktemp("plain")
    run(one_stage(folder / "project", toy_model, **NOWHERE), folder / "run")
    return metrics(folder / "run")


@pytest.mark.parametrize("name", list(EVERYWHERE))
def test_each_normalizer_acts_in_ppo(
    toy_model: Path, tmp_path: Path, plain: list[dict[str, Any]], name: str
) -> None:
    """On its own part of the objective: what it must not touch is what it was without it."""
    options = merged(NOWHERE, EVERYWHERE[name])
    run(one_stage(tmp_path / "project", toy_model, **options), tmp_path / "run")
    found = metrics(tmp_path / "run")
    first, before = found[0], plain[0]
    # The same responses were sampled, and the reward said the same of them.
    for key in ("score", "score_std", "kl", "entropy", "response_length"):
        assert first[key] == before[key], key
    assert len(found) == 3
    assert all(math.isfinite(value) for row in found for value in row.values() if value != "ppo")
    changed = {
        "scores": {"objective", "return", "value/return", "policy/loss"},
        "rewards": {"return", "value/return", "policy/loss"},
        "advantages": {"policy/loss"},
        "values": {"value/return", "value/loss"},
    }[name]
    kept = {"objective", "return", "value/return"} - changed
    assert all(first[key] != before[key] for key in changed)
    assert all(first[key] == before[key] for key in kept)
    if name == "scores":  # mean 0, and the KL to the reference is still 0
        assert first["objective"] == pytest.approx(0.0, abs=1e-6)


WATCHING = """
def rollout_collected(self, stage, step, rollout):
    import json
    with open({file!r}, "a") as file:
        file.write(json.dumps(rollout.values[rollout.mask].mean().item()) + "\\n")
"""


def test_the_critic_learns_scaled_returns(toy_model: Path, tmp_path: Path) -> None:
    """Returns near 1000, scaled, have mean 0: a critic of 0 is right at once.

    What it says is scaled back before advantages are taken: from the second rollout on its values
    are near 1000, as the returns are.
    """
    reward = (
        "def reward(responses):\n    return [1000 + sum(map(ord, t)) % 37 for t in responses]\n"
    )
    plugin = tmp_path / "watching.py"
    watched = write_watcher(plugin, WATCHING.format(file=str(tmp_path / "values.jsonl")))
    for name, normalizer in (("with", RUNNING), ("without", None)):
        critic = {"normalizer": normalizer}
        recipe = one_stage(tmp_path / name, toy_model, reward=reward, critic=critic)
        run(recipe, tmp_path / f"{name}-run", watched, plugins=(plugin,))
    scaled, plain = metrics(tmp_path / "with-run"), metrics(tmp_path / "without-run")
    assert scaled[0]["return"] == plain[0]["return"] > 500  # reported in the reward's own units
    assert abs(scaled[0]["value/return"]) < 0.2
    assert plain[0]["value/return"] > 500
    assert scaled[1]["value/squared_error"] < 10
    assert plain[1]["value/squared_error"] > 1e5
    values = [float(line) for line in (tmp_path / "values.jsonl").read_text().splitlines()]
    assert values[0] == values[3] == 0.0
    assert values[1] == pytest.approx(scaled[0]["return"], abs=100)
    assert abs(values[4]) < 10  # without scaling, a few steps of 0.01 do not get near


def test_normalizers_go_on_after_an_interrupt(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics are part of a checkpoint: a resumed run is the run that was not stopped."""
    everywhere: dict[str, Any] = {}
    for options in EVERYWHERE.values():
        everywhere = merged(everywhere, options)
    recipe = one_stage(tmp_path / "project", toy_model, steps=4, **everywhere)
    whole = run(recipe, tmp_path / "whole")
    parts = run_in_two(recipe, tmp_path / "parts", 2, monkeypatch)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("branch.safetensors", "value_head.safetensors"):
        one, other = load_file(whole / name), load_file(parts / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_values_need_a_normalizer_that_inverts(toy_model: Path, tmp_path: Path) -> None:
    critic = {"normalizer": {"use": "whiten"}}
    recipe = one_stage(tmp_path / "project", toy_model, critic=critic)
    with pytest.raises(RecipeError) as caught:
        run(recipe, tmp_path / "run")
    said = str(caught.value)
    lines = recipe.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if " normalizer:" in text)
    assert f"toy.yaml:{line}: stages.ppo.critic.normalizer" in said
    assert "'whiten' cannot; use running" in said
    assert not list((tmp_path / "run").rglob("*.safetensors"))


class Halves:
    """A world of two processes, which are two threads that wait for each other in every sum."""

    def __init__(self) -> None:
        self.met, self.given = threading.Barrier(2), [torch.zeros(())] * 2

    def of(self, rank: int) -> SimpleNamespace:
        def total(x: Tensor) -> Tensor:
            self.given[rank] = x
            self.met.wait(timeout=60)
            both = self.given[0] + self.given[1]
            self.met.wait(timeout=60)  # read before the next sum writes
            return both

        return SimpleNamespace(world=SimpleNamespace(sum=total))


def halved(build: Callable[[Any], Any], rollouts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """What two processes make of the last rollout, each of its half of the rows."""
    world = Halves()

    def half(rank: int) -> Tensor:
        normalizer = build(world.of(rank))
        return [normalizer(x.chunk(2)[rank], mask.chunk(2)[rank]) for x, mask in rollouts][-1]

    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(half, range(2))))


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_processes_whiten_as_one(shift_mean: bool, unbiased: bool) -> None:
    options = WhitenOptions(shift_mean=shift_mean, unbiased=unbiased)
    rollouts = [draw(seed, 6, 5) for seed in SEEDS]
    found = halved(lambda context: Whiten(options, context), rollouts)
    torch.testing.assert_close(found, Whiten(options)(*rollouts[-1]), rtol=1e-12, atol=1e-12)
    x, mask = rollouts[-1]
    apart = torch.cat([Whiten(options)(*h) for h in zip(x.chunk(2), mask.chunk(2), strict=True)])
    assert not torch.allclose(found, apart)  # or the test would show nothing


def test_processes_scale_as_one() -> None:
    rollouts, alone = [draw(seed, 6, 5) for seed in SEEDS], Running(RunningOptions())
    wanted = [alone(*each) for each in rollouts][-1]
    found = halved(lambda context: Running(RunningOptions(), context), rollouts)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
