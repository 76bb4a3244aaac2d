"""Calling a reward and not trusting what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kit.engine.foreign import foreign, untouched
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import (
    CompositeReward,
    Labeler,
    Memory,
    NeedsModels,
    RewardFn,
    RewardOfParts,
)
from rlhf_kit.types import Prompts, Row, Samples


class Scores(NamedTuple):
    """What a reward says of B samples."""

    total: Tensor  # [B] float32
    components: dict[str, Tensor]  # name -> [B], of a composite reward
    tokens: Tensor | None  # [B, R] float32 of a reward that scores tokens; total is their sum


def _checked(scores: Any, samples: Samples, name: str) -> Tensor:
    """[B], or [B, R] with zeros in the padding."""
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise NumericsError(
                f"{name}: expected one number per response, got {scores!r:.60} ({error})"
            ) from error
    mask = samples.response_mask
    if scores.shape not in ((len(samples),), mask.shape):
        raise NumericsError(
            f"{name}: expected one score per response, shape [{len(samples)}], or per token, "
            f"{list(mask.shape)}; got {list(scores.shape)}"
        )
    scores = scores.float().to(mask.device)
    if scores.dim() > 1:
        scores = torch.where(mask, scores, 0.0)
    bad = (~torch.isfinite(scores)).nonzero().tolist()
    if bad:
        row, *token = bad[0]
        at = f", token {token[0]}," if token else ""
        raise NumericsError(
            f"{name}: score {scores[tuple(bad[0])].item()} for response {row}{at} of "
            f"{len(samples)} ({samples.responses[row][:60]!r}); scores must be finite"
        )
    return scores


def _summed(scores: Tensor) -> Tensor:
    """[B], or [B, R] -> [B]."""
    return scores.sum(1) if scores.dim() > 1 else scores


@torch.no_grad()
def score(reward: RewardFn, samples: Samples, name: str = "reward") -> Scores:
    """The scores of ``samples`` and, for a composite reward, of each component.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    components: dict[str, Tensor] = {}
    with foreign(name), untouched(samples, "samples", name):
        if isinstance(reward, CompositeReward):
            found = reward.components(samples).items()
            components = {key: _checked(x, samples, f"{name}.{key}") for key, x in found}
            scores = _checked(reward.combine(components), samples, name)
        else:
            scores = _checked(reward(samples), samples, name)
    sums = {key: _summed(x) for key, x in components.items()}
    return Scores(_summed(scores), sums, scores if scores.dim() > 1 else None)


def needs_models(part: Any) -> bool:
    """Whether ``part`` cannot work before weights may be loaded (see NeedsModels)."""
    return isinstance(part, NeedsModels) and part.needs_models


def load_models(part: Any, memory: Memory) -> None:
    """Let a part that needs models load them."""
    if isinstance(part, NeedsModels) and part.needs_models:
        part.load(memory)


def try_out(reward: RewardFn, rows: Sequence[Row], name: str = "reward") -> Scores | None:
    """Call a reward on two made-up answers to real rows, so that a broken one is found early.

    Returns:
        Its scores; None of a reward that needs models, which is left for later.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    if isinstance(reward, RewardOfParts):
        for key, part in reward.parts.items():
            try_out(part, rows, f"{name}.{key}")
    return None if needs_models(reward) else score(reward, _made_up(rows), name)


def try_out_labeler(labeler: Labeler, rows: Sequence[Row]) -> None:
    """The same for a labeler: it must rank two made-up answers without an error."""
    if not needs_models(labeler):
        labeler(_made_up(rows))


def _made_up(rows: Sequence[Row]) -> Samples:
    rows = [*rows[:2], *rows[: max(0, 2 - len(rows))]]
    # Of three tokens: with one, a column [B, 1] by mistake would pass for a score per token.
    one, three = torch.ones((len(rows), 1)).long(), torch.ones((len(rows), 3)).long()
    return Samples(
        Prompts(one, one.bool(), rows, torch.zeros(len(rows)).long(), torch.arange(len(rows))),
        three,
        three.bool(),
        finished=torch.ones(len(rows), dtype=torch.bool),
        temperature=1.0,
        decode=lambda tokens: "This is an answer.",
    )
