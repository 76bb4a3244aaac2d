"""Registration of the InstructGPT components; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit import Component, hookimpl
from rlhf_kit_instructgpt import options as o

_PACKAGE = "rlhf_kit_instructgpt"

_STAGES = (
    ("sft", "sft:SFT", o.SFTOptions, "Supervised fine-tuning on demonstrations.", "policy"),
    (
        "collect",
        "collect:Collect",
        o.CollectOptions,
        "Sample K completions per prompt and have a labeler rank them.",
        "comparisons",
    ),
    (
        "reward_model",
        "reward_model:RewardModelStage",
        o.RewardModelOptions,
        "Train a reward model on K-way comparisons.",
        "reward_model",
    ),
    (
        "ppo_ptx",
        "ppo_stage:PPOPtxStage",
        o.PPOPtxOptions,
        "PPO with a per-token KL penalty and a pretraining mix.",
        "policy",
    ),
    (
        "evaluate",
        "evaluate:Evaluate",
        o.EvaluateOptions,
        "PPO against SFT on held-out prompts: gold score, win rate, KL, perplexity, samples.",
        "evaluation",
    ),
)

_OTHERS = (
    ("advantage", "gae", "gae:GAE", o.GAEOptions, "Generalized advantage estimation."),
    ("value", "linear", "value:LinearValue", o.LinearValueOptions, "Linear critic on states."),
    ("policy_loss", "ppo_clip", "losses:PPOClip", o.ClipOptions, "Clipped policy loss."),
    ("value_loss", "clipped_value", "losses:ClippedValue", o.ClipOptions, "Clipped value loss."),
    ("nll_loss", "token_nll", "losses:TokenNLL", o.NoOptions, "Mean NLL per token."),
    ("preference_loss", "pairwise", "losses:Pairwise", o.NoOptions, "K-way pairwise loss."),
    ("kl_controller", "fixed", "control:FixedKL", o.FixedKLOptions, "Constant KL coefficient."),
    (
        "kl_controller",
        "adaptive",
        "control:AdaptiveKL",
        o.AdaptiveKLOptions,
        "KL coefficient that steers towards a target.",
    ),
    ("labeler", "scripted", "labeler:Scripted", o.ScriptedOptions, "Ranks by a reward function."),
)


@hookimpl
def rlhf_components() -> Iterable[Component]:
    for name, target, stage_options, summary, produces in _STAGES:
        yield Component("stage", name, f"{_PACKAGE}.{target}", stage_options, summary, produces)
    for seam, name, target, options, summary in _OTHERS:
        yield Component(seam, name, f"{_PACKAGE}.{target}", options, summary)


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str]:
    """Batch sizes that cannot be met."""
    for stage in recipe.stages.values():
        o_, place = stage.part.options, f"{stage.part.where}: {stage.part.key}"
        if not isinstance(o_, o.PPOPtxOptions):
            continue
        if o_.minibatch > o_.rollout_batch:
            yield (
                f"{place}.minibatch: {o_.minibatch} is larger than rollout_batch {o_.rollout_batch}"
            )
        if o_.rollout_batch % o_.samples_per_prompt:
            yield (
                f"{place}.rollout_batch: {o_.rollout_batch} responses cannot be divided by "
                f"samples_per_prompt {o_.samples_per_prompt}"
            )
