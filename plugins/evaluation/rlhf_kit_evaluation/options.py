"""Options of the evaluation stages. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlhf_kit import (
    Observation,
    Part,
    PromptOptions,
    StageRef,
    slot,
    slots,
    stage_ref,
    stage_refs,
)

BASELINE = "baseline"  # its name in summaries and samples, and that of the option


def _of_a_candidate(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{name!r} should be made of letters, digits, - and _")
    if name == BASELINE:
        raise ValueError("should be another name: that is what candidates are compared with")
    return name


PolicyName = Annotated[str, AfterValidator(_of_a_candidate)]


class EvaluateOptions(PromptOptions):
    """Compare policies with a baseline, such as the SFT model they came from.

    On the test split of the prompts.
    """

    baseline: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        description="what the others are compared with; null: the pretrained model",
    )
    candidates: dict[PolicyName, StageRef] = stage_refs(
        "policy", loads_into="own", description="the policies to judge, by a name of your own"
    )
    gold: Part = slot("reward", description="the score that counts, unknown to training")
    reward: Part | None = slot("reward", description="the proxy that was trained on; null: none")
    pretraining: Part | None = slot(
        "data", rows="text", description="held-out running text for perplexity; null: none"
    )
    samples_per_prompt: int = Field(2, ge=1, description="samples of each policy per prompt")
    tie_margin: float = Field(0.0, ge=0, description="gold scores this close are a tie")
    pretraining_tokens: int = Field(8192, ge=64, description="how much text to measure on")
    pretraining_length: int = Field(256, ge=2, description="tokens of one text")
    side_by_side: Observation[int] = Field(8, ge=0, description="prompts to show with all answers")

    def idle(self) -> Mapping[str, str]:
        keys = () if self.pretraining else ("pretraining_tokens", "pretraining_length")
        return dict.fromkeys(keys, "pretraining is null; name the held-out text")


class BestOfNOptions(PromptOptions):
    """Best-of-n against one or several proxy rewards (arXiv:2210.10760, section 3)."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the policy that samples",
    )
    split: Literal["train", "validation", "test"] = Field(
        "test", description="which of the prompts"
    )
    most_prompts: int | None = Field(None, ge=1, description="how many prompts; null: all")
    proxies: dict[str, Part] = slots("reward", description="who picks, by a name of your own")
    gold: Part = slot("reward", description="the score that counts")
    samples_per_prompt: int = Field(
        64, ge=2, description="samples of each prompt; the largest n is the last power of 2 in it"
    )
