"""PPO with a KL penalty and a pretraining mix: the algorithm, and nothing around it.

Shape legend: B rows, R response, H hidden (see rlhf_kit.types). `stage` puts the parts together,
`steering` turns the coefficients, `report` says what happened.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_kit.engine.clock import Clock, timed
from rlhf_kit.engine.minibatch import minibatches
from rlhf_kit.engine.release import trim_heap
from rlhf_kit.engine.scoring import score
from rlhf_kit.interfaces import StageRun, Term
from rlhf_kit.ops.sequence import by_length
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.types import (
    Advantages,
    Experience,
    NllInputs,
    PolicyLossInputs,
    PPOBatch,
    Prompts,
    Rollout,
    Samples,
    TextBatch,
    ValueLossInputs,
)
from rlhf_kit_policy_gradient.experience import (
    estimated,
    experience_of,
    normalised,
    places_of,
    with_room,
    with_scores,
)
from rlhf_kit_policy_gradient.losses import KLLoss
from rlhf_kit_policy_gradient.options import PPOPtxOptions
from rlhf_kit_policy_gradient.parts import PPOParts, PtxPart
from rlhf_kit_policy_gradient.report import step_line, step_metrics


class PPOPtx:
    """InstructGPT's third step, arXiv:2203.02155, section 3.5. It maximises equation 2,

        E[r(x, y) - beta log(pi(y|x) / pi_ref(y|x))] + gamma E[log pi(text)],

    by clipped policy gradients (arXiv:1707.06347, equation 7) on estimated advantages.
    """

    def __init__(self, parts: PPOParts, options: PPOPtxOptions) -> None:
        self.parts, self.options, self.clock = parts, options, Clock()
        self._watched = list(parts.policy.parameters()) if options.gradient_norms else []

    def run(self, run: StageRun) -> int:
        """Train; returns how many rollouts came before the one that ended it, if one did."""
        for step in run.steps(self.options.steps, self.parts.state()):
            if self.step(run, step) == "stop":
                return step
        return self.options.steps

    def step(self, run: StageRun, step: int) -> str:
        """One rollout and what is learned from it; returns the verdict on its KL.

        Each phase finishes all its chunks before the next one begins, so that a frozen role is
        needed once in a rollout. A method, so that the rollout is gone before the next one comes.
        """
        beta, world, self.clock = self.parts.beta, self.parts.engine.world, Clock()
        figures = self.watch_text(step)
        rollout = self.score(self.sample(self.parts.prompts.next(), run.key("sample", step)))
        run.rollout_collected(step, rollout)
        verdict = beta.judge(rollout, self.parts.learned())
        experience = self.experience(rollout)
        targets = self.credit(experience)
        stats = self.update(rollout, targets, run.generator) if verdict == "go on" else []
        figures |= beta.settle(verdict, rollout, self.parts.learned())
        metrics = step_metrics(rollout, experience, targets, stats, figures, world)
        metrics |= self.clock.metrics()
        line = step_line(step, self.options.steps, metrics, verdict, beta.coefficient)
        run.end_step(step, metrics, line)
        return verdict

    @timed("perplexity")
    def watch_text(self, step: int) -> dict[str, float]:
        """Let the controller of gamma see the held-out perplexity, when it is due."""
        ptx = self.parts.ptx
        return {} if ptx is None else ptx.gamma.watch(step, self.parts.policy)

    @timed("sample")
    def sample(self, prompts: Prompts, key: int) -> list[Samples]:
        """A response to every row of ``prompts``, in the chunks that were decoded."""
        parts, o = self.parts, self.options
        drawn = sample(parts.sampler, parts.policy, prompts, o.sampling, key, endings=parts.endings)
        if o.trunk == "drop":
            # Before scoring too: what is computed again would not be what decoding has computed.
            drawn = (chunk.without_trunk() for chunk in drawn)
        longest = o.sampling.max_new_tokens
        chunks = [self._at_rest(with_room(chunk, o.end, longest)) for chunk in drawn]
        trim_heap()  # decoding leaves other shapes behind than updates need
        return chunks

    @timed("score")
    @torch.no_grad()
    def score(self, chunks: Sequence[Samples]) -> Rollout:
        """What the updates hold fixed, role by role: the policy, its reference, critic, reward.

        Of the responses that the reward has a score of.
        """
        # A trunk that is dropped is computed once for all roles, and is gone before the next one.
        drop = self.options.trunk == "drop"
        together = [[chunk] for chunk in chunks] if drop else [chunks]
        rollout = Rollout.join([self._scored(chunks) for chunks in together])
        return with_scores(rollout, whole_groups=self.parts.groups_compared)

    def _scored(self, chunks: Sequence[Samples]) -> Rollout:
        parts = self.parts
        chunks = [self._at_rest(parts.policy.encode(chunk)) for chunk in chunks]
        own = [self._account(chunk) for chunk in chunks]  # the policy, and the critic beside it
        references = [parts.reference.evaluate(chunk).logprobs for chunk in chunks]  # [B, R]
        scores = [score(parts.reward, chunk) for chunk in chunks]
        known = zip(chunks, own, references, scores, strict=True)
        return Rollout.join(
            [
                Rollout(self._kept(chunk), logprobs, reference, values, *scored)
                for chunk, (logprobs, values), reference, scored in known
            ]
        )

    def _account(self, chunk: Samples) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and values [B, R]; the states, as large as a trunk, are gone then."""
        out, critic = self.parts.policy.evaluate(chunk), self.parts.critic
        if critic is None:
            return out.logprobs, None
        values = critic.model(out.states, chunk)
        if critic.normalizer is not None:
            values = critic.normalizer.denormalize(values)
        return out.logprobs, values

    def _at_rest(self, chunk: Samples) -> Samples:
        """With its trunk where the recipe wants it while other chunks are worked on."""
        return chunk.trunk_on(torch.device("cpu")) if self.options.trunk == "host" else chunk

    def _kept(self, chunk: Samples) -> Samples:
        """With its trunk, or without one, while the rollout is learned from."""
        return chunk.without_trunk() if self.options.trunk == "drop" else chunk

    def experience(self, rollout: Rollout) -> Experience:
        """What is maximised, laid on the tokens that it is due to."""
        penalty = 0.0 if self.options.kl.place == "loss" else self.parts.beta.coefficient
        return experience_of(rollout, self.options.end, self.parts.normalizers, penalty)

    @timed("credit")
    def credit(self, experience: Experience) -> Advantages:
        """Advantages, normalised, and returns [B, R]."""
        name = self.options.advantage.component.name
        found = estimated(self.parts.advantage, experience, name)
        normalizer = self.parts.normalizers.advantages
        return Advantages(normalised(normalizer, found.advantages, experience.mask), found.returns)

    @timed("update")
    def update(
        self, rollout: Rollout, targets: Advantages, generator: torch.Generator
    ) -> list[dict[str, float]]:
        """``inner_epochs`` passes over the rollout, one optimizer step per minibatch."""
        o, batch = self.options, self.batch(rollout, targets)
        group = rollout.group if self.parts.whole_groups else None
        order = minibatches(len(rollout.samples), o.minibatch, o.inner_epochs, generator, group)
        return [self.learn(batch.select(rows)) for rows in order]

    def batch(self, rollout: Rollout, targets: Advantages) -> PPOBatch:
        """What the updates read; values and returns in the units that the critic learns."""
        values, returns = rollout.values, targets.returns
        places = places_of(rollout.mask, self.options.end)
        critic = self.parts.critic
        if critic is not None and critic.normalizer is not None and values is not None:
            values = critic.normalizer.normalize(values)
            critic.normalizer.update(returns, places)
            returns = critic.normalizer.normalize(returns)
        return PPOBatch(
            rollout.samples,
            rollout.logprobs,
            rollout.reference_logprobs,
            values,
            targets.advantages,
            returns,
            places,
        )

    def learn(self, batch: PPOBatch) -> dict[str, float]:
        """One optimizer step on the losses of the policy, the critic and the pretraining text."""
        parts, o = self.parts, self.options
        group = batch.samples.group if parts.whole_groups else None
        micro = by_length(batch.samples.token_mask.sum(1), o.micro_batch, group)
        chunks = [batch.select(rows) for rows in micro]
        with parts.engine.step(parts.optimizer, self._watched) as step:
            step.add(self.terms(), self.inputs, chunks, "ppo")
            if parts.ptx is not None:
                texts = parts.ptx.texts.next(len(batch))
                step.add(self.text_terms(parts.ptx), self.text_inputs, texts, "ptx")
        if parts.ema is not None:
            parts.ema.update()
        trim_heap()
        return step.stats

    def terms(self) -> dict[str, Term]:
        """The losses of a rollout: the policy's, the KL where it is one, the critic's."""
        parts, kl = self.parts, self.options.kl
        terms = {"policy": Term(parts.policy_loss, lambda batch: batch.sampled)}
        if kl.place == "loss" and parts.beta.coefficient > 0:
            terms["kl"] = Term(KLLoss(kl), lambda batch: batch.chosen, parts.beta.coefficient)
        if parts.critic is not None:
            critic = parts.critic
            terms["value"] = Term(critic.loss, lambda batch: batch.valued, critic.coef)
        return terms

    def inputs(self, batch: PPOBatch) -> dict[str, PolicyLossInputs | ValueLossInputs]:
        """What they read, by one pass through the policy."""
        samples = self.parts.policy.encode(batch.samples)  # once for the critic too
        out, drawn = self.parts.policy.evaluate(samples), samples.sampled_logprobs
        policy = PolicyLossInputs(
            out.logprobs,
            batch.logprobs,
            batch.advantages,
            batch.mask,
            batch.reference_logprobs,
            batch.logprobs if drawn is None else drawn,
            samples.group,
        )
        found: dict[str, PolicyLossInputs | ValueLossInputs] = {"policy": policy, "kl": policy}
        if self.parts.critic is not None and batch.values is not None:
            values = self.parts.critic.model(out.states, samples)
            found["value"] = ValueLossInputs(values, batch.values, batch.returns, batch.places)
        return found

    def text_terms(self, ptx: PtxPart) -> dict[str, Term]:
        """The second half of equation 2."""
        return {"ptx": Term(ptx.loss, lambda texts: texts.targets, ptx.gamma.coefficient)}

    def text_inputs(self, texts: TextBatch) -> dict[str, NllInputs]:
        logprobs = self.parts.policy.next_token_logprobs(texts)
        return {"ptx": NllInputs(logprobs, texts.predicted.to(logprobs.device))}
