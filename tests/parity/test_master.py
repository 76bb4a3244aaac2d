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
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_kit_engines.options import SingleOptions
from rlhf_kit_engines.single import Single
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
from rlhf_kit.engine.world import OneProcess
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


def row(prefix: Response) -> int:
    shorter = sum(V**n for n in range(len(prefix)))
    return shorter + sum(u * V ** (len(prefix) - 1 - i) for i, u in enumerate(prefix))


def logprob(table: Tensor, response: Response, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(response):
        total = total + torch.log_softmax(table[row(response[:t])] / temperature, 0)[token]
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
        # Of the graph, as every critic that can be trained.
        return states.new_zeros(samples.mask.shape).requires_grad_()

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
    """Keeps the gradient of each step; with rate 0 a step has no length."""

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
    policy: TabularPolicy, reward: Any, beta: float, chosen: PPOPtxOptions, **other: Any
) -> PPOPtx:
    """PPO-ptx as a stage builds it, without a critic to learn and without normalisation."""
    value: Any = other.pop("value", ZeroCritic())
    given: dict[str, Any] = {
        "engine": Single(SingleOptions()),
        "policy": policy,
        "reference": policy.reference(),
        "sampler": Enumerated(),
        "prompts": SimpleNamespace(next=lambda: policy.all_samples().prompts),
        "endings": None,
        "reward": reward,
        "advantage": GAE(GAEOptions(discount=1.0, lam=1.0)),
        "policy_loss": Expected(),
        "beta": Beta(beta, FixedKL(FixedKLOptions()), KLLimit(chosen.kl), OneProcess()),
        "normalizers": Normalizers(),
        "critic": CriticPart(value, ClippedValue(ClipOptions()), chosen.critic.coef),
    }
    return PPOPtx(PPOParts(**given | other), chosen)


def drawn(seed: int, *shape: int) -> Tensor:
    """Representable in float32, as scores are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).double()


def gradient(
    policy: TabularPolicy, reward: Any, beta: float, lam: float = 1.0, **changes: Any
) -> Tensor:
    """The gradient that one step of PPO follows upwards."""
    group = ParameterGroup(list(policy.parameters()), 0.0)
    optimizer = Recorder([group], max_gradient_norm=None)
    chosen = options(steps=1, rollout_batch=15, minibatch=15, **changes)
    advantage = GAE(GAEOptions(discount=1.0, lam=lam))
    ppo(policy, reward, beta, chosen, optimizer=optimizer, advantage=advantage).run(Run())  # type: ignore[arg-type]
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
    found = gradient(policy, scorer(rewards), beta, sampling=sampling, end=end, micro_batch=4)
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
    found = gradient(policy, scorer(rewards), 0.3, end={"missing": rule, "value": 1.5})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_wrong_lambda_would_be_noticed() -> None:
    """Without a critic lambda < 1 discounts the score: the gradient of another objective."""
    exact, biased = (
        gradient(away_from_its_reference(0), scorer(drawn(2000, 15)), 0.3, lam)
        for lam in (1.0, 0.95)
    )
    assert (exact - biased).abs().max() > 1e-3


# A reward that scores tokens.


def token_scorer(scores: Tensor) -> Any:
    """Each token's score by what comes before it, ``scores`` [rows, V]; anything in the padding."""

    def reward(samples: Samples) -> Tensor:
        found = torch.full(samples.response_mask.shape, 1e9)
        rows = zip(samples.response_tokens, samples.response_mask, strict=True)
        for i, (tokens, mask) in enumerate(rows):
            found[i, mask] = torch.tensor(scores_of(scores, tuple(tokens[mask].tolist())))
        return found

    return reward


def scores_of(scores: Tensor, response: Response) -> list[float]:
    return [scores[row(response[:t]), token].item() for t, token in enumerate(response)]


def placed_gradient(
    policy: TabularPolicy, placed: list[list[float]], beta: float, lam: float
) -> Tensor:
    """Of rewards that stand where ``placed`` has them, by loops: A_t is a sum of what follows."""
    total = torch.zeros((), dtype=torch.float64)
    for response, rewards in zip(responses(), placed, strict=True):
        ends = range(1, len(response) + 1)
        log_pi, log_ref = (
            [
                logprob(table, response[:t], 1.0) - logprob(table, response[: t - 1], 1.0)
                for t in ends
            ]
            for table in (policy.table, policy.reference_table)
        )
        probability = torch.stack(log_pi).sum().exp().item()
        deltas = [
            reward - beta * (ours - theirs).item()
            for reward, ours, theirs in zip(rewards, log_pi, log_ref, strict=True)
        ]
        for t, chosen in enumerate(log_pi):
            advantage = sum(lam**k * delta for k, delta in enumerate(deltas[t:]))
            total = total + probability * advantage * chosen
    (found,) = torch.autograd.grad(total, policy.table)
    return found


@pytest.mark.parametrize("lam", [1.0, 0.6])
@pytest.mark.parametrize("rule", ["keep", "replace", "subtract"])
def test_scores_of_tokens_stay_where_they_are(rule: str, lam: float) -> None:
    """What a rule makes of the sum of a response without an end is more or less at its end."""
    policy, beta = away_from_its_reference(11), 0.3
    scores = (8 * drawn(12, *policy.table.shape)).round() / 8  # their float32 sums are exact
    placed = [scores_of(scores, response) for response in responses()]
    for response, rewards in zip(responses(), placed, strict=True):
        if EOS not in response and rule != "keep":
            rewards[-1] -= 1.5 + (sum(rewards) if rule == "replace" else 0.0)
    found = gradient(
        policy, token_scorer(scores), beta, lam, end={"missing": rule, "value": 1.5}, micro_batch=4
    )
    wanted = placed_gradient(policy, placed, beta, lam)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    totals = torch.tensor([sum(rewards) for rewards in placed], dtype=torch.float64)
    all_at_the_end = gradient(policy, scorer(totals), beta, lam)
    if lam == 1.0:  # of one objective, wherever its rewards stand
        log_ref = logprobs(policy.reference_table, 1.0)
        value = objective(logprobs(policy.table, 1.0), log_ref, totals, beta)
        torch.testing.assert_close(found, torch.autograd.grad(value, policy.table)[0])
        torch.testing.assert_close(found, all_at_the_end, rtol=0, atol=1e-12)
    else:
        assert (found - all_at_the_end).abs().max() > 1e-2


# The KL as a reward and as a loss, through the losses that a recipe names.

ROWS = 64


class Proportional:
    """A sampler that answers with every response as often as its probability says, of 64."""

    def __call__(self, policy: Any, prompts: Prompts | None, sampling: Any) -> Samples:
        samples = policy.all_samples()
        counts = ROWS * policy.evaluate(samples).logprobs.detach().sum(1).exp()
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-12)
        return samples.select(torch.arange(len(samples)).repeat_interleave(counts.round().long()))


def halves_and_quarters(seed: int) -> TabularPolicy:
    """Every probability is a multiple of 1/64; the reference has others."""
    policy = TabularPolicy(V, R, dtype=torch.float64, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in policy.table:
            odds = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
            logits.copy_(odds[torch.randperm(V, generator=generator)].log())
    return policy


def sampled_gradient(policy: TabularPolicy, rewards: Tensor, beta: float, **kl: Any) -> Tensor:
    """The gradient that one step follows upwards, per response instead of per token."""
    optimizer = Recorder([ParameterGroup([policy.table], 0.0)], max_gradient_norm=None)
    samples = Proportional()(policy, None, None)
    chosen = options(steps=1, rollout_batch=ROWS, minibatch=ROWS, micro_batch=10, kl=kl)
    parts = {
        "sampler": Proportional(),
        "prompts": SimpleNamespace(next=lambda: samples.prompts),
        "policy_loss": PPOClip(ClipOptions()),
        "optimizer": optimizer,
    }
    ppo(policy, scorer(rewards), beta, chosen, **parts).run(Run())  # type: ignore[arg-type]
    return -optimizer.gradient * samples.mask.sum() / ROWS


def kls_of_tokens(policy: TabularPolicy, estimate: str) -> list[tuple[Tensor, Tensor]]:
    """(probability, KL of the next token) of every prefix: pi || ref for k2, ref || pi for k3."""
    found = []
    for prefix in [p for n in range(R) for p in product(range(V), repeat=n) if EOS not in p]:
        ours, theirs = (
            torch.log_softmax(table[row(prefix)], 0)
            for table in (policy.table, policy.reference_table)
        )
        first, second = (ours, theirs) if estimate == "k2" else (theirs, ours)
        kl = (first.exp() * (first - second)).sum()
        found.append((logprob(policy.table, prefix, 1.0).exp(), kl))
    return found


def kl_case(seed: int) -> tuple[TabularPolicy, Tensor, float, Tensor]:
    """A policy, rewards, beta, and the gradient of ``E[r] - beta KL``."""
    policy, rewards, beta = halves_and_quarters(seed), drawn(3000 + seed, 15), 0.4
    log_ref = logprobs(policy.reference_table, 1.0)
    value = objective(logprobs(policy.table, 1.0), log_ref, rewards, beta)
    return policy, rewards, beta, torch.autograd.grad(value, policy.table)[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_kl_as_a_reward_is_the_whole_kl(seed: int) -> None:
    policy, rewards, beta, wanted = kl_case(seed)
    found = sampled_gradient(policy, rewards, beta, place="reward")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)  # counts are float32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimate", ["k2", "k3"])
def test_the_kl_as_a_loss_is_that_of_each_token(estimate: str, seed: int) -> None:
    """With d = log pi - log ref, the expected gradient of k2 is that of ``E[d grad log pi]`` and

    that of k3 ``E[(1 - exp(-d)) grad log pi]``: of KL(pi || ref) and of KL(ref || pi) of the next
    token, the prefixes being drawn from what the policy was. That a token also decides which
    prefixes are reached, and what their KL is, no loss of single tokens can tell: with k2 that is
    all that is missing.
    """
    policy, rewards, beta, exact = kl_case(seed)
    found = sampled_gradient(policy, rewards, beta, place="loss", estimate=estimate)
    score = (logprobs(policy.table, 1.0).exp() * rewards).sum()
    kls = kls_of_tokens(policy, estimate)
    held = torch.stack([probability.detach() * kl for probability, kl in kls]).sum()
    (wanted,) = torch.autograd.grad(score - beta * held, policy.table)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert (found - exact).abs().max() > 1e-3
    if estimate == "k2":
        reached = torch.stack([p * kl.detach() for p, kl in kls_of_tokens(policy, "k2")]).sum()
        (missing,) = torch.autograd.grad(-beta * reached, policy.table)
        torch.testing.assert_close(found + missing, exact, rtol=1e-6, atol=1e-7)


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
    ppo(policy, scorer(rewards), beta, chosen, optimizer=optimizer).run(Run())  # type: ignore[arg-type]
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
    ppo(policy, scorer(rewards), beta, chosen, optimizer=optimizer, **ordinary).run(Run())  # type: ignore[arg-type]
    found = logprobs(policy.table.detach().double(), 1.0)
    reached = objective(found, log_ref, rewards, beta).item()
    assert best - start > 0.5
    assert best - reached < 0.05 * (best - start)
