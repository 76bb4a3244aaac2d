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
from rlhf_kit.stagekit.state import stateful
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
        critic, ptx, normalizers = self.critic, self.ptx, self.normalizers
        found = stateful(
            policy=self.policy,
            prompts=self.prompts,
            sampler=self.sampler,
            reward=self.reward,
            advantage=self.advantage,
            policy_loss=self.policy_loss,
            optimizer=self.optimizer,
            beta=self.beta,
            score_normalizer=normalizers.scores,
            reward_normalizer=normalizers.rewards,
            advantage_normalizer=normalizers.advantages,
            ema=self.ema,
        )
        if critic is not None:
            found |= stateful(
                critic=critic.model, value_loss=critic.loss, value_normalizer=critic.normalizer
            )
        if ptx is not None:
            found |= stateful(texts=ptx.texts, ptx_loss=ptx.loss, gamma=ptx.gamma)
        return found
