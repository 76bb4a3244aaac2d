"""Stage `sft`: supervised fine-tuning on the response tokens of demonstrations."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.engine.optim import ParameterGroup
from rlhf_kit.interfaces import Context, Loss, Policy, StageRun
from rlhf_kit.types import NllInputs, TextBatch
from rlhf_kit_instructgpt.batches import answered
from rlhf_kit_instructgpt.best import Best
from rlhf_kit_instructgpt.optimizer import build_optimizer
from rlhf_kit_instructgpt.options import SFTOptions


class SFT:
    """arXiv:2203.02155, section 3.5: the checkpoint with the best validation loss is kept."""

    def __init__(self, options: SFTOptions, context: Context) -> None:
        self._options, self._context = options, context
        source = context.build(options.demonstrations)
        self._train, self._validation = (
            answered([(r, r["response"], True) for r in source.split(name)], context.tokenizer)
            for name in ("train", "validation")
        )
        self._loss: Loss[NllInputs] = context.build(options.loss)

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        policy = self._context.memory().policy(self._context.artifact(o.start))
        per_epoch = math.ceil(len(self._train) / o.batch_size)
        total = per_epoch * o.epochs
        group = ParameterGroup(list(policy.parameters()), o.optimizer.learning_rate)
        optimizer = build_optimizer([group], o.optimizer, total)
        cycle, best = Cycle(len(self._train), o.batch_size, run.generator), Best(policy)
        best.offer(self.validation_loss(policy))
        state = {"policy": policy, "optimizer": optimizer, "cycle": cycle, "best": best}
        for step in run.steps(total, state):
            batch = self._train.select(cycle.next())
            with accumulating(optimizer) as update:
                update.add(
                    {"sft": Term(self._loss)},
                    lambda micro: {"sft": self._inputs(policy, micro)},
                    list(batch.split(o.micro_batch)),
                )
            metrics, line = dict(update.stats), f"step {step + 1}/{total}"
            line += f"  loss {metrics['sft/loss']:.3f}"
            if (step + 1) % per_epoch == 0:
                metrics["validation/loss"] = self.validation_loss(policy)
                best.offer(metrics["validation/loss"])
                line += f"  validation {metrics['validation/loss']:.3f}"
            run.end_step(step, metrics, line)
        best.restore()
        policy.save(run.folder)
        return {"validation_loss": {"start": best.first, "best": best.value}}

    @staticmethod
    def _inputs(policy: Policy, texts: TextBatch) -> NllInputs:
        logprobs = policy.next_token_logprobs(texts)
        return NllInputs(logprobs, texts.predicted.to(logprobs.device))

    @torch.no_grad()
    def validation_loss(self, policy: Policy) -> float:
        """Mean loss over the validation split, divided once, as in training."""
        total = count = 0.0
        for micro in self._validation.split(self._options.micro_batch):
            inputs = self._inputs(policy, micro)
            total += self._loss(inputs).total.item()
            count += self._loss.count(inputs).item()
        return total / max(count, 1.0)
