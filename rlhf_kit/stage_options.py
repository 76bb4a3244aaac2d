"""Options that many stages have, with the source of each default. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from rlhf_kit.components import Execution, Options, Part, block, slot

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(Options):
    """AdamW. InstructGPT trains everything with betas 0.9 and 0.95 (arXiv:2203.02155, app. C)."""

    learning_rate: float = Field(gt=0, description="peak learning rate")
    schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up")
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="where the cosine ends, as a fraction of the peak (app. C)"
    )
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in optimizer steps")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="decay of the moments")
    eps: float = Field(1e-8, gt=0, description="added to the denominator; not in the paper")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_gradient_norm: float | None = Field(
        1.0, gt=0, description="clip the global norm; null: never. Not in the paper"
    )

    def idle(self) -> Mapping[str, str]:
        if self.schedule == "cosine":
            return {}
        return {"final_fraction": f'schedule is "{self.schedule}"; set schedule: cosine'}


class CheckpointOptions(Options):
    """When a stage saves its place. A change of these changes no result."""

    minutes: float | None = Field(
        5.0, gt=0, description="save when so many have passed since the last one; null: never"
    )
    steps: int | None = Field(None, ge=1, description="save every so many steps; null: never")
    keep: int = Field(
        2, ge=1, description="how many are kept: should one be damaged, the one before serves"
    )


class FitOptions(Options):
    """Training in whole passes over the data; a stage says what its batches are of."""

    epochs: int = Field(1, ge=1, description="passes over the data")
    batch_size: int = Field(64, ge=1, description="rows per optimizer step")
    micro_batch: Execution[int] = Field(8, ge=1, description="rows per forward pass")
    optimizer: OptimizerOptions = block({"learning_rate": 1e-5}, description="how to step")


class SamplingOptions(Options):
    """Ancestral sampling; nothing is cut off, since PPO must score what was sampled."""

    sampler: Part = slot("sampler", use="decode", description="who draws the responses")
    max_new_tokens: int = Field(32, ge=1, description="longest response, in tokens")
    # Logits are divided by it: nearer to 0 the quotients leave the range of float32.
    temperature: float = Field(1.0, ge=1e-3, le=1e3, description="1 in the paper (app. C.4)")
    batch_size: Execution[int] = Field(64, ge=1, description="rows decoded together")


class PromptOptions(Options):
    """Prompts, and how they are answered."""

    prompts: Part = slot("data", use="prompts", rows="prompts", description="the prompts to answer")
    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="drop longer prompts; 1k in the paper (arXiv:2203.02155, app. C); null: keep "
        "all",
    )
    sampling: SamplingOptions = block(description="how to sample")
