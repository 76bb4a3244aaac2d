"""DPO: direct preference optimization, arXiv:2305.18290."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.interfaces import Context, Policy, Reference, StageRun
from rlhf_kit.stagekit import Pairs, Term, every_row, fit, pair_inputs, read_pairs
from rlhf_kit.types import LossOutput, Masked, PairInputs
from rlhf_kit_guests.options import DPOOptions, DPOStageOptions


class DPO:
    """``-log sigmoid(beta (log pi_w / ref_w - log pi_l / ref_l))``, equation 7."""

    def __init__(self, options: DPOOptions) -> None:
        self._beta = options.beta

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: PairInputs) -> LossOutput:
        better = inputs.chosen - inputs.reference_chosen
        worse = inputs.rejected - inputs.reference_rejected
        margin = torch.where(inputs.mask, self._beta * (better - worse), 0.0)  # [B]
        loss = torch.where(inputs.mask, -logsigmoid(margin), 0.0).sum()
        return LossOutput(loss, {"margin": margin.sum(), "accuracy": (margin > 0).float().sum()})


class DPOStage:
    """Every pair of ranked completions; the reference is where the policy starts."""

    def __init__(self, options: DPOStageOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._source, self._loss = context.build(options.comparisons), context.build(options.loss)

    def _pairs(self, split: str) -> Pairs:
        return read_pairs(self._source.split(split), self._context.tokenizer)

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
        """Per pair: the loss, and how often the better answer has gained more."""
        sums = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        for rows in pairs.split(self._options.micro_batch):
            output = self._loss(pair_inputs(policy, reference, pairs, rows))
            for name, value in {"loss": output.total, **output.stats}.items():
                sums[name] += value.item() / len(pairs)
        return sums
