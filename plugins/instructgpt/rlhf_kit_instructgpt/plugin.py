"""Registration of the InstructGPT components; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

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
)

_OTHERS = (
    ("nll_loss", "token_nll", "losses:TokenNLL", o.NoOptions, "NLL, mean over tokens."),
    (
        "nll_loss",
        "sequence_nll",
        "losses:SequenceNLL",
        o.NoOptions,
        "Sum of the NLL over a text, mean over texts.",
    ),
    ("preference_loss", "pairwise", "losses:Pairwise", o.PairwiseOptions, "K-way pairwise loss."),
    ("labeler", "scripted", "labeler:Scripted", o.ScriptedOptions, "Ranks by a reward function."),
)


@hookimpl
def rlhf_components() -> Iterable[Component]:
    for name, target, stage_options, summary, produces in _STAGES:
        yield Component("stage", name, f"{_PACKAGE}.{target}", stage_options, summary, produces)
    for seam, name, target, options, summary in _OTHERS:
        yield Component(seam, name, f"{_PACKAGE}.{target}", options, summary)
