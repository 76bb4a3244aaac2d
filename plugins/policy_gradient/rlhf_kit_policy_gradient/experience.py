"""From a rollout to what is maximised: scores laid on tokens, less the KL where it is a reward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit.engine.foreign import foreign, untouched
from rlhf_kit.errors import NumericsError, PluginError
from rlhf_kit.interfaces import AdvantageEstimator, Normalizer
from rlhf_kit.ops.kl import kl_penalised_rewards
from rlhf_kit.ops.sequence import last_index, with_place_after_end
from rlhf_kit.types import Advantages, Experience, Rollout, Samples
from rlhf_kit_policy_gradient.options import EndOptions

TOKENS_SCALED = (
    "it scales the scores of whole responses, and this reward scores tokens; use "
    "normalize.rewards, or remove it"
)


@dataclass(frozen=True)
class Normalizers:
    """Of the scores, the per-token rewards and the advantages; None: left as they are."""

    scores: Normalizer | None = None
    rewards: Normalizer | None = None
    advantages: Normalizer | None = None


def normalised(normalizer: Normalizer | None, x: Tensor, mask: Tensor) -> Tensor:
    """``x``, scaled if there is a normaliser."""
    return x if normalizer is None else normalizer(x, mask)


def places_of(mask: Tensor, options: EndOptions) -> Tensor:
    """[B, R]: the tokens, and one place after the end where the recipe puts the score there."""
    return with_place_after_end(mask) if options.score_at == "after_end" else mask


def with_room(samples: Samples, options: EndOptions, longest: int) -> Samples:
    """Wide enough for the place after the end of the longest row, up to ``longest`` tokens.

    The critic must see that place too, or it would depend on the rows beside it whether a row has
    one.
    """
    if options.score_at != "after_end":
        return samples
    widest = int(samples.response_mask.sum(1).max())
    return samples.with_room(min(widest + 1, longest))


def with_scores(rollout: Rollout, *, whole_groups: bool) -> Rollout:
    """Without the responses that the reward has no score of; ``dropped`` counts what is left out.

    Args:
        rollout: of all responses.
        whole_groups: leave the other responses to their prompts out too, since somebody compares
            the members of a group.

    Raises:
        PluginError: fewer than two responses remain.
    """
    if rollout.known is None:
        return rollout
    known, group = rollout.known.cpu(), rollout.group.cpu()
    stays = ~torch.isin(group, group[~known]) if whole_groups else known
    kept = stays.nonzero().flatten()
    dropped = len(known) - len(kept)
    if not dropped and not rollout.counts:
        return rollout
    if dropped and len(kept) < 2:
        raise PluginError(
            f"the reward has no score for {int((~known).sum())} of {len(known)} responses "
            f"of this rollout, and {len(kept)} can be learned from; at least two are needed"
        )
    counted = replace(rollout, counts=rollout.counts | {"dropped": float(dropped)})
    return counted.select(kept) if dropped else counted


def shaped_scores(rollout: Rollout, options: EndOptions, normalizer: Normalizer | None) -> Tensor:
    """Scores [B]: a response that never ended is treated as the recipe says, then normalised."""
    scores, finished, value = rollout.scores, rollout.samples.finished, options.value
    if options.missing == "replace":
        scores = torch.where(finished, scores, -value)
    if options.missing == "subtract":
        scores = torch.where(finished, scores, scores - value)
    return normalised(normalizer, scores, torch.ones_like(finished))


def experience_of(
    rollout: Rollout, options: EndOptions, normalizers: Normalizers, penalty: float
) -> Experience:
    """Scores at the last of their places, less ``penalty`` times the log-ratio of each token.

    Where the reward scores tokens they keep that, and what the shaped score is more stands last.

    arXiv:2203.02155, equation 2, with the KL spread over the tokens that cause it, as in
    openai/lm-human-preferences. The sampled k1 is the estimate whose policy gradient is exact.

    Raises:
        NumericsError: scores of tokens and a normaliser of the scores of responses.
    """
    mask = rollout.mask
    places = places_of(mask, options)
    scores = shaped_scores(rollout, options, normalizers.scores)
    tokens = rollout.token_scores
    if tokens is not None and normalizers.scores is not None:
        # Scaled as a whole, the tokens would keep their units and the last one pay the difference.
        raise NumericsError(f"normalize.scores: {TOKENS_SCALED}")
    at_end = scores if tokens is None else scores - rollout.scores
    rewards = kl_penalised_rewards(
        at_end,
        rollout.logprobs,
        rollout.reference_logprobs,
        mask,
        penalty,
        last_index(places),
    )
    if tokens is not None:
        rewards = rewards + tokens
    return Experience(
        scores=scores,
        rewards=normalised(normalizers.rewards, rewards, places),
        logprobs=rollout.logprobs,
        reference_logprobs=rollout.reference_logprobs,
        values=rollout.values,
        mask=mask,
        places=places,
        group=rollout.group,
    )


def estimated(estimator: AdvantageEstimator, experience: Experience, name: str) -> Advantages:
    """What ``estimator`` gives, which must be what its seam promises.

    Raises:
        PluginError: it is not; ``name`` says whose it is.
    """
    who = f"advantage {name!r}"
    with foreign(who), untouched(experience, "experience", who):
        found = estimator(experience)
    if not isinstance(found, Advantages):
        raise PluginError(
            f"{who} returned {type(found).__name__}; it should return rlhf_kit.types.Advantages"
        )
    shape = list(experience.mask.shape)
    for part, x in (("advantages", found.advantages), ("returns", found.returns)):
        if not isinstance(x, Tensor) or list(x.shape) != shape:
            raise PluginError(f"{who}: {part} are {_shape(x)}, should be [B, R] = {shape}")
        bad = (~torch.isfinite(x)).nonzero().tolist()
        if bad:
            (row, token), value = bad[0], x[tuple(bad[0])].item()
            raise NumericsError(f"{who}: {part} are {value} at response {row}, token {token}")
    return found


def _shape(x: object) -> str:
    return f"of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
