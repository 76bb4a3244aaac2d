"""What a plugin author needs to know that a plugin is right: imported by tests only.

``conformance`` checks an implementation against the invariances of its seam, ``oracles`` are slow
float64 references, ``toy`` is a policy small enough to enumerate, ``building`` makes parts outside
a run. With rlhf-kit installed, the ``check_*`` functions are pytest fixtures too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name -> module. Loaded on first use: the pytest plugin must not pay for torch.
_PUBLIC = {
    "ToyContext": "building",
    "build": "building",
    "part": "building",
    "check_advantage": "conformance",
    "check_component": "components",
    "check_kl_controller": "controllers",
    "check_labeler": "conformance",
    "check_labelled_loss": "preferences",
    "check_loss": "losses",
    "check_nll_loss": "losses",
    "check_normalizer": "conformance",
    "check_pair_loss": "preferences",
    "check_plugin": "components",
    "check_policy_loss": "losses",
    "check_preference_loss": "preferences",
    "check_ptx_controller": "controllers",
    "check_reward": "conformance",
    "check_value_loss": "losses",
    "TabularPolicy": "toy",
    "TabularSampler": "toy",
    "enumerate_responses": "toy",
    "made_up_experience": "inputs",
    "made_up_policy_inputs": "inputs",
    "hollow_part": "building",
    "made_up_samples": "toy",
    "toy_model": "model",
    "toy_recipe": "recipe",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from rlhf_kit.testing.building import (
        ToyContext as ToyContext,
        build as build,
        hollow_part as hollow_part,
        part as part,
    )
    from rlhf_kit.testing.components import (
        check_component as check_component,
        check_plugin as check_plugin,
    )
    from rlhf_kit.testing.conformance import (
        check_advantage as check_advantage,
        check_labeler as check_labeler,
        check_normalizer as check_normalizer,
        check_reward as check_reward,
    )
    from rlhf_kit.testing.controllers import (
        check_kl_controller as check_kl_controller,
        check_ptx_controller as check_ptx_controller,
    )
    from rlhf_kit.testing.inputs import (
        made_up_experience as made_up_experience,
        made_up_policy_inputs as made_up_policy_inputs,
    )
    from rlhf_kit.testing.losses import (
        check_loss as check_loss,
        check_nll_loss as check_nll_loss,
        check_policy_loss as check_policy_loss,
        check_value_loss as check_value_loss,
    )
    from rlhf_kit.testing.model import toy_model as toy_model
    from rlhf_kit.testing.preferences import (
        check_labelled_loss as check_labelled_loss,
        check_pair_loss as check_pair_loss,
        check_preference_loss as check_preference_loss,
    )
    from rlhf_kit.testing.recipe import toy_recipe as toy_recipe
    from rlhf_kit.testing.toy import (
        TabularPolicy as TabularPolicy,
        TabularSampler as TabularSampler,
        enumerate_responses as enumerate_responses,
        made_up_samples as made_up_samples,
    )


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"rlhf_kit.testing.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'rlhf_kit.testing' has no attribute {name!r}")
