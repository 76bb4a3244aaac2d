"""Calling a reward and not trusting what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.errors import NumericsError, PluginError, RlhfKitError
from rlhf_kit.interfaces import CompositeReward, Labeler, Memory, RewardFn
from rlhf_kit.types import Prompts, Samples
from rlhf_kit.types.samples import Row


def _checked(scores: Any, samples: Samples, name: str) -> Tensor:
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise NumericsError(
                f"{name}: expected one number per response, got {scores!r:.60} ({error})"
            ) from error
    if scores.shape != (len(samples),):
        raise NumericsError(
            f"{name}: expected one score per response, shape [{len(samples)}], "
            f"got {list(scores.shape)}"
        )
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"{name}: score {scores[bad[0]].item()} for response {bad[0]} of {len(samples)} "
            f"({samples.responses[bad[0]][:60]!r}); scores must be finite"
        )
    return scores.float().to(samples.response_tokens.device)


@torch.no_grad()
def score(
    reward: RewardFn, samples: Samples, name: str = "reward"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores [B] float32 of ``samples`` and, for a composite reward, of each component.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    try:
        if not isinstance(reward, CompositeReward):
            return _checked(reward(samples), samples, name), {}
        components = {
            key: _checked(value, samples, f"{name}.{key}")
            for key, value in reward.components(samples).items()
        }
        return _checked(reward.combine(components), samples, name), components
    except RlhfKitError:
        raise
    except Exception as error:
        raise PluginError(f"{name}: {type(error).__name__}: {error}") from error


def needs_models(part: Any) -> bool:
    """Whether ``part`` cannot work before weights may be loaded (see NeedsModels)."""
    return bool(getattr(part, "needs_models", False))


def load_models(part: Any, memory: Memory) -> None:
    """Let a part that needs models load them."""
    if needs_models(part):
        part.load(memory)


def try_out(reward: RewardFn, rows: Sequence[Row], name: str = "reward") -> None:
    """Call a reward on two made-up answers to real rows, so that a broken one is found early.

    A reward that needs models is left for later.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    parts = getattr(reward, "parts", None)
    for key, part in parts.items() if isinstance(parts, Mapping) else ():
        try_out(part, rows, f"{name}.{key}")
    if needs_models(reward):
        return
    score(reward, _made_up(rows), name)


def try_out_labeler(labeler: Labeler, rows: Sequence[Row]) -> None:
    """The same for a labeler: it must rank two made-up answers without an error."""
    if not needs_models(labeler):
        labeler(_made_up(rows))


def _made_up(rows: Sequence[Row]) -> Samples:
    rows = [*rows[:2], *rows[: max(0, 2 - len(rows))]]
    ones = torch.ones((len(rows), 1), dtype=torch.long)
    return Samples(
        Prompts(ones, ones.bool(), rows, torch.zeros(len(rows), dtype=torch.long)),
        ones,
        ones.bool(),
        finished=torch.ones(len(rows), dtype=torch.bool),
        temperature=1.0,
        decode=lambda tokens: "This is an answer.",
    )
