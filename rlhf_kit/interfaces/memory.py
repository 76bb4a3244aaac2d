"""Where models come from, and how four roles share what memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_kit.interfaces.policy import Policy
from rlhf_kit.interfaces.tokenizer import Tokenizer


class ModelSource(Protocol):
    """A pretrained causal language model: a hub id, a folder, or a file in some package."""

    def tokenizer(self) -> Tokenizer:
        """Cheap: does not touch the weights."""

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the weights, for the manifest and for stage-level resume."""

    def load(self, dtype: Any) -> Any:
        """The model itself, in evaluation mode, on the CPU."""


class Memory(Protocol):
    """A memory strategy: builds the roles over one backbone, or over several.

    ``start`` and ``reference`` are stage folders, or None for the pretrained model. A policy that
    is ``trainable`` starts as a copy of ``start``; its reference is frozen. ``residual_dropout``
    acts on its forward passes with gradients only.
    """

    def policy(
        self,
        start: Path | None,
        *,
        reference: Path | None = None,
        trainable: bool = True,
        residual_dropout: float = 0.0,
    ) -> Policy: ...

    def reward_model(self, start: Path | None, *, trainable: bool = True, **head: Any) -> Any:
        """A RewardModel. A folder of kind "policy" gives a fresh head (options in ``head``)."""


@runtime_checkable
class Identified(Protocol):
    """A memory strategy whose options mean something else on another machine, such as an automatic

    precision.
    """

    @staticmethod
    def identity(options: Any) -> Mapping[str, Any]:
        """What to put in the place of such options in a fingerprint. Loads nothing."""
