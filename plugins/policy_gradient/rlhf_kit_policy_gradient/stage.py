"""Stage `ppo_ptx`: checks, then builds what the algorithm is made of, and saves what it made."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch

from rlhf_kit import Part
from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.engine.foreign import foreign
from rlhf_kit.engine.optim import constant
from rlhf_kit.engine.scoring import load_models, try_out
from rlhf_kit.engine.seeding import GeneratorState
from rlhf_kit.engine.world import world_mean
from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import (
    Context,
    InvertibleNormalizer,
    Normalizer,
    ParameterGroup,
    Policy,
    Reference,
    StageRun,
)
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.origins import Whose
from rlhf_kit.stagekit.batches import held_out_blocks, text_blocks
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import drawn, sampling_of
from rlhf_kit.stagekit.state import stateful
from rlhf_kit.stagekit.streams import PromptStream, TextStream
from rlhf_kit.types import Texts
from rlhf_kit_policy_gradient.control import KLLimit
from rlhf_kit_policy_gradient.experience import TOKENS_SCALED, Normalizers
from rlhf_kit_policy_gradient.gate import Setup, check_setup
from rlhf_kit_policy_gradient.options import CriticOptions, PPOPtxOptions, PtxOptions
from rlhf_kit_policy_gradient.parts import CriticPart, PPOParts, PtxPart
from rlhf_kit_policy_gradient.ppo import PPOPtx
from rlhf_kit_policy_gradient.report import reward_counts
from rlhf_kit_policy_gradient.steering import Beta, Gamma

GATE_PROMPTS = 8


class PPOPtxStage:
    def __init__(self, options: PPOPtxOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._prompts = PromptSet.to_answer(
            context.build(options.prompts), "train", options, context.tokenizer, self._left_out
        )
        self._sampler = context.build(options.sampling.sampler)
        self._reward = context.build(options.reward)
        tried = try_out(self._reward, self._prompts.rows)
        scaled = options.normalize.scores
        if scaled is not None and tried is not None and tried.tokens is not None:
            raise RecipeError(f"{scaled.where}: {scaled.key}: {TOKENS_SCALED}")
        self._advantage = context.build(options.advantage)
        self._policy_loss = context.build(options.policy_loss)
        self._whole_groups = "whole_groups" in options.policy_loss.component.needs
        self._kl_controller = context.build(options.kl.controller)
        needs, normalize = options.advantage.component.needs, options.normalize
        own = "own_normalization" in needs
        self._normalizers = Normalizers(
            self._normalizer(normalize.scores),
            self._normalizer(normalize.rewards),
            None if own else self._normalizer(normalize.advantages),
        )
        self._critic = self._critic_part(options.critic) if "values" in needs else None
        self._mix = None if options.ptx is None else Mix(options.ptx, context, self._left_out)

    def _normalizer(self, block: Part | None) -> Normalizer | None:
        found: Normalizer | None = None if block is None else self._context.build(block)
        return found

    def _critic_part(self, options: CriticOptions) -> CriticPart:
        build, block = self._context.build, options.normalizer
        normalizer = self._normalizer(block)
        if block is not None and not isinstance(normalizer, InvertibleNormalizer):
            raise RecipeError(
                f"{block.where}: {block.key}: values must be scaled back, which "
                f"{block.component.name!r} cannot; use running"
            )
        assert normalizer is None or isinstance(normalizer, InvertibleNormalizer)
        return CriticPart(build(options.value), build(options.loss), options.coef, normalizer)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, context = self._options, self._context
        self._left_out.tell(run)
        memory = context.memory()
        load_models(self._reward, memory)
        if self._critic is not None:
            load_models(self._critic.model, memory)
        start = context.artifact(o.start)
        origin = start if o.reference is None else context.artifact(o.reference)
        policy, reference = memory.policy(start), memory.reference(origin)
        if self._critic is not None:
            with foreign(Whose(self._critic.model, "critic", "attach")):
                self._critic.model.attach(policy)
        if o.gate.check and not run.resumed:
            self._check(run, policy, reference, same_reference=origin == start)
        parts = self._parts(run, policy, reference)
        algorithm = PPOPtx(parts, o)
        steps = algorithm.run(run)
        summary: dict[str, Any] = {"steps": steps, "kl_coef": parts.beta.coefficient}
        summary |= self._left_out.summary()
        if o.kl.limit is not None:
            summary |= {"stopped": steps < o.steps, "rollbacks": parts.beta.limit.rollbacks}
        if parts.ema is not None:
            summary["average"] = self._both(algorithm, run, parts.ema)
            policy.save(run.folder / "last")
            with parts.ema.applied():
                policy.save(run.folder)
        else:
            policy.save(run.folder)
        if parts.critic is not None:
            with foreign(Whose(parts.critic.model, "critic", "save")):
                parts.critic.model.save(run.folder)
        return summary

    def _parts(self, run: StageRun, policy: Policy, reference: Reference) -> PPOParts:
        o, engine, critic = self._options, self._context.engine, self._critic
        parameters = list(policy.parameters())
        groups = [ParameterGroup(parameters, o.optimizer.learning_rate)]
        if critic is not None:
            # Fixed from the first step on: the warm-up of the paper is the policy's.
            rate = o.critic.learning_rate
            groups.append(ParameterGroup(list(critic.model.parameters()), rate, constant()))
        # What travels together is counted together.
        together = o.samples_per_prompt if self._whole_groups else 1
        each = math.ceil(o.rollout_batch / together / (o.minibatch // together))
        steps = o.steps * o.inner_epochs * each
        optimizer = engine.optimizer(groups, o.optimizer, steps)
        ema = None if o.ema is None else WeightAverage(parameters, optimizer, o.ema)
        return PPOParts(
            engine=engine,
            policy=policy,
            reference=reference,
            sampler=self._sampler,
            prompts=PromptStream(
                self._prompts, o.rollout_batch, run.generator, o.samples_per_prompt
            ),
            endings=Endings(run),
            reward=self._reward,
            advantage=self._advantage,
            policy_loss=self._policy_loss,
            optimizer=optimizer,
            beta=Beta(o.kl.coef, self._kl_controller, KLLimit(o.kl), engine.world),
            normalizers=self._normalizers,
            critic=critic,
            ptx=None if self._mix is None else self._mix.part(run),
            ema=ema,
            whole_groups=self._whole_groups,
            groups_compared=self._whole_groups or "groups" in o.advantage.component.needs,
        )

    def _check(
        self, run: StageRun, policy: Policy, reference: Reference, *, same_reference: bool
    ) -> None:
        """The gate; puts back all randomness and what it has asked, so that it changes nothing."""
        o = self._options
        # No more rows at once than training puts through the model.
        few = max(2, min(GATE_PROMPTS, o.micro_batch, len(self._prompts)))
        prompts = self._prompts.batch(torch.arange(few) % len(self._prompts))
        # A prompt that comes twice is answered in two ways.
        prompts = replace(prompts, stream=torch.arange(few))
        generators = GeneratorState(run.generator)
        touched = stateful(generators=generators, reward=self._reward, sampler=self._sampler)
        before = copy.deepcopy({name: part.state_dict() for name, part in touched.items()})
        setup = Setup(
            policy,
            reference,
            None if self._critic is None else self._critic.model,
            self._reward,
            self._context.tokenizer,
            drawn(self._sampler, policy, prompts, sampling_of(o.sampling, run.key("gate"))),
            same_reference,
            o.micro_batch,
        )
        found = check_setup(setup, list(o.gate.skip))
        for name, part in touched.items():
            part.load_state_dict(before[name])
        write_json(run.folder / "gate.json", {f.name: [f.measured, f.allowed] for f in found})
        run.say("gate  " + "  ".join(map(str, found)))

    def _both(self, algorithm: PPOPtx, run: StageRun, ema: WeightAverage) -> dict[str, Any]:
        """Score and KL of the averaged weights and of the last ones, on the same prompts."""
        prompts, world = algorithm.parts.prompts.next(), self._context.world

        def measured() -> dict[str, float]:
            rollout = algorithm.score(algorithm.sample(prompts, run.key("average")))
            kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, rollout.mask)
            found = {"score": world_mean(world, rollout.scores), "kl": world_mean(world, kl)}
            return found | reward_counts(rollout, world)

        last = measured()
        with ema.applied():
            return {"averaged": measured(), "last": last}


class Mix:
    """The text of the pretraining mix, read before any model is loaded."""

    def __init__(self, options: PtxOptions, context: Context, left_out: LeftOut) -> None:
        self._options, tokenizer = options, context.tokenizer
        source, length = context.build(options.text), options.length
        self._loss = context.build(options.loss)
        self._controller = context.build(options.controller)
        self._blocks = text_blocks(source.split("train"), tokenizer, length, left_out, "train")
        self._held_out: Texts | None = None
        if self._controller.every:
            rows = source.split("validation")
            held_out = text_blocks(rows, tokenizer, length, left_out, "validation")
            self._held_out = held_out_blocks(held_out, left_out)

    def part(self, run: StageRun) -> PtxPart:
        o = self._options
        return PtxPart(
            TextStream(self._blocks, o.per_episode, o.micro_batch, run.generator),
            self._loss,
            Gamma(o.coef, self._controller, self._held_out),
        )
