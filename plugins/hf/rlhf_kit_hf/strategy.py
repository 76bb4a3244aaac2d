"""What all memory strategies share: the four requests, answered by roles."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlhf_kit.engine.precision import resolve_device, resolve_dtype
from rlhf_kit.engine.seeding import randomness_kept
from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import Context, ModelSource, Tokenizer
from rlhf_kit_hf.artifact import check_note
from rlhf_kit_hf.dropout import add_residual_dropout
from rlhf_kit_hf.loading import refuse_not_finite
from rlhf_kit_hf.note import BACKBONE
from rlhf_kit_hf.options import MemoryOptions
from rlhf_kit_hf.policy import TransformersPolicy, TransformersReference
from rlhf_kit_hf.reward_model import TransformersRewardModel, has_head
from rlhf_kit_hf.role import Role


class Strategy(ABC):
    """Base of the strategies in this package; implements rlhf_kit.interfaces.Memory."""

    def __init__(self, options: MemoryOptions, source: ModelSource, context: Context) -> None:
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.tokenizer = context.tokenizer
        self._options, self._source = options, source

    @staticmethod
    def identity(options: MemoryOptions) -> dict[str, str]:
        """The precision as it is on this machine: with another, a result is another."""
        dtype = resolve_dtype(options.dtype, resolve_device(options.device))
        return {"dtype": str(dtype).removeprefix("torch.")}

    def load(self) -> Any:
        """The pretrained model, on the device, in evaluation mode.

        Raises:
            RecipeError: a weight is not finite, or its logits are not what its head makes of its
                states.
        """
        model = self._source.load(self.dtype).requires_grad_(False).to(self.device)
        refuse_not_finite(model)
        _check_head(model)
        return model

    def shape(self) -> dict[str, Any]:
        """What must agree between the run that wrote a folder and the one that reads it."""
        return self.binding(self._options, self._source, self.tokenizer)

    @classmethod
    def binding(
        cls, options: MemoryOptions, source: ModelSource, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """``shape`` without the weights."""
        return {key: getattr(options, key) for key in sorted(options.binds())}

    @classmethod
    def refuse(
        cls, options: MemoryOptions, folder: Path, source: ModelSource, tokenizer: Tokenizer
    ) -> None:
        """See rlhf_kit.interfaces.ReadsFolders."""
        check_note(folder, options.strategy, **cls.binding(options, source, tokenizer))

    @abstractmethod
    def role(self, name: str, start: Path | None, *, trainable: bool) -> Role:
        """The one part that differs between strategies."""

    def _role(self, name: str, start: Path | None, *, trainable: bool) -> Role:
        if start is not None:
            check_note(start, self._options.strategy, **self.shape())
        return self.role(name, start, trainable=trainable)

    def policy(
        self, start: Path | None, *, trainable: bool = True, residual_dropout: float = 0.0
    ) -> TransformersPolicy:
        with _unseen(trainable=trainable):
            role = self._role("policy", start, trainable=trainable)
        if residual_dropout > 0:
            add_residual_dropout(role.layers, residual_dropout)
        return TransformersPolicy(role, self.tokenizer, self.device)

    def reference(self, start: Path | None) -> TransformersReference:
        with _unseen(trainable=False):
            role = self._role("reference", start, trainable=False)
        return TransformersReference(role, self.device)

    def scorer(
        self,
        start: Path | None,
        *,
        pooling: str = "last",
        init_std: float | None = None,
        trainable: bool = True,
    ) -> TransformersRewardModel:
        """One that is not trained, and a critic, never begin with a head that is drawn."""
        fresh = start is None or (trainable and not has_head(start))
        with _unseen(trainable=trainable):
            return self._headed(
                self._role("reward", start, trainable=trainable),
                None if fresh else start,
                pooling=pooling,
                init_std=init_std,
                trainable=trainable,
            )

    def critic(self, start: Path | None, *, init_std: float = 0.0) -> TransformersRewardModel:
        role = self._role("critic", start, trainable=True)
        return self._headed(role, start, pooling="last", init_std=init_std, trainable=True)

    def _headed(
        self,
        role: Role,
        head: Path | None,
        *,
        pooling: str,
        init_std: float | None,
        trainable: bool,
    ) -> TransformersRewardModel:
        model = TransformersRewardModel(
            role,
            self.device,
            self.dtype,
            pooling=pooling,
            init_std=init_std,
            trainable=trainable,
        )
        if head is not None:
            model.load_head(head)
        return model


class SharedStrategy(Strategy):
    """Base of the strategies whose roles share the frozen weights of one model."""

    def __init__(self, options: MemoryOptions, source: ModelSource, context: Context) -> None:
        super().__init__(options, source, context)
        self.model = self.load()

    def shape(self) -> dict[str, Any]:
        # Not of this class's own binding, which hashes the source again.
        shape = super().binding(self._options, self._source, self.tokenizer)
        return {**shape, BACKBONE: self.backbone}

    @classmethod
    def binding(
        cls, options: MemoryOptions, source: ModelSource, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        return {BACKBONE: _hash(source), **super().binding(options, source, tokenizer)}

    @cached_property
    def backbone(self) -> str:
        """What the frozen weights are, for people and as a hash of the model source."""
        config = self.model.config.get_text_config()
        size = f"{config.num_hidden_layers} x {config.hidden_size}"
        return f"{config.model_type} {size} {_hash(self._source)}"


def _hash(source: ModelSource) -> str:
    text = json.dumps(source.fingerprint(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unseen(*, trainable: bool) -> AbstractContextManager[None]:
    """Put back what building a role draws, unless it is to be trained.

    What an adapter or a head is first filled with is drawn, and then a folder or the pretrained
    model says what it is. A stage may build such a role in the middle of its steps.
    """
    return nullcontext() if trainable else randomness_kept()


@torch.no_grad()
def _check_head(model: Any) -> None:
    """Refuse models whose logits are more than head(hidden): they would be scored wrongly."""
    tokens = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    whole = model(input_ids=tokens, use_cache=False).logits.float()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    parts = model.get_output_embeddings()(hidden).float()
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3):
        raise RecipeError(
            f"model: {type(model).__name__} transforms its logits after the output layer "
            f"(largest difference {float((whole - parts).abs().max()):.3g}); not supported yet"
        )
