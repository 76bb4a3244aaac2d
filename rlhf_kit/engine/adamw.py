"""From optimizer options to AdamW."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_kit.engine.optim import Optimizer, constant, cosine
from rlhf_kit.interfaces import ParameterGroup
from rlhf_kit.stage_options import OptimizerOptions


def build_optimizer(
    groups: Sequence[ParameterGroup], options: OptimizerOptions, total_steps: int
) -> Optimizer:
    """``total_steps`` is where a cosine schedule ends."""
    schedule = (
        constant(options.warmup_steps)
        if options.schedule == "constant"
        else cosine(total_steps, options.final_fraction, options.warmup_steps)
    )
    return Optimizer(
        groups,
        schedule=schedule,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        max_gradient_norm=options.max_gradient_norm,
    )
