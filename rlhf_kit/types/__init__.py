"""Tensor types. Shape legend: B rows, P prompt, R response, T = P + R, H hidden, V vocabulary,

G prompts of a comparison batch, K completions of one prompt. Masks are bool, True = valid.
"""

from rlhf_kit.rows import PlacedRow, Row
from rlhf_kit.types.activations import Activations, PaddedTrunk, TrunkId
from rlhf_kit.types.comparisons import ComparisonBatch, Comparisons
from rlhf_kit.types.experience import Experience
from rlhf_kit.types.losses import (
    LabelledInputs,
    LossOutput,
    Masked,
    MismatchedInputs,
    NllInputs,
    PairInputs,
    PolicyLossInputs,
    PreferenceInputs,
    Ranked,
    SampledUnits,
    ValueLossInputs,
)
from rlhf_kit.types.packed import PackedTexts
from rlhf_kit.types.ragged import Ragged
from rlhf_kit.types.rollout import Advantages, PolicyOutput, PPOBatch, Rollout
from rlhf_kit.types.samples import Prompts, Samples, Sampling, asked
from rlhf_kit.types.scores import PartialScores
from rlhf_kit.types.shapes import check_shape
from rlhf_kit.types.texts import TextBatch, Texts

__all__ = [
    "Activations",
    "Advantages",
    "ComparisonBatch",
    "Comparisons",
    "Experience",
    "LabelledInputs",
    "LossOutput",
    "Masked",
    "MismatchedInputs",
    "NllInputs",
    "PPOBatch",
    "PackedTexts",
    "PaddedTrunk",
    "PairInputs",
    "PartialScores",
    "PlacedRow",
    "PolicyLossInputs",
    "PolicyOutput",
    "PreferenceInputs",
    "Prompts",
    "Ragged",
    "Ranked",
    "Rollout",
    "Row",
    "SampledUnits",
    "Samples",
    "Sampling",
    "TextBatch",
    "Texts",
    "TrunkId",
    "ValueLossInputs",
    "asked",
    "check_shape",
]
