"""Options of the on-policy loop and its parts, with the source of each default. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_kit import (
    Execution,
    Observation,
    OptimizerOptions,
    Options,
    Part,
    SamplingOptions,
    StageRef,
    block,
    slot,
    stage_ref,
)

GateCheck = Literal[
    "reference", "sampled", "ratio", "reward", "padding", "end", "tokenizers", "repeatable"
]


class PPOPtxOptions(Options):
    """PPO-ptx (arXiv:2203.02155, equation 2 and app. C.4)."""

    start: StageRef | None = stage_ref(
        "policy", loads_into="own", default=None, alias="from", description="policy to start from"
    )
    reference: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        description="frozen KL reference; null: the same as `from`",
    )
    prompts: Part = slot("data", use="prompts", description="the prompts to answer")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="drop longer prompts; 1k in the paper (app. C); null: keep all"
    )
    pretraining: Part | None = slot(
        "data", description="running text for the pretraining mix; null: plain PPO"
    )
    reward: Part = slot("reward", description="what is maximised")
    advantage: Part = slot("advantage", use="gae", description="advantage estimator")
    value: Part = slot("value", use="linear", description="the critic")
    policy_loss: Part = slot("policy_loss", use="ppo_clip", description="the policy's loss")
    value_loss: Part = slot("value_loss", use="clipped_value", description="the critic's loss")
    ptx_loss: Part = slot("nll_loss", use="token_nll", description="loss on pretraining text")
    score_normalizer: Part | None = slot(
        "normalizer", description="of the scores [B] before the KL penalty; null: none"
    )
    reward_normalizer: Part | None = slot(
        "normalizer",
        description="of the per-token rewards [B, R]; whiten with shift_mean false is "
        "openai/lm-human-preferences' reward whitening; null: none",
    )
    advantage_normalizer: Part | None = slot(
        "normalizer",
        use="whiten",
        description="of the advantages [B, R], after the returns are taken; whitening is "
        "openai/lm-human-preferences'; null: none",
    )
    value_normalizer: Part | None = slot(
        "normalizer",
        description="the critic learns returns scaled by it (arXiv:2103.01955); null: none",
    )
    kl_coef: float = Field(
        0.02, ge=0, description="beta, the KL coefficient to begin with; 0.02 in the paper"
    )
    kl_controller: Part = slot(
        "kl_controller", use="fixed", description="what becomes of beta; fixed in the paper"
    )
    kl_limit: float | None = Field(
        None, gt=0, description="nats per response that must not be passed; null: no bound"
    )
    on_kl_limit: Literal["stop", "rollback"] = Field(
        "stop",
        description="stop: end the training there, with the policy as it is, one update past the "
        "bound; rollback: back to the last weights within the bound, and on with a larger kl_coef",
    )
    rollback_factor: float = Field(
        2.0, gt=1, description="kl_coef is multiplied by this on each rollback"
    )
    steps: int = Field(500, ge=1, description="rollouts; 256k episodes / 512 in the paper")
    rollout_batch: int = Field(512, ge=1, description="episodes per rollout; 512 in the paper")
    samples_per_prompt: int = Field(
        1, ge=1, description="responses per prompt in a rollout; rollout_batch counts responses"
    )
    minibatch: int = Field(64, ge=1, description="episodes per optimizer step; 64 in the paper")
    micro_batch: Execution[int] = Field(16, ge=1, description="episodes per forward pass")
    inner_epochs: int = Field(1, ge=1, description="passes over a rollout; 1 in the paper")
    value_coef: float = Field(
        0.1, ge=0, description="weight of the value loss; 0.1 in openai/lm-human-preferences"
    )
    ptx_coef: float = Field(
        27.8, ge=0, description="gamma, weight of the ptx loss; 27.8 (app. C.4); 0: plain PPO"
    )
    ptx_controller: Part = slot(
        "ptx_controller", use="fixed", description="what becomes of gamma; fixed in the paper"
    )
    ptx_per_episode: float = Field(
        8.0, gt=0, description="pretraining texts per episode; 8 in the paper (app. C.4)"
    )
    ptx_length: int = Field(256, ge=2, description="tokens of a pretraining text")
    ptx_micro_batch: Execution[int] = Field(
        4, ge=1, description="pretraining texts per forward pass"
    )
    missing_eos: Literal["keep", "replace", "subtract"] = Field(
        "keep",
        description="score of a response without an end: keep it, replace it "
        "(openai/lm-human-preferences), or subtract from it (TRL)",
    )
    missing_eos_value: float = Field(1.0, ge=0, description="replace by minus this, or subtract it")
    score_at: Literal["last_token", "after_end"] = Field(
        "last_token",
        description="the place that receives the score: the last token of the response "
        "(openai/lm-human-preferences), or one after its end, as TRL and torchtune do",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the weights with this decay, and save it as the "
        "policy; 0.992 in the paper (app. C.4)",
    )
    gradient_norms: Observation[bool] = Field(
        True,
        description="log the norms of the PPO and ptx gradients and their ratio; costs one copy "
        "of the gradients",
    )
    gate: Observation[bool] = Field(
        True, description="check the invariants of the setup before the first update"
    )
    gate_skip: Observation[list[GateCheck]] = Field(
        [], description="checks of the gate to leave out"
    )
    sampling: SamplingOptions = block(description="how to sample")
    optimizer: OptimizerOptions = block(
        {"learning_rate": 5e-6, "warmup_steps": 80},
        description="constant after a warm-up from a tenth over 10 rollouts (app. C.4): 80 "
        "optimizer steps at 512 / 64. The paper scans rates from 2.55e-6 to 2.55e-5 and does not "
        "say which it took",
    )
    value_learning_rate: float = Field(
        9e-6, gt=0, description="of the critic, fixed from the first step; 9e-6 in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        unread: dict[str, str] = {}
        advantage = self.advantage.component
        if "own_normalization" in advantage.needs and self.advantage_normalizer is not None:
            why = f"advantage {advantage.name!r} normalises its advantages itself"
            unread["advantage_normalizer"] = why
        if "values" not in advantage.needs:
            keys = ["value", "value_loss", "value_coef", "value_learning_rate"]
            if self.value_normalizer is not None:  # null says the same again
                keys.append("value_normalizer")
            why = f"advantage {advantage.name!r} needs no values"
            unread |= dict.fromkeys(keys, why)
        if self.pretraining is None:
            keys = ["ptx_controller", "ptx_loss", "ptx_per_episode", "ptx_length"]
            keys.append("ptx_micro_batch")
            if self.ptx_coef != 0:  # 0 says the same again
                keys.append("ptx_coef")
            unread |= dict.fromkeys(keys, "pretraining is null; name the pretraining text")
        elif self.ptx_coef == 0:
            keys = ["pretraining", "ptx_controller", "ptx_loss", "ptx_per_episode", "ptx_length"]
            keys.append("ptx_micro_batch")
            unread |= dict.fromkeys(keys, "ptx_coef is 0; set a greater one")
        if self.missing_eos == "keep":
            why = 'missing_eos is "keep"; set missing_eos: replace or subtract'
            unread["missing_eos_value"] = why
        if self.kl_limit is None:
            unread |= dict.fromkeys(("on_kl_limit", "rollback_factor"), "kl_limit is null; set one")
        elif self.on_kl_limit == "stop":
            unread["rollback_factor"] = 'on_kl_limit is "stop"; set on_kl_limit: rollback'
        if not self.gate:
            unread["gate_skip"] = "gate is false; set gate: true"
        return unread

    def problems(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        stuck = self._stuck_at_zero()
        if stuck is not None:
            found["kl_coef"] = f"is 0, {stuck}"
        advantage = self.advantage.component
        if "groups" in advantage.needs and self.samples_per_prompt < 2:
            found["samples_per_prompt"] = (
                f"is {self.samples_per_prompt}, and advantage {advantage.name!r} compares the "
                "responses to one prompt; set at least 2"
            )
        if self.minibatch > self.rollout_batch:
            found["minibatch"] = (
                f"{self.minibatch} is larger than rollout_batch {self.rollout_batch}"
            )
        if self.rollout_batch % self.samples_per_prompt:
            found["rollout_batch"] = (
                f"{self.rollout_batch} responses cannot be divided by samples_per_prompt "
                f"{self.samples_per_prompt}"
            )
        return found

    def _stuck_at_zero(self) -> str | None:
        """Why beta cannot begin at 0, where it does."""
        if self.kl_coef > 0:
            return None
        if self.kl_limit is not None and self.on_kl_limit == "rollback":
            return (
                "and on_kl_limit: rollback multiplies it, so that the same rollout would be taken "
                "back for ever; set one greater than 0, or on_kl_limit: stop"
            )
        controller = self.kl_controller.component
        if "positive_coefficient" in controller.needs:
            return (
                f"and kl_controller {controller.name!r} multiplies it; set one greater than 0, or "
                "another kl_controller"
            )
        return None


class GAEOptions(Options):
    """Generalized advantage estimation, arXiv:1506.02438."""

    discount: float = Field(1.0, ge=0, le=1, description="gamma; the paper does not discount")
    lam: float = Field(0.95, ge=0, le=1, description="lambda; 0.95 in openai/lm-human-preferences")


class WhitenOptions(Options):
    """Unit variance over the valid places of one rollout."""

    shift_mean: bool = Field(True, description="False: keep the mean, as rewards should")
    unbiased: bool = Field(False, description="divide the variance by n - 1 (TRL) instead of n")


class RunningOptions(Options):
    """Scaled by statistics of all rollouts so far."""

    shift_mean: bool = Field(True, description="False: scale only, so that a zero stays a zero")
    clip: float | None = Field(
        None, gt=0, description="cut what is farther from 0 than so many deviations; null: nothing"
    )


class ClipOptions(Options):
    """A clip range."""

    clip_range: float = Field(0.2, gt=0, description="0.2 (arXiv:2203.02155, app. C.4)")


class LinearValueOptions(Options):
    """A linear head over the policy's states."""

    detach: bool = Field(
        False, description="True: the value loss trains the head only, not the policy's states"
    )


class FixedKLOptions(Options):
    """beta stays what it is."""


class AdaptiveKLOptions(Options):
    """Proportional control towards a target (arXiv:1909.08593, section 2.2)."""

    target: float = Field(6.0, gt=0, description="KL per response to hold, in nats")
    horizon: float = Field(10_000.0, gt=0, description="episodes over which beta changes by 20 %")
    least: float = Field(
        1e-6, gt=0, description="smallest beta; not in the paper: from 0 none would come back"
    )


class FixedPtxOptions(Options):
    """gamma stays what it is."""


class AdaptivePtxOptions(Options):
    """Hold the held-out perplexity within a budget."""

    budget: float = Field(
        0.05, gt=0, description="allowed rise of the perplexity over its start; 0.05: by 5 %"
    )
    every: int = Field(4, ge=1, description="rollouts between measurements")
    gain: float = Field(
        0.5, gt=0, description="a perplexity at the start of its budget divides gamma by e^gain"
    )
    least: float = Field(1e-3, gt=0, description="smallest gamma")
    most: float = Field(1e3, gt=0, description="largest gamma")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least {self.least} is more than most {self.most}; swap them")
        return self
