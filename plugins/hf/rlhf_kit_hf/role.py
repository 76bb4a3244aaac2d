"""A role is one set of weights to compute with: the policy's, the reference's, the reward's."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.nn import Module, Parameter


class Role(Protocol):
    """What a memory strategy builds; policies and reward models are made of roles."""

    hidden_size: int

    def hidden(self, tokens: Tensor, mask: Tensor, trunk: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, H]; rows may be padded on either side."""

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor | None:
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
