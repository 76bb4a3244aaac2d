"""What PPO holds fixed while it updates: the rollout and its advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_kit.types.losses import Masked, SampledUnits
from rlhf_kit.types.samples import Samples
from rlhf_kit.types.shapes import joined, width_of


@dataclass(frozen=True, eq=False)
class PolicyOutput:
    """A policy's account of sampled responses, aligned with the response tokens."""

    logprobs: Tensor  # [B, R] float32
    states: Tensor  # [B, R, H]: the state that chose token r


@dataclass(frozen=True, eq=False)
class Advantages:
    """Per-token advantages and the returns that the values should predict, both [B, R] float32."""

    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, eq=False)
class Rollout:
    """Samples and everything recorded about them before the first update.

    Responses that the reward has no score of are left out of it.
    """

    samples: Samples
    logprobs: Tensor  # [B, R]
    reference_logprobs: Tensor  # [B, R]
    values: Tensor | None  # [B, R]
    scores: Tensor  # [B]
    components: dict[str, Tensor] = field(default_factory=dict)  # name -> [B], parts of a score
    token_scores: Tensor | None = None  # [B, R], of a reward that scores tokens; scores is the sum
    known: Tensor | None = None  # [B] bool: which responses have a score; None: all
    counts: dict[str, float] = field(default_factory=dict)  # what the reward met on the way

    @classmethod
    def join(cls, parts: Sequence[Rollout]) -> Rollout:
        """One rollout of several chunks, each padded to the widest of them."""
        values = [part.values for part in parts if part.values is not None]
        tokens = [part.token_scores for part in parts if part.token_scores is not None]
        known = [part.known for part in parts if part.known is not None]
        counted = dict.fromkeys(name for part in parts for name in part.counts)
        return cls(
            Samples.join([part.samples for part in parts]),
            joined([part.logprobs for part in parts]),
            joined([part.reference_logprobs for part in parts]),
            joined(values) if values else None,
            torch.cat([part.scores for part in parts]),
            {n: torch.cat([p.components[n] for p in parts]) for n in parts[0].components},
            joined(tokens) if tokens else None,
            torch.cat(known) if known else None,
            {n: sum(p.counts.get(n, 0.0) for p in parts) for n in counted},
        )

    def select(self, index: Tensor) -> Rollout:
        """Rows ``index``; no response is cut."""
        values, tokens = self.values, self.token_scores
        return Rollout(
            self.samples.select(index, self.mask.shape[1]),
            self.logprobs[index],
            self.reference_logprobs[index],
            None if values is None else values[index],
            self.scores[index],
            {name: x[index] for name, x in self.components.items()},
            None if tokens is None else tokens[index],
            None if self.known is None else self.known[index],
            self.counts,
        )

    @property
    def mask(self) -> Tensor:
        return self.samples.response_mask

    @property
    def group(self) -> Tensor:
        return self.samples.group


@dataclass(frozen=True, eq=False)
class PPOBatch:
    """The rows of a rollout that one optimizer step, or one micro-batch of it, reads."""

    samples: Samples
    logprobs: Tensor  # [B, R], of the policy that sampled
    reference_logprobs: Tensor  # [B, R]
    values: Tensor | None  # [B, R]
    advantages: Tensor  # [B, R]
    returns: Tensor  # [B, R]
    places: Tensor  # [B, R] bool: where there is a value; the tokens, perhaps one place after them

    @property
    def mask(self) -> Tensor:
        """[B, R], the tokens: what the policy's loss counts."""
        return self.samples.response_mask

    @property
    def sampled(self) -> SampledUnits:
        """What the policy's loss counts."""
        return SampledUnits(self.mask, self.logprobs, self.samples.group)

    @property
    def chosen(self) -> Masked:
        """What a loss over its tokens counts."""
        return Masked(self.mask)

    @property
    def valued(self) -> Masked:
        """What the critic's loss counts."""
        return Masked(self.places)

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, index: Tensor) -> PPOBatch:
        """Rows ``index``, cut to the longest of them; a place after an end is kept."""
        places = self.places[index]
        width = max(width_of(places), width_of(self.mask[index]))
        return PPOBatch(
            self.samples.select(index, width),
            self.logprobs[index, :width],
            self.reference_logprobs[index, :width],
            None if self.values is None else self.values[index, :width],
            self.advantages[index, :width],
            self.returns[index, :width],
            places[:, :width],
        )

    def split(self, size: int) -> Iterator[PPOBatch]:
        """Micro-batches of at most ``size`` rows."""
        for rows in torch.arange(len(self)).split(size):
            yield self.select(rows)
