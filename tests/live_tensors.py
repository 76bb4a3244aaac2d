"""Counting the memory of tensors that are really there."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Inside, ``bytes`` is what tensors made inside hold now, and ``peak`` the most they held."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in inputs or key in self._seen:
                continue
            self._seen[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.bytes)
        return found

    def _gone(self, key: int) -> None:
        self.bytes -= self._seen.pop(key, 0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def activation_bytes(width: int) -> int:
    """What is held by activations, tensors [B, T, width], and by an Activations."""
    gc.collect()
    held: dict[int, int] = {}
    for found in gc.get_objects():
        if isinstance(found, Tensor):
            tensors = [found] if found.dim() == 3 and found.shape[2] == width else []
        else:
            tensors = list(found.rows) if type(found).__name__ == "Activations" else []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


SEEN: list[tuple[int, int]] = []  # of each call of a WITNESS: how many responses, and bytes held

WITNESS = """
import live_tensors

def reward(responses):
    live_tensors.SEEN.append((len(responses), live_tensors.activation_bytes({width})))
    return [sum(map(ord, text)) % 101 / 101 for text in responses]
"""  # a reward that looks around
