"""The master test: PPO-ptx itself, on a policy small enough to enumerate, against the closed form.

With all 15 responses in a rollout, each weighted by its probability, nothing is left to chance:
sample -> score -> credit -> update must give the gradient of ``E[r] - beta KL``, and following it
must end at ``beta log Z`` with ``pi = ref exp(r / beta) / Z``,
``Z = sum_y ref(y) exp(r(y) / beta)``. Everything is float64; the objective is written down here a
second time, from the table of logits alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_kit_policy_gradient.control import FixedKL, KLLimit
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.gae import GAE
from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip
from rlhf_kit_policy_gradient.normalizers import Whiten
from rlhf_kit_policy_gradient.options import (
    ClipOptions,
    FixedKLOptions,
    GAEOptions,
    LinearValueOptions,
    PPOPtxOptions,
    WhitenOptions,
)
from rlhf_kit_policy_gradient.parts import CriticPart, PPOParts
from rlhf_kit_policy_gradient.plugin import rlhf_components
from rlhf_kit_policy_gradient.ppo import PPOPtx
from rlhf_kit_policy_gradient.steering import Beta
from rlhf_kit_policy_gradient.value import LinearValue
from torch import Tensor

from rlhf_kit.engine.optim import Optimizer, ParameterGroup, cosine
from rlhf_kit.engine.seeding import derive_seed
from rlhf_kit.testing import TabularPolicy, TabularSampler, hollow_part
from rlhf_kit.types import LossOutput, PolicyLossInputs, Prompts, SampledUnits, Samples, Sampling

V = R = 3
EOS = V - 1
Response = tuple[int, ...]


# The objective, a second time. Rows of the table are counted by the length of the prefix.


def responses(prefix: Response = ()) -> Iterator[Response]:
    """Every response: up to R tokens, the first EOS being the last of them."""
    if prefix[-1:] == (EOS,) or len(prefix) == R:
        yield prefix
    else:
        for token in range(V):
            yield from responses((*prefix, token))


def logprob(table: Tensor, response: Response, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(response):
        shorter = sum(V**n for n in range(t))
        row = shorter + sum(u * V ** (t - 1 - i) for i, u in enumerate(response[:t]))
        total = total + torch.log_softmax(table[row] / temperature, 0)[token]
    return total


def logprobs(table: Tensor, temperature: float) -> Tensor:
    return torch.stack([logprob(table, response, temperature) for response in responses()])


def objective(log_pi: Tensor, log_ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return (log_pi.exp() * (rewards - beta * (log_pi - log_ref))).sum()


# The parts of PPO-ptx that must be other than in a recipe for the test to be exact.


class Enumerated:
    """A sampler that answers with every response once."""

    def __call__(self, policy: Any, prompts: Prompts, sampling: Sampling) -> Samples:
        return policy.all_samples(sampling.temperature)


class ZeroCritic:
    """V = 0 in float64, which the project's own critic, in float32, would round to."""

    def attach(self, policy: Any) -> None:
        pass

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        return states.new_zeros(samples.mask.shape)

    def parameters(self) -> list[Any]:
        return []


class Expected:
    """PPO's clipped loss, a response weighing its probability: once each, not as often as drawn.

    The loss is linear in positive multiples of the advantage, so the weight goes there. What is
    counted is probability, of which there is 1 in all micro-batches together.
    """

    def __init__(self) -> None:
        self.loss = PPOClip(ClipOptions(clip_range=0.2))

    def count(self, units: SampledUnits) -> Tensor:
        return units.old_logprobs.sum(1).exp().sum()

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        probability = inputs.old_logprobs.sum(1, keepdim=True).exp()
        return self.loss(replace(inputs, advantages=probability * inputs.advantages))


class Recorder(Optimizer):
    """Keeps the gradient of each step."""

    def step(self) -> float:
        self.gradient = self._model[0].grad.clone()
        return super().step()


class Run:
    """A StageRun that only counts."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def key(self, *names: Any) -> int:
        return derive_seed(0, *map(str, names))

    def steps(self, total: int, state: Any, unit: str = "step") -> Iterator[int]:
        return iter(range(total))

    def end_step(self, step: int, metrics: Mapping[str, float], line: str | None = None) -> None:
        pass

    def rollout_collected(self, step: int, rollout: Any) -> None:
        pass


def options(**changes: Any) -> PPOPtxOptions:
    """A stage's options, its slots filled with nothing: the parts are given beside them."""
    (component,) = [c for c in rlhf_components() if c.name == "ppo_ptx"]
    chosen: Any = hollow_part(component, **changes).options
    return chosen


def scorer(rewards: Tensor) -> Any:
    """The reward of each response, in the order of ``responses``."""
    table = dict(zip(responses(), rewards.tolist(), strict=True))

    def reward(samples: Samples) -> Tensor:
        rows = zip(samples.response_tokens, samples.response_mask, strict=True)
        return torch.tensor([table[tuple(tokens[mask].tolist())] for tokens, mask in rows])

    return reward


def ppo(
    policy: TabularPolicy, rewards: Tensor, beta: float, chosen: PPOPtxOptions, **other: Any
) -> PPOPtx:
    """PPO-ptx as a stage builds it, without a critic to learn and without normalisation."""
    value: Any = other.pop("value", ZeroCritic())
    given: dict[str, Any] = {
        "policy": policy,
        "reference": policy.reference(),
        "sampler": Enumerated(),
        "prompts": SimpleNamespace(next=lambda: policy.all_samples().prompts),
        "endings": None,
        "reward": scorer(rewards),
        "advantage": GAE(GAEOptions(discount=1.0, lam=1.0)),
        "policy_loss": Expected(),
        "beta": Beta(beta, FixedKL(FixedKLOptions()), KLLimit(chosen.kl, {})),
        "normalizers": Normalizers(),
        "critic": CriticPart(value, ClippedValue(ClipOptions()), chosen.critic.coef),
    }
    return PPOPtx(PPOParts(**given | other), chosen)


def drawn(seed: int, *shape: int) -> Tensor:
    """Representable in float32, as scores are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).double()


def gradient(
    policy: TabularPolicy, rewards: Tensor, beta: float, lam: float = 1.0, **changes: Any
) -> Tensor:
    """The gradient that one step of PPO follows upwards."""
    group = ParameterGroup(list(policy.parameters()), 1e-3)
    optimizer = Recorder([group], max_gradient_norm=None)
    chosen = options(steps=1, rollout_batch=15, minibatch=15, **changes)
    advantage = GAE(GAEOptions(discount=1.0, lam=lam))
    ppo(policy, rewards, beta, chosen, optimizer=optimizer, advantage=advantage).run(Run())  # type: ignore[arg-type]
    return -optimizer.gradient


def away_from_its_reference(seed: int) -> TabularPolicy:
    policy = TabularPolicy(V, R, dtype=torch.float64, seed=seed)
    with torch.no_grad():
        policy.table += 0.5 * drawn(1000 + seed, *policy.table.shape)
    return policy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("score_at", ["last_token", "after_end"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient(temperature: float, beta: float, score_at: str, seed: int) -> None:
    """At ratio 1 with lambda = 1 and V = 0, it is the gradient of ``E[r] - beta KL``.

    A score after the end has room behind the shorter responses, and none behind those of R tokens.
    """
    policy, rewards = away_from_its_reference(seed), drawn(2000 + seed, 15)
    log_ref = logprobs(policy.reference_table, temperature)
    wanted = torch.autograd.grad(
        objective(logprobs(policy.table, temperature), log_ref, rewards, beta), policy.table
    )[0]
    sampling, end = {"max_new_tokens": R, "temperature": temperature}, {"score_at": score_at}
    found = gradient(policy, rewards, beta, sampling=sampling, end=end, micro_batch=4)
    assert wanted.abs().max() > 0.02
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["keep", "replace", "subtract"])
def test_gradient_with_a_rule_for_responses_without_an_end(rule: str) -> None:
    """The objective is then that of the changed reward."""
    policy, rewards = away_from_its_reference(7), drawn(8, 15)
    unfinished = torch.tensor([EOS not in response for response in responses()])
    changed = {
        "keep": rewards,
        "replace": torch.where(unfinished, -1.5, rewards),
        "subtract": torch.where(unfinished, rewards.float() - 1.5, rewards.float()).double(),
    }[rule]
    log_ref = logprobs(policy.reference_table, 1.0)
    value = objective(logprobs(policy.table, 1.0), log_ref, changed, 0.3)
    (wanted,) = torch.autograd.grad(value, policy.table)
    found = gradient(policy, rewards, 0.3, end={"missing": rule, "value": 1.5})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_wrong_lambda_would_be_noticed() -> None:
    """Without a critic lambda < 1 discounts the score: the gradient of another objective."""
    exact, biased = (
        gradient(away_from_its_reference(0), drawn(2000, 15), 0.3, lam) for lam in (1.0, 0.95)
    )
    assert (exact - biased).abs().max() > 1e-3


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.3), (0.7, 0.5)])
def test_ascent_reaches_the_closed_form(temperature: float, beta: float) -> None:
    """The best of ``E[r] - beta KL`` is ``beta log Z``, at ``ref exp(r / beta) / Z``."""
    policy, rewards, steps = TabularPolicy(V, R, dtype=torch.float64, seed=3), drawn(4, 15), 500
    log_ref = logprobs(policy.reference_table, temperature)
    best = log_ref + rewards / beta
    log_z = best.logsumexp(0)
    group = ParameterGroup(list(policy.parameters()), 0.1)
    optimizer = Optimizer([group], schedule=cosine(steps, floor=0.0), max_gradient_norm=None)
    chosen = options(
        steps=steps,
        rollout_batch=15,
        minibatch=15,
        micro_batch=15,
        sampling={"max_new_tokens": R, "temperature": temperature},
    )
    start = objective(log_ref, log_ref, rewards, beta).item()
    ppo(policy, rewards, beta, chosen, optimizer=optimizer).run(Run())  # type: ignore[arg-type]
    found = logprobs(policy.table.detach(), temperature)
    reached = objective(found, log_ref, rewards, beta).item()
    assert (beta * log_z).item() - start > 0.5
    assert reached == pytest.approx((beta * log_z).item(), abs=1e-6)
    torch.testing.assert_close(found.exp(), (best - log_z).exp(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("score_at", ["last_token", "after_end"])
def test_sampling_comes_close_to_the_closed_form(score_at: str) -> None:
    """The same with ordinary rollouts of 64, a critic, whitened advantages and lambda 0.95."""
    policy, rewards, beta, steps = TabularPolicy(V, R, seed=3), drawn(4, 15), 0.5, 80
    log_ref = logprobs(policy.reference_table.double(), 1.0)
    best = beta * (log_ref + rewards / beta).logsumexp(0).item()
    value = LinearValue(LinearValueOptions())
    value.attach(policy)
    optimizer = Optimizer(
        [ParameterGroup(list(part.parameters()), 0.05) for part in (policy, value)],
        schedule=cosine(steps * 2, floor=0.0),
    )
    one = torch.zeros((64, 1), dtype=torch.long)
    prompts = Prompts(one, one.bool(), [{"prompt": ""}] * 64, torch.arange(64), torch.arange(64))
    ordinary = {
        "sampler": TabularSampler(),
        "value": value,
        "advantage": GAE(GAEOptions(lam=0.95)),
        "policy_loss": PPOClip(ClipOptions(clip_range=0.2)),
        "normalizers": Normalizers(advantages=Whiten(WhitenOptions())),
        "prompts": SimpleNamespace(next=lambda: prompts),
    }
    chosen = options(
        steps=steps,
        rollout_batch=64,
        minibatch=32,
        end={"score_at": score_at},
        sampling={"max_new_tokens": R},
    )
    start = objective(log_ref, log_ref, rewards, beta).item()
    ppo(policy, rewards, beta, chosen, optimizer=optimizer, **ordinary).run(Run())  # type: ignore[arg-type]
    found = logprobs(policy.table.detach().double(), 1.0)
    reached = objective(found, log_ref, rewards, beta).item()
    assert best - start > 0.5
    assert best - reached < 0.05 * (best - start)
