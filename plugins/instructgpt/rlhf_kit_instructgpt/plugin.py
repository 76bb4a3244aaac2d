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
    (
        "best_of_n",
        "best_of_n:BestOfN",
        o.BestOfNOptions,
        "What proxy rewards pick among n samples, and its gold score.",
        "best_of_n",
    ),
)

_OTHERS = (
    ("value", "linear", "value:LinearValue", o.LinearValueOptions, "Linear critic on states."),
    ("policy_loss", "ppo_clip", "losses:PPOClip", o.ClipOptions, "Clipped policy loss."),
    ("value_loss", "clipped_value", "losses:ClippedValue", o.ClipOptions, "Clipped value loss."),
    ("nll_loss", "token_nll", "losses:TokenNLL", o.NoOptions, "NLL, mean over tokens."),
    (
        "nll_loss",
        "sequence_nll",
        "losses:SequenceNLL",
        o.NoOptions,
        "Sum of the NLL over a text, mean over texts.",
    ),
    ("preference_loss", "pairwise", "losses:Pairwise", o.PairwiseOptions, "K-way pairwise loss."),
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
    ("labeler", "scripted", "labeler:Scripted", o.ScriptedOptions, "Ranks by a reward function."),
)


@hookimpl
def rlhf_components() -> Iterable[Component]:
    for name, target, stage_options, summary, produces in _STAGES:
        yield Component("stage", name, f"{_PACKAGE}.{target}", stage_options, summary, produces)
    for seam, name, target, options, summary in _OTHERS:
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
        if isinstance(o_, o.SFTOptions) and o_.pretraining is not None:
            texts = round(o_.batch_size * o_.pretraining_fraction)
            if not 0 < texts < o_.batch_size:
                yield (
                    f"{place}.pretraining_fraction: {o_.pretraining_fraction} of a batch of "
                    f"{o_.batch_size} is {texts} texts; there must be some of both kinds"
                )
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
