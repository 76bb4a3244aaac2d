"""Whatever has state says so; what does not is lost on resume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.nn import Parameter


@runtime_checkable
class Stateful(Protocol):
    """State as plain data and tensors, so that a checkpoint loads with ``weights_only=True``.

    As in torch, the tensors of a ``state_dict`` are the live ones: copy them to keep them.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@runtime_checkable
class Trainable(Stateful, Protocol):
    """Something an optimizer updates and a stage saves."""

    def parameters(self) -> Iterable[Parameter]:
        """The parameters to train, and only those."""

    def save(self, folder: Path) -> None:
        """Write weights as safetensors into ``folder``, for a later stage to start from."""
