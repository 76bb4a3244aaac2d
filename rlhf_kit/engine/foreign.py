"""Parts that somebody else wrote: what goes wrong in them is told in one line that names them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.errors import NumericsError, PluginError, RlhfKitError
from rlhf_kit.origins import ByIdentity
from rlhf_kit.plugins import one_line

# Larger tensors are looked after by their version counters alone: a copy would cost memory.
_COPIED = 2**20

_MET: ByIdentity[bool] = ByIdentity()


class foreign:
    """What is raised inside becomes a PluginError that names ``who``; so does `sys.exit`.

    Errors of ours, want of memory or of space on a disk, and Ctrl-C pass through.
    """

    __slots__ = ("_who",)

    def __init__(self, who: object) -> None:
        self._who = who

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, RlhfKitError | MemoryError | torch.OutOfMemoryError):
            return
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        if isinstance(error, Exception | SystemExit):
            raise PluginError(f"{self._who}: {one_line(error)}") from error


def first_call(part: object) -> bool:
    """Whether this is asked of ``part`` for the first time."""
    met = _MET.get(part) is not None
    _MET.add(part, True)
    return not met


class untouched:
    """Refuse ``who`` when something of ``value`` is written to inside.

    A tensor tells by its version counter, which costs nothing next to what is done with it.

    Args:
        value: a tensor, a dataclass or a mapping.
        name: what a message calls it.
        who: whose call it is.
        closely: compare rows and the content of tensors too, as at a first call: a write through
            ``numpy`` counts nowhere.
    """

    __slots__ = ("_before", "_copies", "_name", "_tensors", "_value", "_who")

    def __init__(self, value: Any, name: str, who: object, closely: bool = False) -> None:
        self._value, self._name, self._who = value, name, who
        self._tensors = _tensors(value)
        self._before = list(map(_version, self._tensors))
        self._copies = dict(_copied_leaves(value, name)) if closely else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        if self._before != list(map(_version, self._tensors)):
            self._refuse(next(self._written(), self._name))
        if self._copies is not None:
            now = dict(_leaves(self._value, self._name))
            for key, old in self._copies.items():
                if not _same(old, now.get(key)):
                    self._refuse(key)

    def _written(self) -> Iterator[str]:
        """The names of the tensors that have been written to."""
        pairs = zip(self._tensors, self._before, strict=True)
        changed = {id(x) for x, before in pairs if x._version != before}
        return (key for key, x in _leaves(self._value, self._name) if id(x) in changed)

    def _refuse(self, what: str) -> None:
        raise PluginError(
            f"{self._who} wrote into {what}, which others read; make a copy first (x.clone())"
        )


_version = attrgetter("_version")


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass; nothing of another class."""
    return tuple(item.name for item in fields(kind)) if is_dataclass(kind) else ()


@cache
def _parts(kind: Any) -> Callable[[Any], Iterable[Any]] | None:
    """How to get all that is in an object of a class; None where there is nothing to look for."""
    names = _fields(kind)
    if len(names) > 1:
        return attrgetter(*names)
    if names:
        return lambda value: (getattr(value, names[0]),)
    return (lambda value: value.values()) if issubclass(kind, Mapping) else None


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in ``value`` that counts how often it is written to."""
    found: list[Tensor] = []
    todo = [value]
    for x in todo:
        if isinstance(x, Tensor):
            if not x.is_inference():
                found.append(x)
        elif parts := _parts(x.__class__):
            todo.extend(parts(x))
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors and rows by their names."""
    names = _fields(value.__class__)
    for key in names:
        yield from _leaves(getattr(value, key), f"{name}.{key}")
    if names:
        return
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}")
    elif isinstance(value, Tensor | list | tuple):
        yield name, value


def _copied_leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, x in _leaves(value, name):
        if not isinstance(x, Tensor):
            yield key, _copied(x)
        elif x.numel() <= _COPIED:
            yield key, x.detach().clone()


def _copied(value: Any) -> Any:
    """Rows as they are now: containers anew, what is in them as it is."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        if not isinstance(new, Tensor) or old.shape != new.shape or old.dtype != new.dtype:
            return False
        return torch.equal(old, new) or bool(((old == new) | ((old != old) & (new != new))).all())
    if isinstance(old, dict):
        return isinstance(new, Mapping) and (
            old.keys() == new.keys() and all(_same(x, new[key]) for key, x in old.items())
        )
    if isinstance(old, list):
        return isinstance(new, list | tuple) and (
            len(old) == len(new) and all(map(_same, old, new))
        )
    return old is new or (isinstance(old, str | int | float) and bool(old == new))


def scalar(x: Any, who: object, what: str = "") -> Tensor:
    """``x``, which must be a tensor of shape [].

    Raises:
        PluginError: it is not; ``who`` and ``what`` say whose it is.
    """
    if not isinstance(x, Tensor) or x.dim():
        name = f"{who}: {what}" if what else str(who)
        raise PluginError(f"{name} is {shape_of(x)}; it should be a tensor of shape []")
    return x


def shape_of(x: Any) -> str:
    """What stands where a tensor should, for a message."""
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else in_words(x)


def in_words(x: Any) -> str:
    """Anything in a part of a line."""
    return " ".join(repr(x).split())[:60]


def like(x: Any, places: Tensor, who: object, what: str, *, finite: bool = True) -> Tensor:
    """``x``, which must be a tensor of the shape of ``places``, and ``finite`` where that is True.

    Raises:
        PluginError: it has another shape.
        NumericsError: it is not finite.
    """
    if not isinstance(x, Tensor) or x.shape != places.shape:
        raise PluginError(
            f"{who}: {what} {shape_of(x)}; it should be a tensor of shape {list(places.shape)}"
        )
    bad = (~torch.isfinite(x) & places.to(x.device)).nonzero().tolist() if finite else ()
    if bad:
        raise NumericsError(f"{who}: {what} {x[tuple(bad[0])].item()} at {bad[0]}; not finite")
    return x
