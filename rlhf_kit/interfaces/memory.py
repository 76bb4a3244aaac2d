"""Where models come from, and how four roles share what memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_kit.interfaces.policy import Policy, Reference
from rlhf_kit.interfaces.reward import RewardModel
from rlhf_kit.interfaces.tokenizer import Tokenizer
from rlhf_kit.interfaces.value import Critic


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

    ``start`` is a stage folder, or None for the pretrained model. What is ``trainable`` starts as a
    copy of it; building anything else leaves the global generators of random numbers where they
    stood, since it may happen between two steps, or once more when a run goes on.
    """

    def policy(
        self, start: Path | None, *, trainable: bool = True, residual_dropout: float = 0.0
    ) -> Policy:
        """``residual_dropout`` acts on its forward passes with gradients only."""

    def reference(self, start: Path | None) -> Reference:
        """Frozen."""

    def scorer(
        self,
        start: Path | None,
        *,
        pooling: str = "last",
        init_std: float | None = None,
        trainable: bool = True,
    ) -> RewardModel:
        """One score per text.

        Args:
            start: a trained reward model comes with head and pooling of its own.
            pooling: "last": the head reads the state of the last token; "mean": the average over
                the response.
            init_std: standard deviation of a fresh head's weights; None: 1/sqrt(H + 1).
        """

    def critic(self, start: Path | None, *, init_std: float = 0.0) -> Critic:
        """Trainable values. ``start``: a reward model's folder, or a critic's, has a head; else

        a fresh one is drawn, by default zero.
        """


@runtime_checkable
class ReadsFolders(Protocol):
    """A memory strategy that sees, before any weights are loaded, which folders it cannot read."""

    @classmethod
    def refuse(cls, options: Any, folder: Path, source: ModelSource, tokenizer: Tokenizer) -> None:
        """Asked when a stage is built whose weights are in a folder of another run.

        Args:
            options: of the strategy.
            folder: the stage folder.
            source: of the model that the strategy would be built over, with its ``tokenizer``.

        Raises:
            RecipeError: ``folder`` was trained on another model, another tokenizer, ...
        """


@runtime_checkable
class NeedsModels(Protocol):
    """A part that may need weights: ``load`` is called once, when a stage starts to run."""

    @property
    def needs_models(self) -> bool:
        """Whether it does; then it is not called before ``load``."""

    def load(self, memory: Memory) -> None:
        """``memory`` is the stage's own (see ``Context.memory``)."""


@runtime_checkable
class Identified(Protocol):
    """A memory strategy whose options mean something else on another machine, such as an automatic

    precision.
    """

    @staticmethod
    def identity(options: Any) -> Mapping[str, Any]:
        """What to put in the place of such options in a fingerprint. Loads nothing."""
