"""The conformance kit as pytest fixtures; importing this module is cheap, and never needs torch.

Each ``check_*`` fixture is the function of that name in rlhf_kit.testing::

    def test_reward(check_reward):
        check_reward(Brevity(BrevityOptions()))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_FUNCTIONS = (
    "check_advantage",
    "check_component",
    "check_kl_controller",
    "check_labeler",
    "check_labelled_loss",
    "check_loss",
    "check_nll_loss",
    "check_normalizer",
    "check_pair_loss",
    "check_plugin",
    "check_policy_loss",
    "check_preference_loss",
    "check_ptx_controller",
    "check_reward",
    "check_value_loss",
    "made_up_experience",
    "made_up_policy_inputs",
    "made_up_samples",
)


def _fixture(name: str) -> Any:
    @pytest.fixture(name=name)
    def function() -> Callable[..., Any]:
        import rlhf_kit.testing

        return getattr(rlhf_kit.testing, name)

    function.__doc__ = f"rlhf_kit.testing.{name}"
    return function


for _name in _FUNCTIONS:
    globals()[f"_{_name}"] = _fixture(_name)


@pytest.fixture
def tabular_policy() -> Any:
    """A rlhf_kit.testing.TabularPolicy with 3 tokens and responses of up to 3, in float64."""
    import torch

    from rlhf_kit.testing import TabularPolicy

    return TabularPolicy(dtype=torch.float64)
