"""A role is one set of weights to compute with: the policy's, the reference's, the reward's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from rlhf_kit.ops.sequence import position_ids


def run_decoder(decoder: Any, mask: Tensor, positions: Tensor | None, **fed: Tensor) -> Tensor:
    """Final hidden states [B, T, H] of a decoder, without a cache.

    Args:
        decoder: the part of a causal language model below its head.
        mask: [B, T] bool, the valid tokens of rows padded on either side; or [B, T, T] bool, which
            token sees which.
        positions: [B, T] int64, with a mask [B, T, T] only.
        fed: ``input_ids`` [B, T], or ``inputs_embeds`` [B, T, H].
    """
    if mask.dim() == 2:
        attention, positions = mask.long(), position_ids(mask)
    else:
        # Four dimensions make transformers add the mask as it is, in the precision of the scores.
        hidden = torch.finfo(decoder.dtype).min
        attention = torch.zeros(mask.shape, dtype=decoder.dtype, device=mask.device)
        attention = attention.masked_fill_(~mask, hidden)[:, None]
    output = decoder(**fed, attention_mask=attention, position_ids=positions, use_cache=False)
    return output.last_hidden_state


class Role(Protocol):
    """What a memory strategy builds; policies and reward models are made of roles."""

    hidden_size: int
    layers: Sequence[Module]  # those of its decoder that are its own, bottom up
    config: Any  # the text configuration of its transformers model

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor,
        trunk: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, H]; ``mask`` and ``positions`` as in ``run_decoder``."""

    def encode(
        self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None
    ) -> Tensor | None:
        """Activations [B, T, H] of the frozen trunk, without gradients; None without a trunk."""

    def head(self, states: Tensor) -> Tensor:
        """[N, H] -> logits [N, V]."""

    def decoding(self) -> AbstractContextManager[Module]:
        """The whole causal language model of this role, to decode with."""

    @property
    def boundary(self) -> Module | None:
        """The module whose input is the trunk's output, if there is a trunk."""

    def parameters(self) -> Iterable[Parameter]:
        """The trainable parameters; none for a frozen role."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...
    def save(self, folder: Path) -> None: ...
