"""Registration of the on-policy loop and its parts; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_policy_gradient import options as o

_PACKAGE = "rlhf_kit_policy_gradient"

_PARTS = (
    ("value", "linear", "value:LinearValue", o.LinearValueOptions, "Linear critic on states."),
    ("policy_loss", "ppo_clip", "losses:PPOClip", o.ClipOptions, "Clipped policy loss."),
    ("value_loss", "clipped_value", "losses:ClippedValue", o.ClipOptions, "Clipped value loss."),
    ("kl_controller", "fixed", "control:FixedKL", o.FixedKLOptions, "Constant KL coefficient."),
    ("normalizer", "whiten", "normalizers:Whiten", o.WhitenOptions, "Unit variance per rollout."),
    (
        "normalizer",
        "running",
        "normalizers:Running",
        o.RunningOptions,
        "Scaled by the statistics of all rollouts so far.",
    ),
    ("ptx_controller", "fixed", "control:FixedPtx", o.FixedPtxOptions, "Constant gamma."),
    (
        "ptx_controller",
        "adaptive",
        "control:AdaptivePtx",
        o.AdaptivePtxOptions,
        "gamma that holds the held-out perplexity within a budget.",
    ),
)


@hookimpl
def rlhf_components() -> Iterable[Component]:
    yield Component(
        "stage",
        "ppo_ptx",
        f"{_PACKAGE}.ppo_stage:PPOPtxStage",
        o.PPOPtxOptions,
        "PPO with a per-token KL penalty and a pretraining mix.",
        produces="policy",
    )
    for seam, name, target, options, summary in _PARTS:
        yield Component(seam, name, f"{_PACKAGE}.{target}", options, summary)
    yield Component(
        "advantage",
        "gae",
        f"{_PACKAGE}.gae:GAE",
        o.GAEOptions,
        "Generalized advantage estimation.",
        needs=frozenset({"values"}),
    )
    yield Component(
        "kl_controller",
        "adaptive",
        f"{_PACKAGE}.control:AdaptiveKL",
        o.AdaptiveKLOptions,
        "KL coefficient that steers towards a target.",
        needs=frozenset({"positive_coefficient"}),
    )
