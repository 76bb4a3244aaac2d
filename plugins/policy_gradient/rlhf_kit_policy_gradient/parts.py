"""What PPO-ptx is made of: each part typed, and put in by name."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.interfaces import (
    AdvantageEstimator,
    Engine,
    InvertibleNormalizer,
    Loss,
    ObservingLoss,
    Optimizer,
    Policy,
    Reference,
    RewardFn,
    Sampler,
    Stateful,
    ValueHead,
)
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.streams import PromptStream, TextStream
from rlhf_kit.types import (
    Masked,
    NllInputs,
    PolicyLossInputs,
    SampledUnits,
    ValueLossInputs,
)
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.steering import Beta, Gamma


@dataclass(frozen=True)
class CriticPart:
    """The critic and how it learns; with a normaliser it learns normalised returns."""

    model: ValueHead
    loss: Loss[ValueLossInputs, Masked] | ObservingLoss[ValueLossInputs, Masked]
    coef: float
    normalizer: InvertibleNormalizer | None = None


@dataclass(frozen=True)
class PtxPart:
    """The pretraining mix."""

    texts: TextStream
    loss: Loss[NllInputs, Masked] | ObservingLoss[NllInputs, Masked]
    gamma: Gamma


@dataclass(frozen=True)
class PPOParts:
    """Each is an interface; None where the recipe has none."""

    engine: Engine
    policy: Policy
    reference: Reference
    sampler: Sampler
    prompts: PromptStream
    endings: Endings
    reward: RewardFn
    advantage: AdvantageEstimator
    policy_loss: (
        Loss[PolicyLossInputs, SampledUnits] | ObservingLoss[PolicyLossInputs, SampledUnits]
    )
    optimizer: Optimizer
    beta: Beta
    normalizers: Normalizers
    critic: CriticPart | None = None  # None where the estimator needs no values
    ptx: PtxPart | None = None
    ema: WeightAverage | None = None
    whole_groups: bool = False  # a micro-batch keeps the responses to a prompt together

    def state(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; a reward or an estimator may have state too."""
        named = {
            "policy": self.policy,
            "prompts": self.prompts,
            "reward": self.reward,
            "advantage": self.advantage,
            "optimizer": self.optimizer,
            "beta": self.beta,
            "score_normalizer": self.normalizers.scores,
            "reward_normalizer": self.normalizers.rewards,
            "advantage_normalizer": self.normalizers.advantages,
            "ema": self.ema,
        }
        if self.critic is not None:
            named |= {"critic": self.critic.model, "value_normalizer": self.critic.normalizer}
        if self.ptx is not None:
            named |= {"texts": self.ptx.texts, "gamma": self.ptx.gamma}
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}
