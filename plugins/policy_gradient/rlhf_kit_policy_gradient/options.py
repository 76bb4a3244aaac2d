"""Options of the on-policy loop and its parts, with the source of each default. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_kit import (
    Execution,
    Observation,
    OptimizerOptions,
    Options,
    Part,
    PromptOptions,
    StageRef,
    block,
    slot,
    stage_ref,
)

MOST_TOGETHER = 2**20
"""Episodes of a rollout, or texts of a minibatch: more would be drawn for hours before a step."""

GateCheck = Literal[
    "reference", "sampled", "ratio", "reward", "padding", "end", "tokenizers", "repeatable"
]


class KLOptions(Options):
    """The price of leaving the reference (arXiv:2203.02155, equation 2), and a bound on it."""

    coef: float = Field(
        0.02, ge=0, description="beta, the coefficient to begin with; 0.02 in the paper"
    )
    place: Literal["reward", "loss"] = Field(
        "reward",
        description="reward: the sampled log-ratio is taken off each token's reward, whose policy "
        "gradient is exact; loss: an estimate of the KL is added to the policy's loss, as GRPO "
        "does (arXiv:2402.03300, equation 3; here a mean over tokens, there over answers first), "
        "which leaves out what a token does to the KL of those after it",
    )
    estimate: Literal["k2", "k3"] = Field(
        "k3",
        description="which estimate of each token's KL is added to the loss "
        "(http://joschu.net/blog/kl-approx.html): k3 in GRPO, whose gradient is that of "
        "KL(reference || policy); that of k2 is that of KL(policy || reference)",
    )
    controller: Part = slot(
        "kl_controller", use="fixed", description="what becomes of beta; fixed in the paper"
    )
    limit: float | None = Field(
        None, gt=0, description="nats per response that must not be passed; null: no bound"
    )
    on_limit: Literal["stop", "rollback"] = Field(
        "stop",
        description="stop: end the training there, with the policy as it is, one update past the "
        "bound; rollback: back to the last weights within the bound, and on with a larger coef",
    )
    rollback_factor: float = Field(
        2.0, gt=1, description="coef is multiplied by this on each rollback"
    )

    def idle(self) -> Mapping[str, str]:
        unread: dict[str, str] = {}
        if self.place != "loss":
            unread["estimate"] = 'place is "reward"; set place: loss'
        if self.limit is None:
            unread |= dict.fromkeys(("on_limit", "rollback_factor"), "limit is null; set one")
        elif self.on_limit == "stop":
            unread["rollback_factor"] = 'on_limit is "stop"; set on_limit: rollback'
        return unread

    def problems(self) -> Mapping[str, str]:
        if self.coef > 0:
            return _out_of_bounds(self.coef, self.controller)
        controller = self.controller.component
        if "positive_coefficient" in controller.needs:
            return {
                "coef": f"is 0, and controller {controller.name!r} multiplies it; set one greater "
                "than 0, or another controller"
            }
        if self.limit is not None and self.on_limit == "rollback":
            return {
                "coef": "is 0, and on_limit: rollback multiplies it, so that the same rollout "
                "would be taken back for ever; set one greater than 0, or on_limit: stop"
            }
        return {}


class CriticOptions(Options):
    """The critic, where the estimator needs values."""

    value: Part = slot("value", use="linear", description="a head on the policy, or a model")
    loss: Part = slot("value_loss", use="clipped_value", description="what it learns by")
    coef: float = Field(
        0.1, ge=0, description="weight of its loss; 0.1 in openai/lm-human-preferences"
    )
    learning_rate: float = Field(
        9e-6, gt=0, description="fixed from the first step; 9e-6 in the paper"
    )
    normalizer: Part | None = slot(
        "normalizer",
        description="it learns returns scaled by this (arXiv:2103.01955); null: as they are",
    )


class NormalizeOptions(Options):
    """What is normalised on the way from scores to advantages, in this order."""

    scores: Part | None = slot(
        "normalizer", description="the scores [B], before any KL penalty; null: nothing"
    )
    rewards: Part | None = slot(
        "normalizer",
        description="the per-token rewards [B, R]; whiten with shift_mean false is "
        "openai/lm-human-preferences' reward whitening; null: nothing",
    )
    advantages: Part | None = slot(
        "normalizer",
        use="whiten",
        description="the advantages [B, R], after the returns are taken; whitening is "
        "openai/lm-human-preferences'; null: nothing",
    )


class PtxOptions(Options):
    """The pretraining mix (arXiv:2203.02155, equation 2)."""

    text: Part = slot("data", rows="text", description="running text")
    loss: Part = slot("nll_loss", use="token_nll", description="the loss on it")
    coef: float = Field(27.8, gt=0, description="gamma, the weight of the loss; 27.8 (app. C.4)")
    controller: Part = slot(
        "ptx_controller", use="fixed", description="what becomes of gamma; fixed in the paper"
    )
    per_episode: float = Field(
        8.0, gt=0, description="texts per episode; 8 in the paper (app. C.4)"
    )
    length: int = Field(256, ge=2, description="tokens of a text")
    micro_batch: Execution[int] = Field(4, ge=1, description="texts per forward pass")

    def problems(self) -> Mapping[str, str]:
        return _out_of_bounds(self.coef, self.controller)


def _out_of_bounds(coef: float, controller: Part) -> Mapping[str, str]:
    """A coefficient that its controller would move into its bounds at the first look."""
    o, least, most = controller.options, 0.0, math.inf
    if isinstance(o, AdaptiveKLOptions | AdaptivePtxOptions):
        least = o.least
    if isinstance(o, AdaptivePtxOptions):
        most = o.most
    if least <= coef <= most:
        return {}
    name, bound = ("least", least) if coef < least else ("most", most)
    far = "below" if coef < least else "above"
    return {"coef": f"is {coef}, {far} the controller's {name} {bound}; change one of them"}


class EndOptions(Options):
    """Where the score goes, and what a response without an end is worth."""

    missing: Literal["keep", "replace", "subtract"] = Field(
        "keep",
        description="score of a response without an end: keep it, replace it "
        "(openai/lm-human-preferences), or subtract from it (TRL)",
    )
    value: float = Field(1.0, ge=0, description="replace by minus this, or subtract it")
    score_at: Literal["last_token", "after_end"] = Field(
        "last_token",
        description="the place that receives the score: the last token of the response "
        "(openai/lm-human-preferences), or one after its end, as TRL and torchtune do",
    )

    def idle(self) -> Mapping[str, str]:
        if self.missing != "keep":
            return {}
        return {"value": 'missing is "keep"; set missing: replace or subtract'}


class GateOptions(Options):
    """The invariants of the setup, checked before the first update."""

    check: Observation[bool] = Field(True, description="check them")
    skip: Observation[list[GateCheck]] = Field([], description="checks to leave out")

    def idle(self) -> Mapping[str, str]:
        return {} if self.check else {"skip": "check is false; set check: true"}


class PPOPtxOptions(PromptOptions):
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
    reward: Part = slot("reward", description="what is maximised")
    advantage: Part = slot("advantage", use="gae", description="advantage estimator")
    policy_loss: Part = slot("policy_loss", use="ppo_clip", description="the policy's loss")
    kl: KLOptions = block(description="the KL to the reference")
    critic: CriticOptions = block(description="the critic, where the estimator needs values")
    ptx: PtxOptions | None = block(None, description="the pretraining mix; null: plain PPO")
    normalize: NormalizeOptions = block(description="what is normalised")
    end: EndOptions = block(description="what the end of a response decides")
    steps: int = Field(500, ge=1, description="rollouts; 256k episodes / 512 in the paper")
    rollout_batch: int = Field(
        512, ge=1, le=MOST_TOGETHER, description="episodes per rollout; 512 in the paper"
    )
    samples_per_prompt: int = Field(
        1, ge=1, description="responses per prompt in a rollout; rollout_batch counts responses"
    )
    minibatch: int = Field(64, ge=1, description="episodes per optimizer step; 64 in the paper")
    micro_batch: Execution[int] = Field(16, ge=1, description="episodes per forward pass")
    inner_epochs: int = Field(1, ge=1, description="passes over a rollout; 1 in the paper")
    trunk: Execution[Literal["keep", "host", "drop"]] = Field(
        "keep",
        description="a frozen trunk's activations, which sampling computes, while the rollout is "
        "learned from: keep them; keep them on the host, beside an accelerator; or drop them, and "
        "compute them again in the updates",
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
    gate: GateOptions = block(description="what must hold before the first update")
    optimizer: OptimizerOptions = block(
        {"learning_rate": 5e-6, "warmup_steps": 80},
        description="constant after a warm-up from a tenth over 10 rollouts (app. C.4): 80 "
        "optimizer steps at 512 / 64. The paper scans rates from 2.55e-6 to 2.55e-5 and does not "
        "say which it took",
    )

    def idle(self) -> Mapping[str, str]:
        estimator = self.advantage.component
        unread: dict[str, str] = {}
        if "values" not in estimator.needs:
            unread["critic"] = f"advantage {estimator.name!r} needs no values"
        if "own_normalization" in estimator.needs and self.normalize.advantages is not None:
            why = f"advantage {estimator.name!r} normalises its advantages itself"
            unread["normalize.advantages"] = why
        if "scores" in estimator.needs:
            why = f"advantage {estimator.name!r} reads scores, and no rewards of tokens"
            unread["normalize.rewards"] = why
            if "values" not in estimator.needs:
                unread["end.score_at"] = why
        return unread

    def problems(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        size, each = self.rollout_batch, self.samples_per_prompt
        if size % each:
            found["rollout_batch"] = (
                f"{size} responses cannot be divided by samples_per_prompt {each}"
            )
        if self.minibatch > size:
            found["minibatch"] = f"{self.minibatch} is larger than rollout_batch {size}"
        if "groups" in self.advantage.component.needs and each < 2:
            found["samples_per_prompt"] = (
                f"is {each}, and advantage {self.advantage.component.name!r} compares the "
                "responses to one prompt; set at least 2"
            )
        if (
            self.ptx is not None
            and (texts := self.ptx.per_episode * self.minibatch) > MOST_TOGETHER
        ):
            found["ptx.per_episode"] = (
                f"is {self.ptx.per_episode:g}, which with minibatch {self.minibatch} is {texts:g} "
                f"texts per optimizer step; should be at most {MOST_TOGETHER}"
            )
        found |= self._unread_kl()
        if "whole_groups" in self.policy_loss.component.needs:
            who = f"policy_loss {self.policy_loss.component.name!r}"
            if self.minibatch % each:
                found["minibatch"] = (
                    f"{self.minibatch} responses cannot be divided by samples_per_prompt {each}, "
                    f"and {who} needs all responses to a prompt together"
                )
            if self.micro_batch < each:
                found["micro_batch"] = (
                    f"{who} needs all {each} responses to a prompt together; set at least so many"
                )
        return found

    def _unread_kl(self) -> dict[str, str]:
        """A KL coefficient that nothing would read, or that would be paid twice."""
        estimator, loss, kl = self.advantage.component, self.policy_loss.component, self.kl
        if kl.coef == 0:
            return {}
        if "own_kl" in loss.needs:
            return {
                "kl.coef": f"is {kl.coef}, and policy_loss {loss.name!r} has a KL of its own in "
                "it, which would be paid twice; set 0, and weigh it there"
            }
        if "scores" in estimator.needs and kl.place != "loss":
            return {
                "kl.coef": f"is {kl.coef}, and advantage {estimator.name!r} reads scores, in which "
                "there is no KL; set kl.place: loss, or 0"
            }
        return {}


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
