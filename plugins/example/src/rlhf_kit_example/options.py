"""Options of the components. Torch-free: a recipe is checked without importing torch."""

from __future__ import annotations

from pydantic import Field

from rlhf_kit import Options


class BrevityOptions(Options):
    """How long a response should be."""

    target: int = Field(12, ge=1, description="words that score 1")
    width: float = Field(4.0, gt=0, description="this many words off the target score 0.61")


class GSPOOptions(Options):
    """Clip range of the sequence-level ratio (arXiv:2507.18071, section 5.1)."""

    clip_low: float = Field(3e-4, gt=0, lt=1, description="clip below 1 - this")
    clip_high: float = Field(4e-4, gt=0, description="clip above 1 + this")


class RLOOOptions(Options):
    """No options: the number of responses per prompt is the stage's."""
