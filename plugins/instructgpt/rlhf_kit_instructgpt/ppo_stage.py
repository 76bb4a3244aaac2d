"""Stage `ppo_ptx`: checks, then builds what the algorithm is made of, and saves what it made."""

from __future__ import annotations

from typing import Any

from rlhf_kit.engine.optim import ParameterGroup
from rlhf_kit.engine.scoring import load_models, probe
from rlhf_kit.interfaces import Context, StageRun
from rlhf_kit_instructgpt.batches import check_prompts, text_blocks
from rlhf_kit_instructgpt.optimizer import build_optimizer
from rlhf_kit_instructgpt.options import PPOPtxOptions
from rlhf_kit_instructgpt.ppo_ptx import PPOParts, PPOPtx
from rlhf_kit_instructgpt.streams import PromptStream, TextStream


class PPOPtxStage:
    def __init__(self, options: PPOPtxOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._rows = context.build(options.prompts).split("train")
        check_prompts(self._rows, context.tokenizer, options.sampling.max_new_tokens)
        self._blocks = None
        if options.pretraining is not None and options.ptx_coef > 0:
            text = context.build(options.pretraining).split("train")
            self._blocks = text_blocks(text, context.tokenizer, options.ptx_length)
        self._reward = context.build(options.reward)
        probe(self._reward, self._rows)
        self._plain = {
            name: context.build(getattr(options, name))
            for name in ("advantage", "value", "policy_loss", "value_loss", "ptx_loss")
        }
        self._kl = context.build(options.kl_controller)
        self._kl.coefficient = options.kl_coef

    def run(self, run: StageRun) -> dict[str, Any]:
        o, context = self._options, self._context
        memory = context.memory()
        load_models(self._reward, memory)
        start = context.artifact(o.start)
        reference = start if o.reference is None else context.artifact(o.reference)
        policy = memory.policy(start, reference=reference)
        self._plain["value"].attach(policy)
        groups = [
            ParameterGroup(list(policy.parameters()), o.optimizer.learning_rate),
            ParameterGroup(list(self._plain["value"].parameters()), o.value_learning_rate),
        ]
        steps = o.steps * o.inner_epochs * -(-o.rollout_batch // o.minibatch)
        generator, pretraining = run.generator, None
        if self._blocks is not None:
            pretraining = TextStream(self._blocks, o.ptx_per_episode, o.ptx_micro_batch, generator)
        parts = PPOParts(
            policy=policy,
            reward=self._reward,
            kl=self._kl,
            optimizer=build_optimizer(groups, o.optimizer, steps),
            prompts=PromptStream(
                self._rows, o.rollout_batch, context.tokenizer, generator, o.samples_per_prompt
            ),
            pretraining=pretraining,
            **self._plain,
        )
        PPOPtx(parts, o).run(run)
        policy.save(run.folder)
        parts.value.save(run.folder)
        return {"steps": o.steps, "kl_coef": self._kl.coefficient}
