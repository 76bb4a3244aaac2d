"""KTO: Kahneman-Tversky optimization, arXiv:2402.01306."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import Context, Policy, Reference, StageRun
from rlhf_kit.stagekit import (
    Labelled,
    ParameterGroup,
    Passes,
    Term,
    read_labelled,
    response_logprobs,
)
from rlhf_kit.types import LabelledInputs, LossOutput, Masked
from rlhf_kit_guests.options import KTOOptions, KTOStageOptions


class KTO:
    """``lambda (1 - v)``, equation 8: v = sigmoid(beta (r - z)) of desirable answers, else of -.

    r is ``log pi / pi_ref`` of an answer. z, the KL, is its mean over mismatched answers of the
    whole optimizer step, at least 0, and carries no gradient.
    """

    def __init__(self, options: KTOOptions) -> None:
        self._options = options

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def observe(self, inputs: LabelledInputs) -> Mapping[str, Tensor]:
        assert inputs.mismatched is not None and inputs.reference_mismatched is not None
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
        self._source, self._loss = context.build(options.comparisons), context.build(options.loss)
        self._answers: dict[str, Labelled] = {}
        if self._source.ready:
            self._read()

    def _read(self) -> None:
        for name in ("train", "validation"):
            rows = self._source.split(name)
            self._answers[name] = read_labelled(rows, self._context.tokenizer)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, engine, memory = self._options, self._context.engine, self._context.memory()
        if not self._answers:
            self._read()
        start, train = self._context.artifact(o.start), self._answers["train"]
        policy, reference = memory.policy(start), memory.reference(start)
        passes = Passes(run, len(train), o.batch_size, o.epochs)
        group = ParameterGroup(list(policy.parameters()), o.optimizer.learning_rate)
        optimizer = engine.optimizer([group], o.optimizer, passes.total)
        term = Term(self._loss, lambda rows: Masked(torch.ones(len(rows), dtype=torch.bool)))
        gap: dict[str, float] = {}
        for batch in passes.batches({"policy": policy, "optimizer": optimizer}):
            with engine.step(optimizer) as step:
                step.add(
                    {"kto": term},
                    lambda rows: {"kto": _inputs(policy, reference, train, rows)},
                    batch.rows.split(o.micro_batch),
                )
            metrics, line = dict(step.stats), f"step {batch.step + 1}/{passes.total}"
            if batch.ends_pass:
                gap = self._judge(policy, reference)
                metrics |= {f"validation/{name}": value for name, value in gap.items()}
                line += f"  held-out gap {gap['gap']:.3f}"
            run.end_step(batch.step, metrics, f"{line}  loss {metrics['kto/loss']:.3f}")
        policy.save(run.folder)
        return {"preference": gap}

    @torch.no_grad()
    def _judge(self, policy: Policy, reference: Reference) -> dict[str, float]:
        """In nats: what desirable answers of the validation split gained more than the others."""
        held_out = self._answers["validation"]
        gains = [
            response_logprobs(policy, texts) - response_logprobs(reference, texts)
            for texts in held_out.texts.split(self._options.micro_batch)
        ]
        gain, desirable = torch.cat(gains), held_out.desirable
        return {"gap": (gain[desirable].mean() - gain[~desirable].mean()).item()}


def _inputs(policy: Policy, reference: Reference, data: Labelled, rows: Tensor) -> LabelledInputs:
    texts, others = data.texts.select(rows), data.mismatched.select(rows)
    with torch.no_grad():
        fixed = [response_logprobs(reference, each) for each in (texts, others)]
        mismatched = response_logprobs(policy, others)
    exists = torch.ones(len(rows), dtype=torch.bool)
    lengths, logprobs = texts.predicted.sum(1), response_logprobs(policy, texts)
    return LabelledInputs(
        logprobs, fixed[0], data.desirable[rows], lengths, exists, mismatched, fixed[1]
    )
