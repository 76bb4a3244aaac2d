"""DPO: direct preference optimization, arXiv:2305.18290."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.interfaces import Context, Policy, Reference, StageRun
from rlhf_kit.stagekit import (
    Pairs,
    ParameterGroup,
    Passes,
    Term,
    by_length,
    read_pairs,
    response_logprobs,
)
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
        self._pairs: dict[str, Pairs] = {}
        if self._source.ready:
            self._read()

    def _read(self) -> None:
        for split in ("train", "validation"):
            self._pairs[split] = read_pairs(self._source.split(split), self._context.tokenizer)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, engine, memory = self._options, self._context.engine, self._context.memory()
        if not self._pairs:
            self._read()
        start, train = self._context.artifact(o.start), self._pairs["train"]
        policy, reference = memory.policy(start), memory.reference(start)
        passes = Passes(run, len(train), o.batch_size, o.epochs)
        group = ParameterGroup(list(policy.parameters()), o.optimizer.learning_rate)
        optimizer = engine.optimizer([group], o.optimizer, passes.total)
        term = Term(self._loss, lambda rows: Masked(torch.ones(len(rows), dtype=torch.bool)))
        held_out: dict[str, float] = {}
        for batch in passes.batches({"policy": policy, "optimizer": optimizer}):
            chunks = by_length(train.lengths[batch.rows], o.micro_batch)
            with engine.step(optimizer) as step:
                step.add(
                    {"dpo": term},
                    lambda rows: {"dpo": _inputs(policy, reference, train, rows)},
                    [batch.rows[chunk] for chunk in chunks],
                )
            metrics, line = dict(step.stats), f"step {batch.step + 1}/{passes.total}"
            if batch.ends_pass:
                held_out = self._judge(policy, reference)
                metrics |= {f"validation/{name}": value for name, value in held_out.items()}
                line += f"  held-out accuracy {held_out['accuracy']:.3f}"
            run.end_step(batch.step, metrics, f"{line}  loss {metrics['dpo/loss']:.3f}")
        policy.save(run.folder)
        return {"preference": held_out}

    @torch.no_grad()
    def _judge(self, policy: Policy, reference: Reference) -> dict[str, float]:
        """Per pair of the validation split: loss, and how often the better answer gained more."""
        pairs, sums = self._pairs["validation"], {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        for rows in by_length(pairs.lengths, self._options.micro_batch):
            output = self._loss(_inputs(policy, reference, pairs, rows))
            for name, value in {"loss": output.total, **output.stats}.items():
                sums[name] += value.item() / len(pairs)
        return sums


def _inputs(policy: Policy, reference: Reference, pairs: Pairs, rows: Tensor) -> PairInputs:
    chosen, rejected = pairs.chosen.select(rows), pairs.rejected.select(rows)
    with torch.no_grad():
        fixed = [response_logprobs(reference, texts) for texts in (chosen, rejected)]
    return PairInputs(
        response_logprobs(policy, chosen),
        response_logprobs(policy, rejected),
        *fixed,
        chosen.predicted.sum(1),
        rejected.predicted.sum(1),
        torch.ones(len(rows), dtype=torch.bool),
    )
