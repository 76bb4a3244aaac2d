"""One check for tensor shapes, used on public entry points."""

from __future__ import annotations

from torch import Tensor


def check_shape(tensor: Tensor, legend: str, name: str, **sizes: int) -> dict[str, int]:
    """Check ``tensor`` against a legend such as "B R" and return the sizes it binds.

    Args:
        tensor: any tensor.
        legend: dimension names separated by spaces; "" for a scalar.
        name: what to call the tensor in the error.
        sizes: sizes already bound by other tensors, for example ``B=4``.

    Raises:
        ValueError: wrong rank, or a dimension that differs from an already bound size.
    """
    names = legend.split()
    if tensor.dim() != len(names):
        raise ValueError(f"{name}: expected [{', '.join(names)}], got shape {list(tensor.shape)}")
    bound = dict(sizes)
    for dim, size in zip(names, tensor.shape, strict=True):
        if bound.setdefault(dim, size) != size:
            raise ValueError(
                f"{name}: expected [{', '.join(names)}] with {dim}={bound[dim]}, "
                f"got shape {list(tensor.shape)}"
            )
    return bound
