"""Options of the InstructGPT stages, with the source of each default. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlhf_kit import (
    Execution,
    FitOptions,
    OptimizerOptions,
    Options,
    Part,
    PromptOptions,
    SamplingOptions,
    StageRef,
    block,
    slot,
    stage_ref,
)


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
        "data",
        use="demonstrations",
        rows="demonstrations",
        description="prompts with written responses",
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
        "data",
        rows="text",
        description="running text to mix in (app. C.3); null: demonstrations only",
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
    sampling: SamplingOptions = block(description="how to sample the answers that select_by scores")
    optimizer: OptimizerOptions = block(
        {"learning_rate": 1.04e-5, "schedule": "cosine"},
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
            keys = ["pretraining_fraction", "pretraining_length"]
            unread |= dict.fromkeys(keys, "there is no pretraining text to mix in")
        if self.select_by is None:
            keys = ["select_prompts", "sampling"]
            unread |= dict.fromkeys(keys, "select_by is null")
        return unread

    def problems(self) -> Mapping[str, str]:
        texts = round(self.batch_size * self.pretraining_fraction)
        if self.pretraining is None or 0 < texts < self.batch_size:
            return {}
        return {
            "pretraining_fraction": f"{self.pretraining_fraction} of a batch of {self.batch_size} "
            f"is {texts} texts; there must be some of both kinds"
        }


class CollectOptions(PromptOptions):
    """Sample K completions per prompt and have them ranked (arXiv:2203.02155, section 3.4)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the policy that samples",
    )
    labeler: Part = slot("labeler", description="who ranks the completions")
    completions: int = Field(
        6, ge=2, le=64, description="K, completions per prompt; 4 to 9 in the paper"
    )
    train_prompts: int | None = Field(None, ge=1, description="how many; null: all")
    validation_prompts: int | None = Field(None, ge=1, description="how many; null: all")


class RewardModelOptions(FitOptions):
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
    comparisons: Part = slot("data", rows="comparisons", description="K-way comparisons")
    demonstrations: Part | None = slot(
        "data",
        rows="demonstrations",
        description="their mean score becomes 0 through the bias; null: no bias",
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
    trunk_cache_mib: Execution[int] = Field(
        1024, ge=0, description="keep a frozen trunk's activations for all epochs up to this size"
    )
    clear_margin: float = Field(
        0.1, ge=0, description="also report accuracy on pairs whose gold scores differ this much"
    )
    optimizer: OptimizerOptions = block(
        {"learning_rate": 9e-6, "schedule": "cosine"}, description="9e-6 in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        if self.head_init == "probe":
            return {"head_init_std": 'head_init is "probe"; set head_init: normal'}
        return {"probe_l2": f'head_init is "{self.head_init}"; set head_init: probe'}


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


class ScriptedOptions(Options):
    """A reward function stands in for people."""

    reward: Part = slot("reward", description="what the script prefers")
    tie_margin: float = Field(0.0, ge=0, description="scores this close are a tie")


class NoOptions(Options):
    """No options."""
