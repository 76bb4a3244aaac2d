"""Memory strategy `hydra`: one frozen trunk, a small branch of top layers for every role.

A branch is a shallow copy of the model's own decoder whose layer list is cut at the split and
which is fed the trunk's activations as input embeddings. No architecture is re-implemented; a
check at build time refuses the models for which trunk and branch together are not the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, ModuleList, Parameter

from rlhf_kit.engine.checkpoint import save_tensors
from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import Context, ModelSource
from rlhf_kit.types import PaddedTrunk, TrunkId
from rlhf_kit_hf.artifact import read_weights, write_note
from rlhf_kit_hf.layers import layer_list
from rlhf_kit_hf.options import HydraOptions
from rlhf_kit_hf.role import refuse_foreign, run_decoder
from rlhf_kit_hf.strategy import SharedStrategy

WEIGHTS = "branch.safetensors"


def _view(module: Any, **replaced: Module) -> Any:
    """A shallow copy of ``module`` that shares every child but the replaced ones."""
    view = copy.copy(module)
    view._modules = {**module._modules, **replaced}
    return view


def _with_layers(
    base: Any, name: str, first: int, layers: Iterable[Module], **other: Module
) -> Any:
    """A decoder over ``layers``, which sit at depth ``first`` and up in the original."""
    chosen = ModuleList(layers)
    view = _view(base, **{name: chosen}, **other)
    view.config = copy.deepcopy(base.config)
    view.config.num_hidden_layers = len(chosen)
    kinds = getattr(base.config, "layer_types", None)
    if kinds is not None:
        view.config.layer_types = list(kinds[first : first + len(chosen)])
    return view


class Trunk:
    """The frozen lower part of a model, and the recipe for cutting branches off it."""

    def __init__(self, model: Any, trainable_layers: int, backbone: str) -> None:
        self.model, base = model, model.base_model
        self.base = base
        owner, self.layers_name = layer_list(base)
        if owner is not base:
            raise RecipeError(
                f"memory: hydra cannot split {type(model).__name__}: its layers are not in "
                f"{type(base).__name__} itself; use memory lora or full"
            )
        layers = getattr(base, self.layers_name)
        if trainable_layers >= len(layers):
            raise RecipeError(
                f"memory.trainable_layers: {trainable_layers}, but the model has {len(layers)} "
                "layers and the trunk needs at least one; lower it, or use memory full"
            )
        self.split = len(layers) - trainable_layers
        self.origin = TrunkId(backbone, self.split, str(model.dtype).removeprefix("torch."))
        self.lower, self.upper = list(layers[: self.split]), list(layers[self.split :])
        # What runs after the layers (the final norm) belongs to the branch.
        self.after = {
            name: child
            for name, child in base.named_children()
            if child is not base.get_input_embeddings()
            and name != self.layers_name
            and any(True for _ in child.parameters())
        }
        without = {name: nn.Identity() for name in self.after}
        self._encoder = _with_layers(base, self.layers_name, 0, self.lower, **without)

    @torch.no_grad()
    def encode(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> PaddedTrunk:
        """Activations at the split."""
        states = run_decoder(self._encoder, mask, positions, input_ids=tokens)
        return PaddedTrunk(states, self.origin)


class HydraRole:
    """A branch of its own over the shared trunk."""

    def __init__(self, trunk: Trunk, shape: dict[str, Any], *, trainable: bool) -> None:
        self._trunk, self._shape = trunk, shape
        self.config = trunk.model.config.get_text_config()
        self.hidden_size: int = self.config.hidden_size
        upper = [copy.deepcopy(layer) for layer in trunk.upper]
        self.layers: Sequence[Module] = upper
        after = {name: copy.deepcopy(child) for name, child in trunk.after.items()}
        name, base = trunk.layers_name, trunk.base
        self._branch = _with_layers(base, name, trunk.split, upper, **after)
        whole = _with_layers(base, name, 0, [*trunk.lower, *upper], **after)
        self._model = _view(trunk.model, **{trunk.model.base_model_prefix: whole})
        self._own = [p for part in (*upper, *after.values()) for p in part.parameters()]
        for parameter in self._own:
            parameter.requires_grad_(trainable)
        self._trainable = trainable
        self.boundary: Module = upper[0]

    @property
    def origin(self) -> TrunkId:
        return self._trunk.origin

    def encode(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> PaddedTrunk:
        return self._trunk.encode(tokens, mask, positions)

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor,
        trunk: PaddedTrunk | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        refuse_foreign(trunk, self.origin)
        trunk = self.encode(tokens, mask, positions) if trunk is None else trunk
        return run_decoder(self._branch, mask, positions, inputs_embeds=trunk.states)

    def head(self, states: Tensor) -> Tensor:
        return self._trunk.model.get_output_embeddings()(states)

    @contextmanager
    def decoding(self) -> Iterator[Module]:
        yield self._model

    def _named_parameters(self) -> dict[str, Parameter]:
        """The branch's parameters under the names they have in the whole model."""
        own = {id(p) for p in self._own}
        return {n: p for n, p in self._model.named_parameters() if id(p) in own}

    def parameters(self) -> Iterable[Parameter]:
        return self._own if self._trainable else ()

    def state_dict(self) -> dict[str, Any]:
        return {name: p.detach() for name, p in self._named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self._named_parameters().items():
            parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        save_tensors(folder / WEIGHTS, self._named_parameters())
        write_note(folder, HydraOptions.strategy, **self._shape)


class HydraMemory(SharedStrategy):
    def __init__(self, options: HydraOptions, source: ModelSource, context: Context) -> None:
        super().__init__(options, source, context)
        self._trunk = Trunk(self.model, options.trainable_layers, self.backbone)
        self._check_split()

    def role(self, name: str, start: Path | None, *, trainable: bool) -> HydraRole:
        role = HydraRole(self._trunk, self.shape(), trainable=trainable)
        if start is not None:
            role.load_state_dict(read_weights(start / WEIGHTS, role.state_dict()))
        return role

    @torch.no_grad()
    def _check_split(self) -> None:
        """Trunk and branch must compose to the model, with padding on the left as in a rollout."""
        vocabulary = self.model.config.get_text_config().vocab_size
        tokens = torch.arange(3, 19, device=self.device).remainder(vocabulary).view(2, 8)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[0, :3] = False
        expected = run_decoder(self.model.base_model, mask, None, input_ids=tokens)[mask]
        try:
            role = HydraRole(self._trunk, self.shape(), trainable=False)
            found = role.hidden(tokens, mask)[mask]
        except Exception as error:  # a decoder that is not embeddings, layers, norm: any may come
            raise RecipeError(
                f"memory: hydra cannot split {type(self.model).__name__}: its parts do not run "
                f"alone ({type(error).__name__}: {error}); use memory lora or full"
            ) from error
        gap = float((found.float() - expected.float()).abs().max())
        bound = 1e-3 * float(expected.float().abs().max())
        if not gap <= bound:
            raise RecipeError(
                f"memory: hydra cannot split {type(self.model).__name__}: trunk and branch differ "
                f"from the whole by {gap:.3g} (bound {bound:.3g}); use memory lora or full"
            )
