"""Where a built part comes from: its component, its package, its line in the recipe. Torch-free."""

from __future__ import annotations

import importlib.metadata
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from rlhf_kit.components import Part

T = TypeVar("T")


class Kept:
    """Objects that are kept alive since nothing can refer to them weakly, until they are dropped.

    Entered, it takes what becomes known meanwhile; the innermost does.
    """

    _entered: ClassVar[list[Kept]] = []

    def __init__(self) -> None:
        self._entries: list[tuple[dict[int, Any], int]] = []

    def __enter__(self) -> None:
        self._entered.append(self)

    def __exit__(self, *error: object) -> None:
        self._entered.pop()

    @classmethod
    def take(cls, known: dict[int, Any], key: int) -> None:
        if cls._entered:
            cls._entered[-1]._entries.append((known, key))

    def drop(self) -> None:
        for known, key in self._entries:
            known.pop(key, None)
        self._entries.clear()


class ByIdentity(Generic[T]):
    """What is known of single objects, whatever their ``==`` and hash, as long as they live.

    What cannot be referred to weakly, such as an object with ``__slots__``, is kept alive (Kept).
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Callable[[], Any], T]] = {}

    def get(self, object_: object) -> T | None:
        entry = self._known.get(id(object_))
        return entry[1] if entry is not None and entry[0]() is object_ else None

    def add(self, object_: object, value: T) -> None:
        """Of what is known already the first stays."""
        if self.get(object_) is not None:
            return
        key = id(object_)
        alive: Callable[[], Any]
        try:
            alive = weakref.ref(object_, lambda _: self._known.pop(key, None))
        except TypeError:
            alive = lambda: object_  # noqa: E731
            Kept.take(self._known, key)
        self._known[key] = (alive, value)


_PARTS: ByIdentity[Part] = ByIdentity()


def remember(built: object, part: Part) -> None:
    """``built`` is what ``part`` describes. A part that gives another one's object is not asked."""
    _PARTS.add(built, part)


class Whose:
    """How a message names a part: "toy.yaml:7: stages.ppo.reward: reward 'x' of package 'y'".

    Made for every call and put into words only for a message.

    Args:
        built: what a part described, or any other object.
        otherwise: its name, where no recipe had it built.
        what: of it, such as "observe".
    """

    __slots__ = ("_built", "_otherwise", "_what")

    def __init__(self, built: object, otherwise: str, what: str = "") -> None:
        self._built, self._otherwise, self._what = built, otherwise, what

    def __str__(self) -> str:
        part = _PARTS.get(self._built)
        name = self._otherwise if part is None else named(part)
        return f"{name}: {self._what}" if self._what else name


def named(part: Part) -> str:
    """A part with its line in the recipe, its component and the package that it is from."""
    component, package = part.component, part.package
    try:
        package = f"{package!r} {importlib.metadata.version(package)}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        package = repr(package)  # a single file has no version
    return f"{part.where}: {part.key}: {component.seam} {component.name!r} of package {package}"
