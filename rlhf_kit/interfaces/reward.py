"""Rewards: any callable from samples to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.interfaces.tokenizer import Tokenizer
from rlhf_kit.types import PackedTexts, PartialScores, Samples, TextBatch, TrunkId


class RewardFn(Protocol):
    """Any function; see also ModelReward, CompositeReward and NeedsModels."""

    def __call__(self, samples: Samples) -> Tensor | PartialScores:
        """Scores [B], one per response, or [B, R], one per token of it; finite.

        Scores of tokens are for who learns from tokens; everyone else reads their sum. It returns
        PartialScores where some responses may have none.
        """


@runtime_checkable
class CompositeReward(Protocol):
    """A reward made of several numbers: each component is logged under its name."""

    def components(self, samples: Samples) -> Mapping[str, Tensor | PartialScores]:
        """name -> [B], or [B, R] all of them where tokens are scored."""

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        """The scores that ``__call__`` would return for these, row by row; what is made of a

        response that one of them has no score of, whatever stands there, is not read.
        """


@runtime_checkable
class RewardOfParts(CompositeReward, Protocol):
    """One whose components are rewards themselves: those that need no models are tried before any

    model is loaded, and the gate before PPO's first update looks at each.
    """

    @property
    def parts(self) -> Mapping[str, RewardFn]: ...


@runtime_checkable
class ModelReward(Protocol):
    """A reward that computes with a model of its own; for the gate before PPO's first update."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What it reads a text with."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What it computes in, once loaded."""


class RewardModel(Trainable, Protocol):
    """A trained (or to be trained) scalar scorer of whole texts; also a RewardFn.

    Whoever hands it activations of a trunk of another origin gets a ValueError.
    """

    @property
    def origin(self) -> TrunkId | None:
        """Of the kept activations that it reads; None: of none."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    def encode(self, texts: PackedTexts) -> PackedTexts:
        """The same texts, with the activations of a frozen trunk where the strategy has one."""

    def features(self, texts: PackedTexts) -> Tensor:
        """[G, K, H] float32: the states that the scalar head reads; zero without a completion."""

    def compare(self, texts: PackedTexts) -> Tensor:
        """[G, K] float32, with gradients: what ``score`` says of each completion behind its prompt.

        Zero where there is no completion.
        """

    def score(self, texts: TextBatch) -> Tensor:
        """[B] float32, with gradients; independent of padding and of the other rows."""

    def set_head(self, weight: Tensor, bias: float) -> None:
        """Set the scalar head to ``weight . features + bias``; ``weight`` is [H]."""

    def shift(self, delta: float) -> None:
        """Add ``delta`` to every score from now on; no comparison can tell."""

    def save(self, folder: Path, proof: TextBatch | None = None) -> None:
        """As Trainable; the scores of the texts ``proof`` go along, to be checked on loading."""

    def __call__(self, samples: Samples) -> Tensor: ...
