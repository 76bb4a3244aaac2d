"""PPO with a per-token KL penalty and a pretraining mix: the algorithm.

Shape legend: B rows, R response, H hidden (see rlhf_kit.types). Setting it up is `ppo_stage`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.clock import Clock
from rlhf_kit.engine.minibatch import minibatches
from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.engine.scoring import score
from rlhf_kit.interfaces import (
    AdvantageEstimator,
    KLController,
    Loss,
    Policy,
    RewardFn,
    StageRun,
    Stateful,
    ValueHead,
)
from rlhf_kit.ops.kl import kl_penalised_rewards
from rlhf_kit.ops.masking import whiten
from rlhf_kit.types import (
    Advantages,
    NllInputs,
    PolicyLossInputs,
    PPOBatch,
    Rollout,
    Sampling,
    TextBatch,
    ValueLossInputs,
)
from rlhf_kit_instructgpt.options import PPOPtxOptions
from rlhf_kit_instructgpt.ppo_metrics import step_line, step_metrics
from rlhf_kit_instructgpt.streams import PromptStream, TextStream


@dataclass(frozen=True)
class PPOParts:
    """What the algorithm is made of; each is an interface."""

    policy: Policy
    value: ValueHead
    reward: RewardFn
    advantage: AdvantageEstimator
    kl: KLController
    policy_loss: Loss[PolicyLossInputs]
    value_loss: Loss[ValueLossInputs]
    ptx_loss: Loss[NllInputs]
    optimizer: Optimizer
    prompts: PromptStream
    pretraining: TextStream | None

    def state(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; a reward or an estimator may have state too."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}


class PPOPtx:
    """InstructGPT PPO-ptx, arXiv:2203.02155, equation 2."""

    def __init__(self, parts: PPOParts, options: PPOPtxOptions) -> None:
        self.parts, self.options = parts, options
        self.ppo = {"policy": Term(parts.policy_loss)}
        if parts.advantage.needs_values:
            self.ppo["value"] = Term(parts.value_loss, options.value_coef)
        self.ptx = {"ptx": Term(parts.ptx_loss, options.ptx_coef)}

    def run(self, run: StageRun) -> None:
        o = self.options
        sampling = Sampling(o.sampling.max_new_tokens, o.sampling.temperature, run.generator)
        for step in run.steps(o.steps, self.parts.state()):
            clock = Clock()
            rollout = self.collect(sampling, clock)
            run.rollout_collected(step, rollout)
            targets = self.credit(rollout)
            whole = PPOBatch.of(rollout, targets)
            order = minibatches(len(whole.samples), o.minibatch, o.inner_epochs, run.generator)
            with clock.phase("update"):
                stats = [self.update(whole.select(rows)) for rows in order]
            scores = with_missing_eos(rollout, o)
            metrics = step_metrics(
                rollout, targets, stats, self.parts.kl.coefficient, scores, clock
            )
            run.end_step(step, metrics, step_line(step, o.steps, metrics))
            self.parts.kl.update(metrics["kl"], len(rollout.samples))

    @torch.no_grad()
    def collect(self, sampling: Sampling, clock: Clock) -> Rollout:
        """Sample, and record everything that PPO later holds fixed."""
        with clock.phase("sample"):
            samples = self.parts.policy.generate(self.parts.prompts.next(), sampling)
        with clock.phase("score"):
            out = self.parts.policy.evaluate(samples)  # logprobs [B, R], states [B, R, H]
            with self.parts.policy.reference():
                reference = self.parts.policy.evaluate(samples)
            needed = self.parts.advantage.needs_values
            values = self.parts.value(out.states, samples) if needed else None  # [B, R]
            scores, components = score(self.parts.reward, samples)  # [B]
        return Rollout(samples, out.logprobs, reference.logprobs, values, scores, components)

    def credit(self, rollout: Rollout) -> Advantages:
        """Per-token rewards [B, R], then advantages and returns [B, R]."""
        scores = with_missing_eos(rollout, self.options)
        logprobs, reference = rollout.logprobs, rollout.reference_logprobs
        beta, mask = self.parts.kl.coefficient, rollout.mask
        rewards = kl_penalised_rewards(scores, logprobs, reference, mask, beta)
        if self.options.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        return self.parts.advantage(rewards, rollout.values, mask, rollout.group)

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """One optimizer step on the policy, value and pretraining terms."""
        with accumulating(self.parts.optimizer) as step:
            step.add(self.ppo, self.policy_and_value, list(batch.split(self.options.micro_batch)))
            if self.parts.pretraining is not None:
                texts = self.parts.pretraining.next(len(batch.samples))
                step.add(self.ptx, self.language_model, texts)
        return step.stats

    def policy_and_value(self, batch: PPOBatch) -> dict[str, PolicyLossInputs | ValueLossInputs]:
        out = self.parts.policy.evaluate(batch.samples)
        inputs: dict[str, PolicyLossInputs | ValueLossInputs] = {
            "policy": PolicyLossInputs(out.logprobs, batch.logprobs, batch.advantages, batch.mask)
        }
        if batch.values is not None:
            values = self.parts.value(out.states, batch.samples)
            inputs["value"] = ValueLossInputs(values, batch.values, batch.returns, batch.mask)
        return inputs

    def language_model(self, texts: TextBatch) -> dict[str, NllInputs]:
        logprobs = self.parts.policy.next_token_logprobs(texts)
        return {"ptx": NllInputs(logprobs, texts.predicted.to(logprobs.device))}


def with_missing_eos(rollout: Rollout, options: PPOPtxOptions) -> Tensor:
    """Scores [B] in which a response that never ended is treated as the recipe says."""
    scores, finished, value = rollout.scores, rollout.samples.finished, options.missing_eos_value
    if options.missing_eos == "replace":
        return torch.where(finished, scores, -value)
    if options.missing_eos == "subtract":
        return torch.where(finished, scores, scores - value)
    return scores
