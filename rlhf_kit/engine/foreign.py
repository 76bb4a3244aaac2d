"""Parts that somebody else wrote: what goes wrong in them is told in one line that names them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.errors import PluginError, RlhfKitError
from rlhf_kit.plugins import one_line


@contextmanager
def foreign(who: str) -> Iterator[None]:
    """What is raised inside becomes a PluginError that names ``who``; so does `sys.exit`.

    Errors of ours, want of memory or of space on a disk, and Ctrl-C pass through.
    """
    try:
        yield
    except (RlhfKitError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PluginError(f"{who}: {one_line(error)}") from error


@contextmanager
def untouched(value: Any, name: str, who: str) -> Iterator[None]:
    """Refuse ``who`` when a tensor of ``value`` is written to inside."""
    before = dict(_writes(value, name))
    yield
    for key, count in _writes(value, name):
        if before.get(key) != count:
            raise PluginError(
                f"{who} wrote into {key}, which others read; make a copy first (x.clone())"
            )


def _writes(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """How often each tensor has been written to, by its name."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            yield name, value._version
    elif is_dataclass(value):
        for item in fields(value):
            yield from _writes(getattr(value, item.name), f"{name}.{item.name}")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _writes(each, f"{name}.{key}")


def scalar(x: Any, what: str) -> Tensor:
    """``x``, which must be a tensor of shape [].

    Raises:
        PluginError: it is not; ``what`` says whose it is.
    """
    if not isinstance(x, Tensor) or x.dim():
        shape = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else repr(x)[:60]
        raise PluginError(f"{what} is {shape}; it should be a tensor of shape []")
    return x
