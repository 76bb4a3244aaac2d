"""Rewards: any callable from samples to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlhf_kit.interfaces.memory import Memory
from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import PackedTexts, Samples, TextBatch


class RewardFn(Protocol):
    """Optional: ``tokenizer`` (a Tokenizer) if it reads the text with one of its own, and ``dtype``

    if it computes in a precision of its own; the gate before PPO's first update looks at both.
    """

    def __call__(self, samples: Samples) -> Tensor:
        """Scores [B], one per response, finite."""


@runtime_checkable
class CompositeReward(Protocol):
    """A reward made of several: each component is logged under its name.

    It may have ``parts``, a mapping of name to RewardFn; those that need no models are then
    tried before any model is loaded.
    """

    def components(self, samples: Samples) -> Mapping[str, Tensor]:
        """name -> [B]"""

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        """[B], what ``__call__`` would return for these components."""


@runtime_checkable
class NeedsModels(Protocol):
    """A part that may need weights: ``load`` is called once, when a stage starts to run."""

    needs_models: bool

    def load(self, memory: Memory) -> None: ...


class RewardModel(Trainable, Protocol):
    """A trained (or to be trained) scalar scorer of whole texts; also a RewardFn."""

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
