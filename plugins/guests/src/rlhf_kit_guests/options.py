"""Options of the components. Torch-free."""

from __future__ import annotations

from pydantic import Field

from rlhf_kit import (
    FitOptions,
    OptimizerOptions,
    Options,
    Part,
    StageRef,
    block,
    slot,
    stage_ref,
)


class GroupOptions(Options):
    """Scores against the other answers to the same prompt."""

    eps: float = Field(1e-4, gt=0, description="added to the deviation of a group")


class GRPOOptions(Options):
    """The clipped loss with the KL inside (arXiv:2402.03300, equation 3)."""

    clip_range: float = Field(0.2, gt=0, description="epsilon; not given in the paper")
    beta: float = Field(0.04, ge=0, description="weight of the KL; 0.04 (section 4.2)")


class DPOOptions(Options):
    """The loss over pairs (arXiv:2305.18290, equation 7)."""

    beta: float = Field(0.1, gt=0, description="0.1 (appendix B)")


class KTOOptions(Options):
    """The loss over answers judged by themselves (arXiv:2402.01306, equation 8)."""

    beta: float = Field(0.1, gt=0, description="0.1 in most of its experiments")
    desirable: float = Field(1.0, gt=0, description="lambda_D, the weight of desirable answers")
    undesirable: float = Field(1.0, gt=0, description="lambda_U, the weight of the others")


class PreferenceOptions(FitOptions):
    """Learn from comparisons, without a reward model and without sampling."""

    start: StageRef | None = stage_ref(
        "policy",
        loads_into="own",
        default=None,
        alias="from",
        description="the policy to start from, and the reference; null: pretrained",
    )
    comparisons: Part = slot("data", rows="comparisons", description="K-way comparisons")


class DPOStageOptions(PreferenceOptions):
    """DPO: all pairs of the answers of each comparison."""

    optimizer: OptimizerOptions = block(
        {"learning_rate": 1e-6, "warmup_steps": 150},
        description="1e-6 with 150 steps of warm-up; RMSprop there (arXiv:2305.18290, app. B)",
    )
    loss: Part = slot("pair_loss", use="dpo", description="loss over pairs")


class KTOStageOptions(PreferenceOptions):
    """KTO: the best and the worst answers of each comparison, each by itself."""

    optimizer: OptimizerOptions = block(
        {"learning_rate": 5e-6}, description="5e-6, some 2 to 10 times DPO's (arXiv:2402.01306)"
    )
    loss: Part = slot("labelled_loss", use="kto", description="loss over judged answers")
