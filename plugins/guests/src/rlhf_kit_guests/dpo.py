"""DPO: direct preference optimization, arXiv:2305.18290."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.interfaces import Context, Policy, Reference, StageRun
from rlhf_kit.stagekit import Pairs, Term, by_split, every_row, fit, pair_inputs, read_pairs
from rlhf_kit.types import LossOutput, Masked, PairInputs
from rlhf_kit_guests.options import DPOOptions, DPOStageOptions


def gained(inputs: PairInputs) -> Tensor:
    """[B] nats by which the better answer has gained on the worse one; 0 outside the mask."""
    better = inputs.chosen - inputs.reference_chosen
    worse = inputs.rejected - inputs.reference_rejected
    return torch.where(inputs.mask, better - worse, 0.0)


def right(margin: Tensor) -> Tensor:
    """1 where the better answer is ahead, 0 where it is behind; equal counts half."""
    return (margin.sign() + 1) / 2


class DPO:
    """``-log sigmoid(beta (log pi_w / ref_w - log pi_l / ref_l))``, equation 7."""

    def __init__(self, options: DPOOptions) -> None:
        self._beta = options.beta

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: PairInputs) -> LossOutput:
        margin, mask = gained(inputs), inputs.mask  # [B]
        loss = torch.where(mask, -logsigmoid(self._beta * margin), 0.0).sum()
        accuracy = torch.where(mask, right(margin), 0.0).sum()
        return LossOutput(loss, {"margin": margin.sum(), "accuracy": accuracy})


class DPOStage:
    """Every pair of ranked completions; the reference is where the policy starts."""

    def __init__(self, options: DPOStageOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._loss, source = context.build(options.loss), context.build(options.comparisons)
        self._pairs = by_split(source, lambda rows: read_pairs(rows, context.tokenizer))

    def run(self, run: StageRun) -> dict[str, Any]:
        context, o = self._context, self._options
        train, held_out = self._pairs("train"), self._pairs("validation")
        memory, start = context.memory(), context.artifact(o.start)
        policy, reference = memory.policy(start), memory.reference(start)
        found = fit(
            run,
            context.engine,
            policy,
            o,
            train.lengths,
            {"dpo": Term(self._loss, every_row)},
            lambda rows: {"dpo": pair_inputs(policy, reference, train, rows)},
            lambda: self._judge(policy, reference, held_out),
            "accuracy",
        )
        policy.save(run.folder)
        return {"preference": found}

    @torch.no_grad()
    def _judge(self, policy: Policy, reference: Reference, pairs: Pairs) -> dict[str, float]:
        """How often the better answer has gained more, and by how many nats."""
        chunks = pairs.split(self._options.micro_batch)
        margin = torch.cat([gained(pair_inputs(policy, reference, pairs, c)) for c in chunks])
        return {"accuracy": right(margin).mean().item(), "margin": margin.mean().item()}
