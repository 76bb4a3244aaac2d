"""Memory strategy `full`: separate models for every role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from rlhf_kit.engine.checkpoint import writing
from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.interfaces import Context, ModelSource, Tokenizer
from rlhf_kit.types import PaddedTrunk
from rlhf_kit_hf.artifact import read_json, write_note
from rlhf_kit_hf.layers import decoder_layers
from rlhf_kit_hf.loading import load_exactly, refuse_not_finite
from rlhf_kit_hf.model_folder import CONFIG, model_damage
from rlhf_kit_hf.options import FullOptions, MemoryOptions
from rlhf_kit_hf.role import refuse_foreign, run_decoder
from rlhf_kit_hf.strategy import Strategy
from rlhf_kit_hf.tokenizer import reading


class FullRole:
    """A whole model of its own."""

    boundary = None
    origin = None

    def __init__(self, model: Any, shape: dict[str, Any], *, trainable: bool) -> None:
        self._model, self._shape = model.requires_grad_(trainable), shape
        self.config = model.config.get_text_config()
        self.hidden_size: int = self.config.hidden_size
        self.layers = decoder_layers(model.base_model)

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor,
        trunk: PaddedTrunk | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        refuse_foreign(trunk, self.origin)
        return run_decoder(self._model.base_model, mask, positions, input_ids=tokens)

    def encode(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> None:
        return None

    def head(self, states: Tensor) -> Tensor:
        return self._model.get_output_embeddings()(states)

    @contextmanager
    def decoding(self) -> Iterator[Module]:
        yield self._model

    def parameters(self) -> Iterable[Parameter]:
        return (p for p in self._model.parameters() if p.requires_grad)

    def state_dict(self) -> dict[str, Any]:
        return {name: p.detach() for name, p in self._model.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        with writing(folder):
            self._model.save_pretrained(folder)
        write_note(folder, FullOptions.strategy, **self._shape)


class FullMemory(Strategy):
    def __init__(self, options: FullOptions, source: ModelSource, context: Context) -> None:
        super().__init__(options, source, context)
        # Loaded to be checked, and then the first role's: no model is idle while a stage runs.
        self._fresh: Any = self.load()
        self._kind = type(self._fresh)

    @classmethod
    def binding(
        cls, options: MemoryOptions, source: ModelSource, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """The weights come with the folder; which tokens they read does not."""
        found = super().binding(options, source, tokenizer)
        return {"tokenizer": reading(tokenizer), **found}

    def role(self, name: str, start: Path | None, *, trainable: bool) -> FullRole:
        fresh, self._fresh = self._fresh, None
        if start is None:
            model = self.load() if fresh is None else fresh
            return FullRole(model, self.shape(), trainable=trainable)
        del fresh  # its place is needed
        # from_pretrained, since save_pretrained may write other names than the model's own
        # (GPT-NeoX's head), leaves tied weights out, and splits what is large.
        why = model_damage(start)
        if why is not None:
            raise DataError(f"{why}; train that stage again")
        self._same_architecture(start)
        load = partial(self._kind.from_pretrained, start, dtype=self.dtype, local_files_only=True)
        model = load_exactly(load, start).to(self.device)
        refuse_not_finite(model)
        return FullRole(model, self.shape(), trainable=trainable)

    def _same_architecture(self, start: Path) -> None:
        """Or weights would be left out, and a model of a size of its own be made."""
        kinds = read_json(start / CONFIG).get("architectures") or []
        if kinds and self._kind.__name__ not in kinds:
            raise RecipeError(
                f"{start}: holds weights of {', '.join(kinds)}, and the recipe's model is "
                f"{self._kind.__name__}; use the same model block as the run that wrote it"
            )
