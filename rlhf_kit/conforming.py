"""Whether an object is what its seam promises: every member there, every method callable as it is.

Read from the interface itself, by names and signatures; nothing is called.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import SEAMS, Stateful

_ABSENT: Any = object()


def refuse_unlike(built: object, interface: Any, who: object) -> None:
    """Refuse ``built`` where something of ``interface`` is missing, or takes other arguments.

    Args:
        built: any object.
        interface: a protocol, a class to inherit from, or a union: one of them is enough.
        who: whose it is, for the message.

    Raises:
        PluginError: what is missing, and what should be there.
    """
    kinds = _kinds(interface)
    # Of a union the one that it has least to go to; of two that it is, the one of more members.
    there = {kind: [_has(built, name) for name in _members(kind)] for kind in kinds}
    kind = max(kinds, key=lambda kind: (-there[kind].count(False), len(there[kind])))
    wrong = [*_wrong(built, kind), *_half(built)]
    if wrong:
        raise PluginError(
            f"{who}: {type(built).__name__} {wrong[0]}; {kind.__name__} has {_outline(kind)}"
        )


def refuse_unlike_seam(built: object, seam: str, who: object) -> None:
    """The same for what a component of ``seam`` has built; of a stranger's seam nothing is known.

    Raises:
        PluginError: it is not what the seam promises.
    """
    interface = SEAMS.get(seam, object)
    if built is None:
        raise PluginError(
            f"{who}: its target returned None; it should return {_article(interface)}"
        )
    refuse_unlike(built, interface, who)


def _article(interface: Any) -> str:
    names = [kind.__name__ for kind in _kinds(interface)]
    return f"the {' or '.join(names)}" if interface is not object else "what was built"


def _kinds(interface: Any) -> list[Any]:
    """The classes of a union, without their parameters."""
    if typing.get_origin(interface) in (typing.Union, types.UnionType):
        return [kind for item in typing.get_args(interface) for kind in _kinds(item)]
    return [typing.get_origin(interface) or interface]


def _members(kind: type) -> dict[str, Any]:
    """name -> the function or property that declares it; None of a plain attribute."""
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        if owner in (object, typing.Protocol, typing.Generic):
            continue
        names = dict.fromkeys(inspect.get_annotations(owner)) | vars(owner)
        found |= {n: x for n, x in names.items() if n == "__call__" or not n.startswith("_")}
    return found


def _has(built: object, name: str) -> bool:
    return _found(built, name) is not _ABSENT


def _found(built: object, name: str) -> Any:
    """What stands under ``name``, without computing a property."""
    if name == "__call__":
        return built if callable(built) else _ABSENT
    try:
        return inspect.getattr_static(built, name)
    except AttributeError:
        pass
    try:
        return getattr(built, name)  # one that is passed on to another object
    except Exception:
        return _ABSENT


def _wrong(built: object, kind: type) -> Iterator[str]:
    """What keeps ``built`` from being a ``kind``, in words."""
    if not _is_protocol(kind) and not isinstance(built, kind):
        yield f"is no {kind.__name__}, which it should subclass"
        return
    for name, declared in _members(kind).items():
        if not _has(built, name):
            yield f"lacks {_shown(name, declared)}"
        elif inspect.isfunction(declared):
            yield from _misfits(built, name, declared)


def _is_protocol(kind: type) -> bool:
    return kind is object or typing.Protocol in kind.__bases__


def _misfits(built: object, name: str, declared: Any) -> Iterator[str]:
    """Of a method that cannot be called as it will be."""
    try:
        method = built if name == "__call__" else getattr(built, name)
    except Exception as error:
        yield f"has a {name} that raises {type(error).__name__}: {error}"
        return
    if not callable(method):
        yield f"has a {name} that is {type(method).__name__}; it should be a method"
        return
    try:
        # A wrapper that gives an argument itself has the parameters that count.
        signature = inspect.signature(method, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # written in C: not known
    asked = list(inspect.signature(declared).parameters.values())[1:]
    by_name = {p.name: None for p in asked if p.kind is p.KEYWORD_ONLY}
    by_place = [None for p in asked if p.kind is not p.KEYWORD_ONLY]
    try:
        signature.bind(*by_place, **by_name)
    except TypeError as error:
        yield f"has {name}{_plain(signature)}, called as {_shown(name, declared)}: {error}"


def _half(built: object) -> Iterator[str]:
    """Of what has state and cannot be saved, or cannot be restored: it would be lost unseen."""
    has = {name: _has(built, name) for name in _members(Stateful)}
    if any(has.values()):
        yield from (
            f"has state that would be lost: it lacks {name}"
            for name, there in has.items()
            if not there
        )


def _plain(signature: inspect.Signature) -> str:
    """The parameters by name alone."""
    return f"({', '.join(map(_parameter, signature.parameters.values()))})"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = (parameter.kind is parameter.VAR_POSITIONAL) + 2 * (
        parameter.kind is parameter.VAR_KEYWORD
    )
    name = "*" * stars + parameter.name
    return name if parameter.default is parameter.empty else f"{name}=..."


def _shown(name: str, declared: Any) -> str:
    if not inspect.isfunction(declared):
        return name
    signature = inspect.signature(declared)
    own = list(signature.parameters.values())[1:]
    return name + _plain(signature.replace(parameters=own))


def _outline(kind: type) -> str:
    return ", ".join(_shown(name, declared) for name, declared in _members(kind).items())
