"""PPO with a per-token KL penalty and a pretraining mix: the algorithm.

Shape legend: B rows, R response, H hidden (see rlhf_kit.types). Setting it up is `ppo_stage`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.engine.clock import Clock
from rlhf_kit.engine.minibatch import minibatches
from rlhf_kit.engine.release import trim_heap
from rlhf_kit.engine.scoring import score
from rlhf_kit.interfaces import StageRun, Term
from rlhf_kit.ops.kl import kl_penalised_rewards, sequence_kl
from rlhf_kit.ops.sequence import by_length, last_index, with_place_after_end
from rlhf_kit.stagekit.batches import sampling_of
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.types import (
    Advantages,
    NllInputs,
    PolicyLossInputs,
    PPOBatch,
    Prompts,
    Rollout,
    Sampling,
    TextBatch,
    ValueLossInputs,
)
from rlhf_kit_policy_gradient.options import PPOPtxOptions
from rlhf_kit_policy_gradient.ppo_metrics import step_line, step_metrics
from rlhf_kit_policy_gradient.ppo_parts import PPOParts, normalised, shaped_scores


class PPOPtx:
    """InstructGPT PPO-ptx, arXiv:2203.02155, equation 2."""

    def __init__(self, parts: PPOParts, options: PPOPtxOptions) -> None:
        self.parts, self.options = parts, options
        self.ppo = {"policy": Term(parts.policy_loss)}
        if parts.value is not None:
            self.ppo["value"] = Term(
                parts.value_loss, options.value_coef, lambda batch: batch.valued
            )
        self.watched = list(parts.policy.parameters()) if options.gradient_norms else []

    def run(self, run: StageRun) -> int:
        """Train; returns how many rollouts came before the one that ended it, if one did."""
        o, parts = self.options, self.parts
        sampling = sampling_of(o.sampling, run.generator)
        endings = Endings(run)
        for step in run.steps(o.steps, parts.state()):
            if self.step(run, step, sampling, endings) == "stop":
                return step
        return o.steps

    def step(self, run: StageRun, step: int, sampling: Sampling, endings: Endings) -> str:
        """One rollout and what is learned from it; returns the verdict on its KL.

        A method, so that the rollout is gone before the next one is collected.
        """
        o, parts, clock = self.options, self.parts, Clock()
        extra = self.steer_ptx(step, clock)
        rollout = self.collect(parts.prompts.next(), sampling, clock)
        endings.see(rollout.samples)
        trim_heap()  # decoding leaves other shapes behind than updates need
        run.rollout_collected(step, rollout)
        kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, rollout.mask)  # [B]
        verdict = parts.limit.check(kl.mean().item())
        scores = shaped_scores(rollout, o, parts.score_normalizer)  # [B]
        targets = self.credit(rollout, scores)
        stats = []
        if verdict == "go on":
            batch = self.batch(rollout, targets)
            order = minibatches(len(scores), o.minibatch, o.inner_epochs, run.generator)
            with clock.phase("update"):
                stats = [self.update(batch.select(rows)) for rows in order]
        if verdict == "rollback":
            parts.limit.take_back(parts.kl)
        extra |= {"kl_coef": parts.kl.coefficient, "rollbacks": float(parts.limit.rollbacks)}
        metrics = step_metrics(rollout, targets, stats, kl, scores, extra, clock)
        run.end_step(step, metrics, step_line(step, o.steps, metrics, verdict))
        if verdict != "stop":
            parts.kl.update(metrics["kl"], len(scores))
        return verdict

    def collect(self, prompts: Prompts, sampling: Sampling, clock: Clock) -> Rollout:
        """Sample ``sampling.batch_size`` rows at a time; the responses to a prompt together."""
        repeat = self.options.samples_per_prompt
        size = max(1, self.options.sampling.batch_size // repeat) * repeat
        chunks = torch.arange(len(prompts)).split(size)
        parts = [self.collect_chunk(prompts.select(rows), sampling, clock) for rows in chunks]
        return Rollout.join(parts)

    @torch.no_grad()
    def collect_chunk(self, prompts: Prompts, sampling: Sampling, clock: Clock) -> Rollout:
        """Sample, and record everything that PPO later holds fixed."""
        with clock.phase("sample"):
            samples = self.parts.policy.generate(prompts, sampling)
            if self.options.score_at == "after_end":
                # The critic must see the place after the end of the longest row too, or it would
                # depend on the rows beside it whether a row has one.
                longest = int(samples.response_mask.sum(1).max())
                samples = samples.with_room(min(longest + 1, sampling.max_new_tokens))
        with clock.phase("score"):
            out = self.parts.policy.evaluate(samples)  # logprobs [B, R], states [B, R, H]
            logprobs, values = out.logprobs, None  # values [B, R]
            if self.parts.value is not None:
                values = self.parts.value(out.states, samples)
                if self.parts.value_normalizer is not None:
                    values = self.parts.value_normalizer.denormalize(values)
            del out  # the states are as large as a trunk
            with self.parts.policy.reference():
                reference = self.parts.policy.evaluate(samples).logprobs
            scores, components = score(self.parts.reward, samples)  # [B]
        return Rollout(samples, logprobs, reference, values, scores, components)

    def places(self, mask: Tensor) -> Tensor:
        """[B, R]: the tokens, and one place after the end where the recipe puts the score there."""
        return with_place_after_end(mask) if self.options.score_at == "after_end" else mask

    def credit(self, rollout: Rollout, scores: Tensor) -> Advantages:
        """Per-token rewards [B, R], then advantages and returns [B, R]."""
        parts, mask, places = self.parts, rollout.mask, self.places(rollout.mask)
        logprobs, reference = rollout.logprobs, rollout.reference_logprobs
        rewards = kl_penalised_rewards(
            scores, logprobs, reference, mask, parts.kl.coefficient, last_index(places)
        )
        rewards = normalised(parts.reward_normalizer, rewards, places)
        found = parts.advantage(rewards, rollout.values, places, rollout.group)
        advantages = normalised(parts.advantage_normalizer, found.advantages, mask)
        return Advantages(advantages, found.returns)

    def batch(self, rollout: Rollout, targets: Advantages) -> PPOBatch:
        """What the updates read; values and returns in the units that the critic learns."""
        values, returns, places = rollout.values, targets.returns, self.places(rollout.mask)
        normalizer = self.parts.value_normalizer
        if values is not None and normalizer is not None:
            values = normalizer.normalize(values)
            normalizer.update(returns, places)
            returns = normalizer.normalize(returns)
        return PPOBatch(
            rollout.samples, rollout.logprobs, values, targets.advantages, returns, places
        )

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """One optimizer step on the policy, value and pretraining terms."""
        parts = self.parts
        with parts.engine.step(parts.optimizer, self.watched) as step:
            lengths = batch.samples.token_mask.sum(1)  # [B]
            micro = [batch.select(r) for r in by_length(lengths, self.options.micro_batch)]
            step.add(self.ppo, self.policy_and_value, micro, "ppo")
            if parts.pretraining is not None:
                term = Term(parts.ptx_loss, parts.ptx.coefficient)
                texts = parts.pretraining.next(len(batch.samples))
                step.add({"ptx": term}, self.language_model, texts, "ptx")
        if parts.ema is not None:
            parts.ema.update()
        trim_heap()
        return step.stats

    def policy_and_value(self, batch: PPOBatch) -> dict[str, PolicyLossInputs | ValueLossInputs]:
        out = self.parts.policy.evaluate(batch.samples)
        inputs: dict[str, PolicyLossInputs | ValueLossInputs] = {
            "policy": PolicyLossInputs(out.logprobs, batch.logprobs, batch.advantages, batch.mask)
        }
        if self.parts.value is not None and batch.values is not None:
            values = self.parts.value(out.states, batch.samples)
            inputs["value"] = ValueLossInputs(values, batch.values, batch.returns, batch.places)
        return inputs

    def language_model(self, texts: TextBatch) -> dict[str, NllInputs]:
        logprobs = self.parts.policy.next_token_logprobs(texts)
        return {"ptx": NllInputs(logprobs, texts.predicted.to(logprobs.device))}

    def steer_ptx(self, step: int, clock: Clock) -> dict[str, float]:
        """Let the controller of gamma see the held-out perplexity when it is due."""
        parts = self.parts
        if parts.pretraining is None:
            return {}
        metrics: dict[str, float] = {}
        if parts.held_out is not None and step % parts.ptx.every == 0:
            with clock.phase("perplexity"):
                metrics["held_out_perplexity"] = perplexity(parts.policy, parts.held_out)
            parts.ptx.update(metrics["held_out_perplexity"])
        return metrics | {"ptx_coef": parts.ptx.coefficient}
