"""Registration: what the entry point names. Imports neither torch nor the implementations."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_guests import options as o


@hookimpl
def rlhf_components() -> Iterable[Component]:
    package = "rlhf_kit_guests"
    yield Component(
        "advantage",
        "grpo",
        f"{package}.grpo:GroupAdvantage",
        o.GroupOptions,
        "Scores standardised within the answers to a prompt, arXiv:2402.03300.",
        needs=frozenset({"groups", "own_normalization", "scores"}),
    )
    yield Component(
        "policy_loss",
        "grpo",
        f"{package}.grpo:GRPO",
        o.GRPOOptions,
        "Clipped ratio and k3 to the reference, mean over each answer, arXiv:2402.03300.",
        needs=frozenset({"own_kl"}),
    )
    yield Component(
        "pair_loss", "dpo", f"{package}.dpo:DPO", o.DPOOptions, "DPO, arXiv:2305.18290."
    )
    yield Component(
        "stage",
        "dpo",
        f"{package}.dpo:DPOStage",
        o.DPOStageOptions,
        "Train a policy on pairs of answers.",
        produces="policy",
    )
    yield Component(
        "labelled_loss",
        "kto",
        f"{package}.kto:KTO",
        o.KTOOptions,
        "KTO, arXiv:2402.01306.",
        needs=frozenset({"mismatched"}),
    )
    yield Component(
        "stage",
        "kto",
        f"{package}.kto:KTOStage",
        o.KTOStageOptions,
        "Train a policy on answers that are judged by themselves.",
        produces="policy",
    )
