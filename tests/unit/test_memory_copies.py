"""No copy of the weights is idle, and no second one is made to replace the first."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live_tensors import Peak
from rlhf_kit_policy_gradient.control import KLLimit
from torch import Tensor, nn
from torch.nn import Parameter
from toy_runs import ppo_of, ppo_options
from toys import trained_folder

from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.stagekit.best import Best
from rlhf_kit.testing import TabularPolicy


class Model:
    """Forty thousand weights in four tensors, 160 kB."""

    size = 4 * 10_000 * 4

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.weights = [Parameter(torch.full((100, 100), float(i), dtype=dtype)) for i in range(4)]

    def add(self, amount: float) -> None:
        with torch.no_grad():
            for weight in self.weights:
                weight += amount

    def parameters(self) -> list[Parameter]:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {str(i): weight.detach() for i, weight in enumerate(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, weight in enumerate(self.weights):
            weight.copy_(state[str(i)])

    def save(self, folder: Path) -> None:
        raise AssertionError("not for saving")

    def first(self) -> list[float]:
        return [weight[0, 0].item() for weight in self.weights]


def test_the_best_weights_are_held_once() -> None:
    model = Model()
    best = Best(model)
    with Peak() as memory:
        best.offer(3.0)
        model.add(10.0)
        best.offer(2.0)
        model.add(10.0)
        best.offer(2.5)  # not better
        assert memory.peak <= 1.1 * Model.size
        best.restore()
        assert memory.peak <= 1.1 * Model.size
    assert model.first() == [10.0, 11.0, 12.0, 13.0]
    gc.collect()
    assert memory.bytes == 0  # nothing is kept of what has been put back


def test_the_best_weights_survive_a_resume_and_further_offers() -> None:
    model = Model()
    best = Best(model)
    best.offer(3.0)
    other = Model()
    again = Best(other)
    again.load_state_dict(best.state_dict())
    other.add(10.0)
    again.offer(4.0)
    again.restore()
    assert other.first() == [0.0, 1.0, 2.0, 3.0]
    assert (again.first, again.value) == (3.0, 3.0)


def test_what_a_rollback_goes_back_to_is_held_once() -> None:
    model = Model()
    options = ppo_options(kl={"limit": 5.0, "on_limit": "rollback"})
    limit, parts = KLLimit(options.kl), {"model": model}
    with Peak() as memory:
        for _ in range(3):
            assert limit.check(1.0, parts) == "go on"
            model.add(10.0)
        assert memory.peak <= 1.1 * Model.size
    assert limit.check(6.0, parts) == "rollback"
    limit.take_back(1.0, parts)
    assert model.first() == [20.0, 21.0, 22.0, 23.0]
    model.add(1.0)
    limit.take_back(1.0, parts)  # what was put back has not become what is gone back to
    assert model.first() == [20.0, 21.0, 22.0, 23.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_changes_places_with_the_weights(dtype: torch.dtype) -> None:
    model = Model(dtype)
    optimizer = Optimizer([ParameterGroup(model.weights, 0.5)])
    average = WeightAverage(model.weights, optimizer, 0.5)
    for weight in model.weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    average.update()
    own = [weight.detach().clone() for weight in model.weights]
    precise = [weight.clone() for weight in optimizer.precise(model.weights)]
    mean = [weight.clone() for weight in average.state_dict()["average"]]
    assert not torch.equal(own[1].float(), mean[1])
    with Peak() as memory:
        with average.applied():
            for weight, wanted in zip(model.weights, mean, strict=True):
                assert torch.equal(weight, wanted.to(dtype))
        assert memory.peak <= 0.3 * Model.size  # a tensor at a time
    for found, wanted in (
        (model.weights, own),
        (optimizer.precise(model.weights), precise),
        (average.state_dict()["average"], mean),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def models_alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(found, kind) for found in gc.get_objects())


def test_full_has_a_model_for_each_role_and_no_other(
    context_of: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    before = models_alive(LlamaForCausalLM)
    context = context_of("full")
    memory = context.memory()
    policy = memory.policy(None)
    assert models_alive(LlamaForCausalLM) - before == 1
    reference = memory.reference(None)
    assert models_alive(LlamaForCausalLM) - before == 2
    reward = memory.scorer(None)
    assert models_alive(LlamaForCausalLM) - before == 3
    # Each is of its own, and the pretrained one.
    roles = (policy.role, reference.role, reward._role)
    own, *others = (list(role.state_dict().values()) for role in roles)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert len({x.data_ptr() for tensors in (own, *others) for x in tensors}) == 3 * len(own)


def test_full_from_folders_holds_no_pretrained_model(
    context_of: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    context = context_of("full")
    folder = trained_folder(context, tmp_path / "sft")
    before = models_alive(LlamaForCausalLM)
    memory = context.memory()
    kept = [memory.policy(folder, trainable=False), memory.scorer(folder)]
    assert models_alive(LlamaForCausalLM) - before == len(kept)


def test_a_checkpoint_holds_no_reference() -> None:
    policy = TabularPolicy()
    parts = ppo_of(policy, ppo_options(), reference=policy.reference()).parts
    assert {"policy", "critic", "optimizer"} <= parts.state().keys()
    assert "reference" not in parts.state()


def test_a_finished_stage_leaves_no_model(context_of: Callable[..., Any]) -> None:
    for kind in ("full", "lora", "hydra"):
        policy = context_of(kind).memory().policy(None)
        module = weakref.ref(next(iter(_modules(policy))))
        assert module() is not None
        del policy
        gc.collect()
        assert module() is None, kind


def _modules(policy: Any) -> list[nn.Module]:
    with policy.role.decoding() as model:
        return [model]


def resampled_at_once(sums: Tensor, counts: Tensor, seed: int, draws: int) -> tuple[float, float]:
    """As it was before: all draws in one tensor."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    means = sums[index].sum(1) / counts[index].sum(1)
    low, high = torch.nanquantile(means, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


@pytest.mark.parametrize(("groups", "draws"), [(1, 2000), (7, 2000), (3000, 2000), (5003, 701)])
def test_the_bootstrap_in_blocks_is_the_bootstrap(groups: int, draws: int) -> None:
    drawn = torch.Generator().manual_seed(groups)
    sums = torch.randn(groups, generator=drawn).double()
    counts = torch.randint(1, 5, (groups,), generator=drawn).double()
    generator = torch.Generator().manual_seed(5)
    found = bootstrap_interval(sums, counts, generator, draws=draws)
    assert found == resampled_at_once(sums, counts, 5, draws)
    # What is drawn afterwards is the same too.
    other = torch.Generator().manual_seed(5)
    torch.randint(groups, (draws, groups), generator=other)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))


def test_the_bootstrap_does_not_hold_all_draws() -> None:
    groups = 32_000
    with Peak() as memory:
        bootstrap_interval(torch.rand(groups), torch.ones(groups), torch.Generator())
    assert memory.peak <= 32 * 2**20  # all draws at once: 978 MiB
