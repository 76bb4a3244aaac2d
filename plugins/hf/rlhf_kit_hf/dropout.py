"""Residual dropout for any decoder, without a change to its code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import dropout

from rlhf_kit.errors import RecipeError

# What a layer adds to the residual stream comes out of these children.
_BRANCHES = ("self_attn", "attn", "attention", "mlp", "feed_forward", "fc2")


def add_residual_dropout(layers: Sequence[Module], probability: float) -> None:
    """Drop what each sublayer adds to the residual stream, in forward passes that need gradients.

    Where a layer normalises a sublayer's output before adding it (Gemma 2), the dropout comes
    before that norm.

    Models here stay in evaluation mode, which switches off every dropout of their own; passes
    under ``no_grad`` (validation, sampling) stay exact.

    Raises:
        RecipeError: a layer whose two sublayers cannot be told.
    """

    def hook(module: Module, args: tuple[Any, ...], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        if isinstance(output, Tensor):
            return dropout(output, probability)
        return (dropout(output[0], probability), *output[1:])

    if not layers:
        raise RecipeError("residual_dropout: the model's layers cannot be told; set it to 0")
    for layer in layers:
        branches = [child for name, child in layer.named_children() if name in _BRANCHES]
        if len(branches) != 2:
            raise RecipeError(
                f"residual_dropout: {type(layer).__name__} has no attention and feed-forward "
                f"children of a known name ({', '.join(_BRANCHES)}); set it to 0"
            )
        for branch in branches:
            branch.register_forward_hook(hook)
