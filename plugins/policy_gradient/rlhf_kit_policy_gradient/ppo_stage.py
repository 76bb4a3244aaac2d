"""Stage `ppo_ptx`: checks, then builds what the algorithm is made of, and saves what it made."""

from __future__ import annotations

import copy
from typing import Any

import torch

from rlhf_kit import Part
from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.clock import Clock
from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.engine.optim import ParameterGroup, constant
from rlhf_kit.engine.scoring import load_models, try_out
from rlhf_kit.engine.seeding import GeneratorState
from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import (
    Context,
    InvertibleNormalizer,
    Policy,
    StageRun,
    Stateful,
    ValueHead,
)
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.stagekit.batches import held_out_blocks, sampling_of, text_blocks
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.optimizer import build_optimizer
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.streams import PromptStream, TextStream
from rlhf_kit.types import Texts
from rlhf_kit_policy_gradient.control import KLLimit
from rlhf_kit_policy_gradient.gate import Setup, check_setup
from rlhf_kit_policy_gradient.options import PPOPtxOptions
from rlhf_kit_policy_gradient.ppo_parts import PPOParts
from rlhf_kit_policy_gradient.ppo_ptx import PPOPtx

GATE_PROMPTS = 8

_PARTS = ("advantage", "policy_loss", "value_loss", "ptx_loss")
_NORMALIZERS = (
    "score_normalizer",
    "reward_normalizer",
    "advantage_normalizer",
    "value_normalizer",
)


class PPOPtxStage:
    def __init__(self, options: PPOPtxOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._prompts = PromptSet.chosen(
            context.build(options.prompts).split("train"),
            context.tokenizer,
            "train",
            self._left_out,
            longest=options.max_prompt_tokens,
            room=options.sampling.max_new_tokens,
        )
        self._reward = context.build(options.reward)
        try_out(self._reward, self._prompts.rows)
        self._plain = {name: context.build(getattr(options, name)) for name in _PARTS}
        needs_values = "values" in options.advantage.component.needs
        self._value: ValueHead | None = context.build(options.value) if needs_values else None
        for name in _NORMALIZERS:
            block: Part | None = getattr(options, name)
            self._plain[name] = found = None if block is None else context.build(block)
            if block is None or name != "value_normalizer":
                continue
            if not isinstance(found, InvertibleNormalizer):
                raise RecipeError(
                    f"{block.where}: {block.key}: values must be scaled back, which "
                    f"{block.component.name!r} cannot; use running"
                )
        self._kl = context.build(options.kl_controller)
        self._kl.coefficient = options.kl_coef
        self._ptx = context.build(options.ptx_controller)
        self._ptx.coefficient = options.ptx_coef
        self._blocks, self._held_out = self._texts()

    def _texts(self) -> tuple[Texts | None, Texts | None]:
        o, tokenizer = self._options, self._context.tokenizer
        if o.pretraining is None:
            return None, None
        source = self._context.build(o.pretraining)
        left_out, length = self._left_out, o.ptx_length
        blocks = text_blocks(source.split("train"), tokenizer, length, left_out, "train")
        if not self._ptx.every:
            return blocks, None
        rows = source.split("validation")
        held_out = text_blocks(rows, tokenizer, length, left_out, "validation")
        return blocks, held_out_blocks(held_out, left_out)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, context = self._options, self._context
        self._left_out.tell(run)
        memory = context.memory()
        load_models(self._reward, memory)
        load_models(self._value, memory)
        start = context.artifact(o.start)
        reference = start if o.reference is None else context.artifact(o.reference)
        policy = memory.policy(start, reference=reference)
        if self._value is not None:
            self._value.attach(policy)
        if o.gate and not run.resumed:
            self._check(run, policy, same_reference=reference == start)
        parts = self._parts(run, policy)
        algorithm = PPOPtx(parts, o)
        steps = algorithm.run(run)
        summary: dict[str, Any] = {"steps": steps, "kl_coef": self._kl.coefficient}
        if o.kl_limit is not None:
            summary |= {"stopped": steps < o.steps, "rollbacks": parts.limit.rollbacks}
        if parts.ema is not None:
            summary["average"] = self._both(algorithm, run)
            policy.save(run.folder / "last")
            with parts.ema.applied():
                policy.save(run.folder)
        else:
            policy.save(run.folder)
        if parts.value is not None:
            parts.value.save(run.folder)
        return summary

    def _parts(self, run: StageRun, policy: Policy) -> PPOParts:
        o, value = self._options, self._value
        parameters = list(policy.parameters())
        groups = [ParameterGroup(parameters, o.optimizer.learning_rate)]
        if value is not None:
            # Fixed from the first step on: the warm-up of the paper is the policy's.
            critic = ParameterGroup(list(value.parameters()), o.value_learning_rate, constant())
            groups.append(critic)
        steps = o.steps * o.inner_epochs * -(-o.rollout_batch // o.minibatch)
        optimizer = build_optimizer(groups, o.optimizer, steps)
        generator, pretraining = run.generator, None
        if self._blocks is not None:
            pretraining = TextStream(self._blocks, o.ptx_per_episode, o.ptx_micro_batch, generator)
        ema = None if o.ema is None else WeightAverage(parameters, optimizer, o.ema)
        taken_back = {"policy": policy, "value": value, "optimizer": optimizer, "ema": ema}
        taken_back |= {name: self._plain[name] for name in _NORMALIZERS}
        restored = {name: part for name, part in taken_back.items() if isinstance(part, Stateful)}
        return PPOParts(
            policy=policy,
            value=value,
            reward=self._reward,
            kl=self._kl,
            ptx=self._ptx,
            limit=KLLimit(o.kl_limit, o.on_kl_limit, o.rollback_factor, restored),
            optimizer=optimizer,
            prompts=PromptStream(self._prompts, o.rollout_batch, generator, o.samples_per_prompt),
            pretraining=pretraining,
            held_out=self._held_out,
            ema=ema,
            **self._plain,
        )

    def _check(self, run: StageRun, policy: Policy, *, same_reference: bool) -> None:
        """The gate; puts all randomness and the reward's state back, so that it changes nothing."""
        o, tokenizer = self._options, self._context.tokenizer
        # No more rows at once than training puts through the model.
        prompts = next(self._prompts.split(min(GATE_PROMPTS, max(2, o.micro_batch))))
        sampling = sampling_of(o.sampling, torch.Generator().manual_seed(0))
        touched: dict[str, Stateful] = {"generators": GeneratorState(run.generator)}
        if isinstance(self._reward, Stateful):
            touched["reward"] = self._reward
        before = copy.deepcopy({name: part.state_dict() for name, part in touched.items()})
        setup = Setup(
            policy,
            self._value,
            self._reward,
            tokenizer,
            policy.generate(prompts, sampling),
            same_reference,
            o.micro_batch,
        )
        found = check_setup(setup, list(o.gate_skip))
        for name, part in touched.items():
            part.load_state_dict(before[name])
        write_json(run.folder / "gate.json", {f.name: [f.measured, f.allowed] for f in found})
        run.say("gate  " + "  ".join(f"{f.name} {f.measured:.2g}" for f in found))

    def _both(self, algorithm: PPOPtx, run: StageRun) -> dict[str, Any]:
        """Score and KL of the averaged weights and of the last ones, on the same prompts."""
        ema, prompts = algorithm.parts.ema, algorithm.parts.prompts.next()
        assert ema is not None
        seed = int(torch.randint(2**62, (), generator=run.generator))

        def measured() -> dict[str, float]:
            sampling = sampling_of(self._options.sampling, torch.Generator().manual_seed(seed))
            rollout = algorithm.collect(prompts, sampling, Clock())
            kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, rollout.mask)
            return {"score": rollout.scores.mean().item(), "kl": kl.mean().item()}

        last = measured()
        with ema.applied():
            return {"averaged": measured(), "last": last}
