"""What PPO-ptx is made of, and the small rules about scores that are options."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.interfaces import (
    AdvantageEstimator,
    Engine,
    InvertibleNormalizer,
    KLController,
    Loss,
    Normalizer,
    Optimizer,
    Policy,
    PtxController,
    RewardFn,
    Stateful,
    ValueHead,
)
from rlhf_kit.stagekit.streams import PromptStream, TextStream
from rlhf_kit.types import NllInputs, PolicyLossInputs, Rollout, Texts, ValueLossInputs
from rlhf_kit_policy_gradient.control import KLLimit
from rlhf_kit_policy_gradient.options import PPOPtxOptions


@dataclass(frozen=True)
class PPOParts:
    """Each part is an interface, or None where the recipe has none."""

    policy: Policy
    value: ValueHead | None  # None where the estimator needs no values
    reward: RewardFn
    advantage: AdvantageEstimator
    kl: KLController
    ptx: PtxController
    limit: KLLimit
    policy_loss: Loss[PolicyLossInputs]
    value_loss: Loss[ValueLossInputs]
    ptx_loss: Loss[NllInputs]
    engine: Engine
    optimizer: Optimizer
    prompts: PromptStream
    pretraining: TextStream | None = None
    held_out: Texts | None = None  # text on which the controller of gamma watches perplexity
    score_normalizer: Normalizer | None = None
    reward_normalizer: Normalizer | None = None
    advantage_normalizer: Normalizer | None = None
    value_normalizer: InvertibleNormalizer | None = None
    ema: WeightAverage | None = None

    def state(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; a reward or an estimator may have state too."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}


def normalised(normalizer: Normalizer | None, x: Tensor, mask: Tensor) -> Tensor:
    """``x``, scaled if there is a normaliser."""
    return x if normalizer is None else normalizer(x, mask)


def shaped_scores(
    rollout: Rollout, options: PPOPtxOptions, normalizer: Normalizer | None
) -> Tensor:
    """Scores [B]: a response that never ended is treated as the recipe says, then normalised."""
    scores, finished, value = rollout.scores, rollout.samples.finished, options.missing_eos_value
    if options.missing_eos == "replace":
        scores = torch.where(finished, scores, -value)
    if options.missing_eos == "subtract":
        scores = torch.where(finished, scores, scores - value)
    return normalised(normalizer, scores, torch.ones_like(finished))
