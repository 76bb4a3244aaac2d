"""Memory strategy `lora`: one frozen backbone, a LoRA adapter (arXiv:2106.09685) per role."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import Embedding, Module, Parameter

from rlhf_kit.engine.checkpoint import save_tensors
from rlhf_kit.errors import RecipeError, did_you_mean
from rlhf_kit.interfaces import Context, ModelSource
from rlhf_kit.types import PaddedTrunk
from rlhf_kit_hf.artifact import read_weights, write_note
from rlhf_kit_hf.layers import decoder_layers
from rlhf_kit_hf.options import LoraOptions
from rlhf_kit_hf.role import refuse_foreign, run_decoder
from rlhf_kit_hf.strategy import SharedStrategy

WEIGHTS = "adapter_model.safetensors"  # peft's own file name, so that peft can load the folder


class LoraRole:
    """One adapter of a shared backbone. A fresh adapter computes exactly the pretrained model."""

    boundary = None
    origin = None

    def __init__(
        self, model: PeftModel, adapter: str, shape: dict[str, Any], *, trainable: bool
    ) -> None:
        self._model, self._adapter, self._shape = model, adapter, shape
        self._trainable = trainable
        self.config = model.config.get_text_config()
        self.hidden_size: int = self.config.hidden_size
        self.layers = decoder_layers(model.get_base_model().base_model)
        for _, parameter in self._named_parameters():
            parameter.requires_grad_(trainable)

    def _bound(self, module: Any) -> Any:
        """``module`` of the shared model, computing with this role's adapter from now on.

        Each forward binds anew, a recomputation in the backward pass too: between the two another
        role may have answered. peft's own set_adapter also freezes what it switches off, here in
        the middle of a backward pass; which adapter computes is this one attribute.
        """
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer._active_adapter = [self._adapter]
        return module

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor,
        trunk: PaddedTrunk | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        refuse_foreign(trunk, self.origin)
        decoder = self._bound(self._model.get_base_model().base_model)
        return run_decoder(decoder, mask, positions, input_ids=tokens)

    def encode(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> None:
        return None

    def head(self, states: Tensor) -> Tensor:
        return self._bound(self._model.get_base_model().get_output_embeddings())(states)

    @contextmanager
    def decoding(self) -> Iterator[Module]:
        yield self._bound(self._model.get_base_model())

    def _named_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """Of this adapter: a module per linear layer, and a bare parameter per embedding."""
        for name, layer in self._model.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            for kind in layer.adapter_layer_names:
                own = f"{name}.{kind}.{self._adapter}"
                held = getattr(layer, kind)
                if self._adapter not in held:
                    continue
                part = held[self._adapter]
                if isinstance(part, Parameter):
                    yield own, part
                else:
                    yield from ((f"{own}.{n}", p) for n, p in part.named_parameters())

    def parameters(self) -> Iterable[Parameter]:
        return (p for _, p in self._named_parameters()) if self._trainable else ()

    def state_dict(self) -> dict[str, Any]:
        return {n: p.detach() for n, p in self._named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self._named_parameters():
            parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        tensors = get_peft_model_state_dict(
            self._model, adapter_name=self._adapter, save_embedding_layers=False
        )
        save_tensors(folder / WEIGHTS, tensors)
        config = copy.copy(self._model.peft_config[self._adapter])
        if not isinstance(config.target_modules, str):
            # A set, whose order is another one in each process.
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))
        write_note(folder, LoraOptions.strategy, **self._shape)


def _refuse_unknown(model: Any, wanted: str | list[str]) -> None:
    """Refuse a name that is no module's, which peft passes over where another one is."""
    modules = [f".{name}" for name, module in model.named_modules() if not [*module.children()]]
    for target in () if isinstance(wanted, str) else wanted:
        if not any(name.endswith(f".{target}") for name in modules):
            ours = {name for name, p in model.named_parameters() if p.dim() > 1}
            there = sorted({name.split(".")[-2] for name in ours})
            raise _refused(
                f"the model has no module {target!r}{did_you_mean(target, there)}; it has "
                f"{', '.join(there)}"
            )


def _refuse_positions(model: PeftModel) -> None:
    """Refuse an embedding that is not looked up by what it is called with, such as OPT's

    positions: its adapter would be.
    """
    tokens = model.get_base_model().get_input_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if layer is tokens:
            continue
        if isinstance(base, Embedding) and type(base).forward is not Embedding.forward:
            raise _refused(
                f"{name.rpartition('.')[2]} is a {type(base).__name__}, which is not "
                "looked up by its own index"
            )


def _refused(cause: str) -> RecipeError:
    return RecipeError(
        f"memory.target_modules: {cause}; name linear layers, the head or the token embedding, or "
        'write "all-linear"'
    )


@contextmanager
def _trainable_kept(model: PeftModel) -> Iterator[None]:
    """peft freezes every adapter but the active one; a role's gradient must survive a switch."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    yield
    for parameter in trainable:
        parameter.requires_grad_(True)


class LoraMemory(SharedStrategy):
    _options: LoraOptions

    def __init__(self, options: LoraOptions, source: ModelSource, context: Context) -> None:
        super().__init__(options, source, context)
        self._peft: PeftModel | None = None

    def role(self, name: str, start: Path | None, *, trainable: bool) -> LoraRole:
        config = LoraConfig(
            r=self._options.rank,
            lora_alpha=self._options.alpha,
            target_modules=self._options.target_modules,
            task_type="CAUSAL_LM",
        )
        taken = [] if self._peft is None else list(self._peft.peft_config)
        if name in taken:  # a second reward model, say
            name = f"{name}_{len(taken)}"
        # autocast_adapter_dtype=False: adapters keep the backbone's precision, since the optimizer
        # holds float32 masters; float32 adapters cost 38 % more activations.
        if self._peft is None:
            _refuse_unknown(self.model, self._options.target_modules)
            try:
                self._peft = get_peft_model(
                    self.model, config, adapter_name=name, autocast_adapter_dtype=False
                )
            except ValueError as error:  # a module of another kind
                raise _refused(str(error).strip().partition("\n")[0]) from error
            _refuse_positions(self._peft)
        else:
            with _trainable_kept(self._peft):
                self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
        if start is not None:
            fresh = get_peft_model_state_dict(
                self._peft, adapter_name=name, save_embedding_layers=False
            )
            found = read_weights(start / WEIGHTS, fresh)
            set_peft_model_state_dict(self._peft, found, adapter_name=name)
        self._peft.eval()
        return LoraRole(self._peft, name, self.shape(), trainable=trainable)
