"""What PPO-ptx is made of: each part typed, and put in by name."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_kit.engine.ema import WeightAverage
from rlhf_kit.interfaces import (
    AdvantageEstimator,
    AnyLoss,
    Engine,
    InvertibleNormalizer,
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
    loss: AnyLoss[ValueLossInputs, Masked]
    coef: float
    normalizer: InvertibleNormalizer | None = None


@dataclass(frozen=True)
class PtxPart:
    """The pretraining mix."""

    texts: TextStream
    loss: AnyLoss[NllInputs, Masked]
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
    policy_loss: AnyLoss[PolicyLossInputs, SampledUnits]
    optimizer: Optimizer
    beta: Beta
    normalizers: Normalizers
    critic: CriticPart | None = None  # None where the estimator needs no values
    ptx: PtxPart | None = None
    ema: WeightAverage | None = None
    whole_groups: bool = False  # a micro-batch keeps the responses to a prompt together
    groups_compared: bool = False  # by the estimator or the loss: none may lack a member

    def learned(self) -> dict[str, Stateful]:
        """What a rollout that is learned from changes, and a rollback takes back."""
        critic, ptx, normalizers = self.critic, self.ptx, self.normalizers
        return stateful(
            policy=self.policy,
            optimizer=self.optimizer,
            ema=self.ema,
            advantage=self.advantage,
            policy_loss=self.policy_loss,
            score_normalizer=normalizers.scores,
            reward_normalizer=normalizers.rewards,
            advantage_normalizer=normalizers.advantages,
            critic=None if critic is None else critic.model,
            value_loss=None if critic is None else critic.loss,
            value_normalizer=None if critic is None else critic.normalizer,
            ptx_loss=None if ptx is None else ptx.loss,
        )

    def state(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; a reward or an estimator may have state too."""
        ptx = self.ptx
        return self.learned() | stateful(
            prompts=self.prompts,
            sampler=self.sampler,
            reward=self.reward,
            beta=self.beta,
            texts=None if ptx is None else ptx.texts,
            gamma=None if ptx is None else ptx.gamma,
        )
