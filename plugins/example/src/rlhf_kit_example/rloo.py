"""REINFORCE leave-one-out: the other responses to a prompt are the baseline."""

from __future__ import annotations

import torch

from rlhf_kit import RecipeError
from rlhf_kit.types import Advantages, Experience, check_shape
from rlhf_kit_example.options import RLOOOptions


class RLOO:
    """``A_i = R_i - 1/(k-1) sum_{j != i} R_j``, arXiv:2402.14740, section 3.

    R_i is the sum of a response's rewards, KL penalty included: the whole response is one action,
    so that all its tokens share A_i, and no critic is trained.
    """

    def __init__(self, options: RLOOOptions) -> None:
        pass

    def __call__(self, experience: Experience) -> Advantages:
        """Advantages and returns [B, R].

        Raises:
            RecipeError: a prompt with a single response, which has nothing to be compared with.
        """
        rewards, mask, group = experience.rewards, experience.places, experience.group
        sizes = check_shape(mask, "B R", "mask")
        check_shape(rewards, "B R", "rewards", **sizes)
        check_shape(group, "B", "group", B=sizes["B"])
        total = torch.where(mask, rewards, 0.0).sum(1)  # [B]
        same = (group[:, None] == group[None, :]).to(total.dtype)  # [B, B]
        others = same.sum(1) - 1  # [B]
        if bool((others < 1).any()):
            raise RecipeError(
                "advantage rloo: a prompt has a single response; "
                "set samples_per_prompt to 2 or more"
            )
        baseline = (same @ total - total) / others
        advantages = torch.where(mask, (total - baseline)[:, None], 0.0)
        return Advantages(advantages, torch.where(mask, total[:, None], 0.0))
