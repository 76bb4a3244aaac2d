"""What a context hands out stays what it is, guarded."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest

from rlhf_kit.conforming import refuse_unlike
from rlhf_kit.engine.guarded import GuardedSource, guarded_data
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import DropsRows, Loss


class Rows:
    ready = True

    def split(self, name: str) -> list[dict[str, Any]]:
        return [{"prompt": name}]

    def fingerprint(self) -> str:
        return "rows"


class Dropping(Rows):
    @property
    def dropped(self) -> dict[str, int]:
        return {"too long": 3}


def test_data_that_drop_rows_say_so_by_their_class() -> None:
    """Python 3.12 asks with `inspect.getattr_static`, which calls no `__getattr__`."""
    guard = guarded_data(Dropping())
    inspect.getattr_static(guard, "dropped")
    assert isinstance(guard, DropsRows) and dict(guard.dropped) == {"too long": 3}
    assert not isinstance(guarded_data(Rows()), DropsRows)


def test_a_fingerprint_may_hold_a_path() -> None:
    class Source:
        def fingerprint(self) -> dict[str, Any]:
            return {"weights": Path("/weights")}

    assert GuardedSource(Source()).fingerprint() == {"weights": Path("/weights")}


def injecting(method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self, "given", *arguments, **named)

    return call


def test_a_decorator_may_give_an_argument() -> None:
    class Wrapped:
        @injecting
        def count(self, given: str, units: Any) -> Any: ...

        @injecting
        def __call__(self, given: str, inputs: Any) -> Any: ...

    refuse_unlike(Wrapped(), Loss, "it")


def test_a_wrapper_that_takes_too_little_is_refused() -> None:
    def narrow(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any) -> Any: ...

        return call

    class Wrapped:
        @narrow
        def count(self, units: Any) -> Any: ...

        def __call__(self, inputs: Any) -> Any: ...

    with pytest.raises(PluginError, match=r"has count\(\), called as count\(units\)"):
        refuse_unlike(Wrapped(), Loss, "it")
