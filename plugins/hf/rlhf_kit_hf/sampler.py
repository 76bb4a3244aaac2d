"""Sampler `decode`: the model that learns decodes, in this process."""

from __future__ import annotations

from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import Policy
from rlhf_kit.types import Prompts, Samples, Sampling
from rlhf_kit_hf.decode import decode
from rlhf_kit_hf.options import DecodeOptions
from rlhf_kit_hf.policy import TransformersPolicy


class DecodeSampler:
    """Implements rlhf_kit.interfaces.Sampler over any memory strategy of this package."""

    def __init__(self, options: DecodeOptions) -> None:
        pass

    def __call__(self, policy: Policy, prompts: Prompts, sampling: Sampling) -> Samples:
        if not isinstance(policy, TransformersPolicy):
            raise RecipeError(
                f"sampler: decode samples what a memory strategy of rlhf_kit_hf builds, and this "
                f"is a {type(policy).__module__}.{type(policy).__qualname__}; use the sampler "
                "that comes with its strategy"
            )
        return decode(policy.role, prompts.to(policy.device), sampling, policy.tokenizer)
