"""Options of the InstructGPT components, with the source of each default. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_kit import Execution, Observation, Options, Part, StageRef, slot, slots, stage_ref

GateCheck = Literal[
    "reference", "sampled", "ratio", "reward", "padding", "end", "tokenizers", "repeatable"
]


class OptimizerOptions(Options):
    """AdamW. InstructGPT trains everything with betas 0.9 and 0.95 (arXiv:2203.02155, app. C)."""

    learning_rate: float = Field(gt=0, description="peak learning rate")
    schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up")
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="where the cosine ends, as a fraction of the peak (app. C)"
    )
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in optimizer steps")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the moments")
    eps: float = Field(1e-8, gt=0, description="added to the denominator; not in the paper")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_gradient_norm: float | None = Field(
        1.0, gt=0, description="clip the global norm; null: never. Not in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        if self.schedule == "cosine":
            return {}
        return {"final_fraction": f'schedule is "{self.schedule}"; set schedule: cosine'}


class SamplingOptions(Options):
    """Ancestral sampling; nothing is cut off, since PPO must score what was sampled."""

    max_new_tokens: int = Field(32, ge=1, description="longest response, in tokens")
    temperature: float = Field(1.0, gt=0, description="1 in the paper (app. C.4)")
    batch_size: int = Field(64, ge=1, description="rows decoded together")


class SFTOptions(Options):
    """Supervised fine-tuning (arXiv:2203.02155, section 3.5 and app. C.1)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="policy to start from; null: pretrained",
    )
    demonstrations: Part = slot(
        "data", use="demonstrations", description="prompts with written responses"
    )
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="drop longer prompts; 1k in the paper (app. C); null: keep all"
    )
    loss: Part = slot("nll_loss", use="token_nll", description="loss on the response tokens")
    epochs: int = Field(
        2,
        ge=1,
        description="passes over the demonstrations; 2 for the model that PPO starts from "
        "(app. C.3), 16 for the SFT baseline (app. C.1)",
    )
    batch_size: int = Field(
        32, ge=1, description="texts per optimizer step; 32 for 1.3B and 6B (app. C.1)"
    )
    micro_batch: Execution[int] = Field(16, ge=1, description="texts per forward pass")
    residual_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on what each layer adds; 0.2 in the paper (app. C.1)"
    )
    pretraining: Part | None = slot(
        "data", description="running text to mix in (app. C.3); null: demonstrations only"
    )
    pretraining_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the texts of a batch that are running text; 0.1 (app. C.3). The loss "
        "is a mean over tokens, so long texts weigh more than short demonstrations",
    )
    pretraining_length: int = Field(256, ge=2, description="tokens of a text of the mix")
    select_by: Part | None = slot(
        "reward",
        description="keep the epoch whose samples this reward scores best, the reward model in "
        "the paper (app. C.1); null: the epoch with the lowest validation loss",
    )
    select_prompts: int = Field(
        64, ge=1, description="validation prompts that are answered after each epoch"
    )
    sampling: SamplingOptions = Field(
        SamplingOptions(), description="how to sample the answers that select_by scores"
    )
    optimizer: OptimizerOptions = Field(
        OptimizerOptions(learning_rate=1.04e-5, schedule="cosine"),
        description="cosine to 10 % without warm-up; 1.04e-5 for 6B (app. C.3)",
    )

    def effect(self, name: str) -> str:
        # What is dropped is drawn for each forward pass.
        if name == "micro_batch" and self.residual_dropout > 0:
            return "identity"
        return super().effect(name)

    def idle(self) -> Mapping[str, str]:
        unread: dict[str, str] = {}
        if self.pretraining is None:
            keys = ("pretraining_fraction", "pretraining_length")
            unread |= dict.fromkeys(keys, "there is no pretraining text to mix in")
        if self.select_by is None:
            keys = ("select_prompts", "sampling")
            unread |= dict.fromkeys(keys, "select_by is null")
        return unread


class CollectOptions(Options):
    """Sample K completions per prompt and have them ranked (arXiv:2203.02155, section 3.4)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the policy that samples",
    )
    prompts: Part = slot("data", use="prompts", description="the prompts to answer")
    labeler: Part = slot("labeler", description="who ranks the completions")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="drop longer prompts; 1k in the paper (app. C); null: keep all"
    )
    completions: int = Field(
        6, ge=2, le=64, description="K, completions per prompt; 4 to 9 in the paper"
    )
    train_prompts: int | None = Field(None, ge=1, description="how many; null: all")
    validation_prompts: int | None = Field(None, ge=1, description="how many; null: all")
    sampling: SamplingOptions = Field(SamplingOptions(), description="how to sample")


class RewardModelOptions(Options):
    """Reward modelling (arXiv:2203.02155, section 3.5, equation 1, and app. C.2)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the SFT policy to start from",
    )
    model: Part | None = slot(
        "model",
        description="a model of its own, as the paper's 6B beside policies of any size (app. C); "
        "whatever loads the trained reward model uses it too; null: the recipe's",
    )
    memory: Part | None = slot(
        "memory", description="a memory strategy of its own; null: the recipe's"
    )
    comparisons: Part = slot("data", description="K-way comparisons")
    demonstrations: Part | None = slot(
        "data", description="their mean score becomes 0 through the bias; null: no bias"
    )
    loss: Part = slot("preference_loss", use="pairwise", description="loss over ranked scores")
    pooling: Literal["last", "mean"] = Field(
        "last", description="score the last token's state, or the mean over the response"
    )
    head_init: Literal["normal", "probe"] = Field(
        "normal",
        description="normal: random; probe: first fit the head alone on the frozen states, then "
        "train everything (arXiv:2202.10054), which small data wants",
    )
    head_init_std: float | None = Field(
        None, ge=0, description="std of a random head at the start; null: 1/sqrt(H + 1)"
    )
    probe_l2: float = Field(
        0.03, gt=0, description="L2 penalty of the probe, on standardised states, per prompt"
    )
    epochs: int = Field(1, ge=1, description="passes over the comparisons; 1 in the paper")
    batch_size: int = Field(64, ge=1, description="prompts per optimizer step; 64 in the paper")
    micro_batch: Execution[int] = Field(8, ge=1, description="prompts per forward pass")
    trunk_cache_mib: Execution[int] = Field(
        1024, ge=0, description="keep a frozen trunk's activations for all epochs up to this size"
    )
    clear_margin: float = Field(
        0.1, ge=0, description="also report accuracy on pairs whose gold scores differ this much"
    )
    optimizer: OptimizerOptions = Field(
        OptimizerOptions(learning_rate=9e-6, schedule="cosine"), description="9e-6 in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        if self.head_init == "probe":
            return {"head_init_std": 'head_init is "probe"; set head_init: normal'}
        return {"probe_l2": f'head_init is "{self.head_init}"; set head_init: probe'}


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
    sampling: SamplingOptions = Field(SamplingOptions(), description="how to sample")
    optimizer: OptimizerOptions = Field(
        OptimizerOptions(learning_rate=5e-6, warmup_steps=80),
        description="constant after a warm-up from a tenth over 10 rollouts (app. C.4): 80 "
        "optimizer steps at 512 / 64. The paper scans rates from 2.55e-6 to 2.55e-5 and does not "
        "say which it took",
    )
    value_learning_rate: float = Field(
        9e-6, gt=0, description="of the critic, fixed from the first step; 9e-6 in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        unread: dict[str, str] = {}
        if "values" not in self.advantage.component.needs:
            keys = ["value", "value_loss", "value_coef", "value_learning_rate"]
            if self.value_normalizer is not None:  # null says the same again
                keys.append("value_normalizer")
            why = f"advantage {self.advantage.component.name!r} needs no values"
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


class EvaluateOptions(Options):
    """Compare a policy with the SFT model it came from, on held-out prompts."""

    sft: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        description="the baseline; null: the pretrained model",
    )
    ppo: StageRef = stage_ref("policy", loads_into="own", description="the policy to judge")
    prompts: Part = slot("data", use="prompts", description="prompts; the test split is used")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="drop longer prompts; 1k in the paper (app. C); null: keep all"
    )
    gold: Part = slot("reward", description="the score that counts, unknown to training")
    reward: Part | None = slot("reward", description="the proxy that was trained on; null: none")
    pretraining: Part | None = slot(
        "data", description="held-out running text for perplexity; null: none"
    )
    samples_per_prompt: int = Field(2, ge=1, description="samples of each policy per prompt")
    tie_margin: float = Field(0.0, ge=0, description="gold scores this close are a tie")
    pretraining_tokens: int = Field(8192, ge=64, description="how much text to measure on")
    pretraining_length: int = Field(256, ge=2, description="tokens of one text")
    sampling: SamplingOptions = Field(SamplingOptions(), description="how to sample")
    side_by_side: Observation[int] = Field(8, ge=0, description="how many pairs of samples to show")

    def idle(self) -> Mapping[str, str]:
        keys = () if self.pretraining else ("pretraining_tokens", "pretraining_length")
        return dict.fromkeys(keys, "pretraining is null; name the held-out text")


class BestOfNOptions(Options):
    """Best-of-n against one or several proxy rewards (arXiv:2210.10760, section 3)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the policy that samples",
    )
    prompts: Part = slot("data", use="prompts", description="the prompts to answer")
    split: Literal["train", "validation", "test"] = Field(
        "test", description="which of the prompts"
    )
    most_prompts: int | None = Field(None, ge=1, description="how many prompts; null: all")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="drop longer prompts; 1k in the paper (app. C); null: keep all"
    )
    proxies: dict[str, Part] = slots("reward", description="who picks, by a name of your own")
    gold: Part = slot("reward", description="the score that counts")
    samples_per_prompt: int = Field(
        64, ge=2, description="samples of each prompt; the largest n is the last power of 2 in it"
    )
    sampling: SamplingOptions = Field(SamplingOptions(), description="how to sample")


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


class PairwiseOptions(Options):
    """How the pairs of a prompt are weighed, and how far apart their scores should be."""

    weights: Literal["kept_pairs", "all_pairs"] = Field(
        "kept_pairs",
        description="kept_pairs: the mean over the pairs left after ties drop, so that every "
        "prompt weighs 1; all_pairs: their sum over C(K, 2) of the K ranked completions, equation "
        "1 read literally, so that prompts with ties weigh less",
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="scores should differ by this much per difference in rank "
        "(arXiv:2307.09288, equation 2); 0: no margin",
    )


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


class ScriptedOptions(Options):
    """A reward function stands in for people."""

    reward: Part = slot("reward", description="what the script prefers")
    tie_margin: float = Field(0.0, ge=0, description="scores this close are a tie")


class NoOptions(Options):
    """No options."""
