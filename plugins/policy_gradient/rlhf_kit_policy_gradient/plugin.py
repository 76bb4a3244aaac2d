"""Registration of the on-policy loop and its parts; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str]:
    """Batch sizes that cannot be met, and coefficients that cannot move."""
    for stage in recipe.stages.values():
        o_, place = stage.part.options, f"{stage.part.where}: {stage.part.key}"
        if not isinstance(o_, o.PPOPtxOptions):
            continue
        yield from (f"{stage.part.key}.kl_coef: is 0, {why}" for why in _stuck_at_zero(o_))
        if o_.minibatch > o_.rollout_batch:
            yield (
                f"{place}.minibatch: {o_.minibatch} is larger than rollout_batch {o_.rollout_batch}"
            )
        if o_.rollout_batch % o_.samples_per_prompt:
            yield (
                f"{place}.rollout_batch: {o_.rollout_batch} responses cannot be divided by "
                f"samples_per_prompt {o_.samples_per_prompt}"
            )


def _stuck_at_zero(options: o.PPOPtxOptions) -> Iterable[str]:
    """Why beta cannot begin at 0."""
    if options.kl_coef > 0:
        return
    if options.kl_limit is not None and options.on_kl_limit == "rollback":
        yield (
            "and on_kl_limit: rollback multiplies it, so that the same rollout would be taken back "
            "for ever; set one greater than 0, or on_kl_limit: stop"
        )
    controller = options.kl_controller.component
    if "positive_coefficient" in controller.needs:
        yield (
            f"and kl_controller {controller.name!r} multiplies it; set one greater than 0, or "
            "another kl_controller"
        )
