"""Options of the evaluation stages. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlhf_kit import (
    Observation,
    Options,
    Part,
    SamplingOptions,
    StageRef,
    block,
    slot,
    slots,
    stage_ref,
)


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
    sampling: SamplingOptions = block(description="how to sample")
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
    sampling: SamplingOptions = block(description="how to sample")
