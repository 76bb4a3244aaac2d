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
from rlhf_kit.types import PaddedTrunk, TrunkId


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


def refuse_foreign(trunk: PaddedTrunk | None, origin: TrunkId | None) -> None:
    """Check what a role that continues the trunk ``origin``, None: no trunk, was given to read.

    Raises:
        ValueError: activations of another origin; they mean nothing to it.
    """
    if trunk is not None and trunk.origin != origin:
        reads = "has no trunk" if origin is None else f"continues {origin}"
        raise ValueError(
            f"trunk: a role that {reads} was given activations of {trunk.origin}; leave them out "
            "(Samples.read_by, or trunk=None), and it reads the tokens"
        )


class Role(Protocol):
    """What a memory strategy builds; policies and reward models are made of roles."""

    @property
    def origin(self) -> TrunkId | None:
        """Of the trunk that it continues and shares; None: it computes every layer itself."""

    hidden_size: int
    layers: Sequence[Module]  # those of its decoder that are its own, bottom up
    config: Any  # the text configuration of its transformers model

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor,
        trunk: PaddedTrunk | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, H]; ``mask`` and ``positions`` as in ``run_decoder``.

        Raises:
            ValueError: ``trunk`` is of another origin.
        """

    def encode(
        self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None
    ) -> PaddedTrunk | None:
        """Activations of the frozen trunk, without gradients; None without a trunk."""

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
