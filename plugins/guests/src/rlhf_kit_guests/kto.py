"""KTO: Kahneman-Tversky optimization, arXiv:2402.01306."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import Context, Policy, Reference, StageRun
from rlhf_kit.stagekit import (
    Labelled,
    Term,
    by_split,
    every_row,
    fit,
    labelled_inputs,
    mismatched_inputs,
    read_labelled,
)
from rlhf_kit.types import LabelledInputs, LossOutput, Masked, MismatchedInputs
from rlhf_kit_guests.options import KTOOptions, KTOStageOptions


class KTO:
    """``lambda (1 - sigmoid(beta (r - z)))`` of desirable answers, equation 8; of others, z - r.

    r is ``log pi / pi_ref`` of an answer. z, the KL, is its mean over mismatched answers of the
    whole optimizer step, at least 0, and carries no gradient.
    """

    def __init__(self, options: KTOOptions) -> None:
        self._options = options

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def observe(self, inputs: MismatchedInputs) -> Mapping[str, Tensor]:
        gap = torch.where(inputs.mask, inputs.mismatched - inputs.reference_mismatched, 0.0)
        return {"gap": gap.sum(), "rows": inputs.mask.sum().float()}

    def __call__(self, inputs: LabelledInputs, observed: Mapping[str, Tensor]) -> LossOutput:
        o, mask = self._options, inputs.mask
        kl = (observed["gap"] / observed["rows"].clamp(min=1)).clamp(min=0)
        reward = torch.where(mask, inputs.logprobs - inputs.reference_logprobs, 0.0)  # [B]
        sign = torch.where(inputs.desirable, 1.0, -1.0)
        weight = torch.where(inputs.desirable, o.desirable, o.undesirable)
        loss = weight * (1.0 - torch.sigmoid(o.beta * sign * (reward - kl)))
        stats = {"gain": torch.where(mask, sign * reward, 0.0).sum(), "kl": kl * mask.sum()}
        return LossOutput(torch.where(mask, loss, 0.0).sum(), stats)


class KTOStage:
    """The best and the worst completions of each prompt; the reference is where it starts."""

    def __init__(self, options: KTOStageOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._loss, source = context.build(options.loss), context.build(options.comparisons)
        self._answers = by_split(source, lambda rows: read_labelled(rows, context.tokenizer))

    def run(self, run: StageRun) -> dict[str, Any]:
        context, o = self._context, self._options
        train, held_out = self._answers("train"), self._answers("validation")
        memory, start = context.memory(), context.artifact(o.start)
        policy, reference = memory.policy(start), memory.reference(start)
        term = Term(self._loss, every_row)
        if "mismatched" in o.loss.component.needs:
            term = replace(
                term, observed=lambda rows: mismatched_inputs(policy, reference, train, rows)
            )
        found = fit(
            run,
            context.engine,
            policy,
            o,
            train.lengths,
            {"kto": term},
            lambda rows: {"kto": labelled_inputs(policy, reference, train, rows)},
            lambda: self._judge(policy, reference, held_out),
            "gap",
        )
        policy.save(run.folder)
        return {"preference": found}

    @torch.no_grad()
    def _judge(self, policy: Policy, reference: Reference, data: Labelled) -> dict[str, float]:
        """In nats: what desirable answers have gained more than the others."""
        inputs = [
            labelled_inputs(policy, reference, data, rows)
            for rows in data.split(self._options.micro_batch)
        ]
        gain = torch.cat([x.logprobs - x.reference_logprobs for x in inputs])
        good = data.desirable
        return {"gap": (gain[good].mean() - gain[~good].mean()).item()}
