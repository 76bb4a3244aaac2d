"""The list of a decoder's layers: finding it, and keeping its lower part only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import Module, ModuleList

from rlhf_kit.errors import RecipeError


def layer_list(base: Module) -> tuple[Module, str]:
    """The module that has the layers of a causal language model's ``base_model``, and as what.

    Most decoders have them themselves; OPT's are one module further down.

    Raises:
        RecipeError: there is no such list.
    """
    depth = base.config.get_text_config().num_hidden_layers
    for owner in (base, *base.children()):
        for name, child in owner.named_children():
            if isinstance(child, ModuleList) and len(child) == depth:
                return owner, name
    raise RecipeError(
        f"model: {type(base).__name__} has no list of {depth} layers that could be cut; "
        "use memory lora or full, and no model.layers"
    )


def decoder_layers(base: Module) -> Sequence[Module]:
    """The layers of a decoder, bottom up; none where they are not in one list."""
    try:
        owner, name = layer_list(base)
    except RecipeError:
        return []
    return list(getattr(owner, name))


def check_depth(config: Any, layers: int | None) -> None:
    """Refuse to keep more layers than a model has, and one that has none."""
    depth = config.get_text_config().num_hidden_layers
    if depth < 1:
        raise RecipeError(
            f"model: {config.name_or_path}: its config says {depth} layers; fetch it again"
        )
    if layers is not None and layers > depth:
        raise RecipeError(f"model.layers: {layers}, but the model has {depth} layers; lower it")


def keep_layers(model: Any, layers: int) -> None:
    """Keep the lowest ``layers`` of a causal language model, in place; its config follows.

    The rest is as it was: embeddings, what runs after the layers, the head.

    Raises:
        RecipeError: the model has fewer layers, or no list of them.
    """
    check_depth(model.config, layers)
    base = model.base_model
    owner, name = layer_list(base)
    setattr(owner, name, getattr(owner, name)[:layers])
    configs = (c.get_text_config() for c in (model.config, base.config))
    for config in {id(c): c for c in configs}.values():  # one object in most models
        depth = config.num_hidden_layers
        # layer_types, and what else says something about each layer, such as no_rope_layers.
        for key, value in list(vars(config).items()):
            if "layer" in key and isinstance(value, list) and len(value) == depth:
                setattr(config, key, value[:layers])
        config.num_hidden_layers = layers
