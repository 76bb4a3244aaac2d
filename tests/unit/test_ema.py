"""The moving average of the weights: the recursion, its precision, and what PPO saves of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter
from toy_runs import metrics, one_stage, run, run_in_two, summary

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.recipe import open_recipe

DECAY = 0.9
SHAPES = ((3, 4), (5,))


def weights(dtype: torch.dtype) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def optimizer_of(parameters: list[Parameter], rate: float = 1e-2) -> Optimizer:
    return Optimizer([ParameterGroup(parameters, rate)])


def step(optimizer: Optimizer, parameters: list[Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def recursion(history: list[list[float]], decay: float) -> list[float]:
    """``average = decay average + (1 - decay) weight`` in float64, number by number."""
    average = list(history[0])
    for seen in history[1:]:
        for i, weight in enumerate(seen):
            average[i] = decay * average[i] + (1.0 - decay) * weight
    return average


def flat(tensors: Any) -> list[float]:
    return [value for t in tensors for value in t.detach().double().flatten().tolist()]


@pytest.mark.parametrize("decay", [0.992, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_recursion(dtype: torch.dtype, decay: float) -> None:
    """From the first weights on; of a bfloat16 model it averages the float32 masters."""
    model = weights(dtype)
    optimizer = optimizer_of(model, 1e-4)
    average = WeightAverage(model, optimizer, decay)
    history = [flat(optimizer.precise(model))]
    for seed in range(20):
        step(optimizer, model, seed)
        average.update()
        history.append(flat(optimizer.precise(model)))
    assert history[0] != history[-1]
    found = average.state_dict()["average"]
    assert all(t.dtype == torch.float32 for t in found)
    assert flat(found) == pytest.approx(recursion(history, decay), rel=0, abs=2e-6)
    if dtype == torch.bfloat16:
        # Steps of 1e-4 do not reach most weights of 8 bits; their average would stand still.
        rounded = [[torch.tensor(v).bfloat16().item() for v in seen] for seen in history]
        gap = [abs(a - b) for a, b in zip(flat(found), recursion(rounded, decay), strict=True)]
        assert max(gap) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_puts_the_average_in_and_the_weights_back(dtype: torch.dtype) -> None:
    model = weights(dtype)
    optimizer = optimizer_of(model)
    average = WeightAverage(model, optimizer, DECAY)
    for seed in range(3):
        step(optimizer, model, seed)
        average.update()
    own = [p.detach().clone() for p in model]
    precise = [p.clone() for p in optimizer.precise(model)]
    wanted = [t.to(dtype, copy=True) for t in average.state_dict()["average"]]
    with average.applied():
        assert all(torch.equal(p, t) for p, t in zip(model, wanted, strict=True))
        assert not any(torch.equal(p, t) for p, t in zip(model, own, strict=True))
    assert all(torch.equal(p, t) for p, t in zip(model, own, strict=True))
    with pytest.raises(ValueError, match="in the middle"), average.applied():
        raise ValueError("in the middle")
    assert all(torch.equal(p, t) for p, t in zip(model, own, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model)
    # The optimizer goes on from the weights, and the average from the average.
    assert all(map(torch.equal, optimizer.precise(model), precise))
    again = [t.to(dtype) for t in average.state_dict()["average"]]
    assert all(map(torch.equal, again, wanted))


def test_a_part_of_what_is_trained_may_be_averaged() -> None:
    """The policy, say, and not the critic."""
    model = weights(torch.float32)
    optimizer = optimizer_of(model)
    average = WeightAverage(model[1:], optimizer, 0.5)
    before = [p.detach().clone() for p in model]
    step(optimizer, model, 0)
    average.update()
    after = [p.detach().clone() for p in model]
    with average.applied():
        assert torch.equal(model[0], after[0])
        torch.testing.assert_close(model[1].detach(), (before[1] + after[1]) / 2)


def test_the_state_survives() -> None:
    """Through a file, into an average that has seen other weights; what follows is the same."""
    one, other = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizers = [optimizer_of(one), optimizer_of(other)]
    averages = [WeightAverage(m, o, DECAY) for m, o in zip((one, other), optimizers, strict=True)]
    for seed in range(3):
        step(optimizers[0], one, seed)
        averages[0].update()
    file = io.BytesIO()
    torch.save([averages[0].state_dict(), optimizers[0].state_dict(), one], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for p, value in zip(other, saved[2], strict=True):
        p.data.copy_(value)
    optimizers[1].load_state_dict(saved[1])
    averages[1].load_state_dict(saved[0])
    for m, o, average in zip((one, other), optimizers, averages, strict=True):
        step(o, m, 9)
        average.update()
    found = [average.state_dict()["average"] for average in averages]
    assert all(map(torch.equal, *found))


WEIGHTS = {
    "full": "model.safetensors",
    "hydra": "branch.safetensors",
    "lora": "adapter_model.safetensors",
}
EMA = {"ema": DECAY, "steps": 2, "minibatch": 8, "ptx": None}


@pytest.mark.parametrize("memory", ["full", "hydra", "lora"])
def test_ppo_saves_the_average_and_the_last_weights(
    toy_model: Path, tmp_path: Path, memory: str
) -> None:
    """Two optimizer steps from w0 over w1 to w2: 0.81 w0 + 0.09 w1 + 0.1 w2, and w2 in `last`.

    Averaging changes nothing of the training: w1 and w2 are those of runs without it.
    """
    recipe = one_stage(tmp_path / "project", toy_model, memory=memory, **EMA)
    averaged = run(recipe, tmp_path / "run")
    steps = [run(recipe, tmp_path / f"plain{n}", "ppo.ema=null", f"ppo.steps={n}") for n in (1, 2)]
    resolved, _, _ = open_recipe(recipe)
    context = StageContext(RunContext(resolved, tmp_path / "start"), "ppo")
    name = WEIGHTS[memory]
    torch.manual_seed(0)
    if memory == "lora":
        # Where an adapter starts is drawn at random: from the first weights w1 alone is no way
        # back to w0, but B, which is 0 then, is enough.
        w0 = {k: torch.zeros_like(v) for k, v in load_file(steps[0] / name).items()}
        names = [k for k in w0 if "lora_B" in k]
    else:
        context.memory().policy(None).save(tmp_path / "start")
        w0 = load_file(tmp_path / "start" / name)
        names = list(w0)
    w1, w2 = (load_file(folder / name) for folder in steps)
    last, average = load_file(averaged / "last" / name), load_file(averaged / name)
    assert average.keys() == last.keys() == w1.keys()
    assert all(torch.equal(last[key], w2[key]) for key in last)
    for key in names:
        wanted = 0.81 * w0[key].double() + 0.09 * w1[key].double() + 0.1 * w2[key].double()
        torch.testing.assert_close(average[key].double(), wanted, rtol=0, atol=1e-6)
    assert any(not torch.equal(average[key], last[key]) for key in average)
    # The rows of both runs agree, and so do the critics.
    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain2")
    critics = [load_file(folder / "value_head.safetensors") for folder in (averaged, steps[1])]
    assert all(torch.equal(critics[0][key], critics[1][key]) for key in critics[0])

    # Weights of a policy stand in both folders.
    tables = []
    for folder in (averaged, averaged / "last"):
        policy = context.memory().policy(folder, trainable=False)
        tables.append(policy.state_dict())
    key = next(k for k in tables[0] if "lora_A" not in k and tables[0][k].abs().sum() > 0)
    assert not torch.equal(tables[0][key], tables[1][key])

    told = summary(tmp_path / "run")["stages"]["ppo"]["average"]
    assert told.keys() == {"averaged", "last"}
    assert all(figures.keys() == {"score", "kl"} for figures in told.values())
    assert told["averaged"] != told["last"]
    assert "average" not in summary(tmp_path / "plain2")["stages"]["ppo"]


def test_the_average_is_told_of_the_average(toy_model: Path, tmp_path: Path) -> None:
    """With a decay near 1 it has not left the start, whose KL is 0; the last weights have."""
    options = EMA | {"ema": 1 - 1e-7, "steps": 4, "minibatch": 4}
    run(one_stage(tmp_path / "project", toy_model, memory="full", **options), tmp_path / "run")
    told = summary(tmp_path / "run")["stages"]["ppo"]["average"]
    assert abs(told["averaged"]["kl"]) < 1e-3
    assert abs(told["last"]["kl"]) > 0.05


def test_the_average_goes_on_after_an_interrupt(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, **EMA | {"steps": 4})
    whole = run(recipe, tmp_path / "whole")
    parts = run_in_two(recipe, tmp_path / "parts", 2, monkeypatch)
    for name in ("branch.safetensors", "last/branch.safetensors"):
        one, other = load_file(whole / name), load_file(parts / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")


def test_a_bfloat16_model_is_saved_averaged_in_its_own_precision(
    toy_model: Path, tmp_path: Path
) -> None:
    """A later stage finds weights of the type that it computes in."""
    recipe = one_stage(tmp_path / "project", toy_model, **EMA | {"steps": 3})
    folder = run(recipe, tmp_path / "run", "memory.dtype=bfloat16")
    average, last = (load_file(path / "branch.safetensors") for path in (folder, folder / "last"))
    assert all(t.dtype == torch.bfloat16 for t in (*average.values(), *last.values()))
    assert any(not torch.equal(average[key], last[key]) for key in average)
