"""A click group that imports a verb's module only when the verb is used."""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from rlhf_kit.errors import Interrupted, RlhfKitError, interruption
from rlhf_kit.file_system import file_error


class LazyGroup(click.Group):
    """A group whose ``commands`` are "package.module:attribute", each with its line of help."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        module, _, attribute = self.lazy[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self.lazy.items()])


@contextmanager
def warnings_in_short() -> Iterator[None]:
    """Warnings as a line for the person watching, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def _left_at_once() -> Iterator[None]:
    """A library that is interrupted may raise an error of its own, which is not meant."""
    try:
        yield
    except Exception as error:
        left = interruption(error)
        if left is None:
            raise
        raise left from None


def _tell(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone; the exit code says it too
        click.echo(line, err=True)


class ErrorGroup(LazyGroup):
    """The outermost group: the only place where an error becomes a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_in_short(), _left_at_once():
                return super().invoke(ctx)
        except RlhfKitError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            word = "stopped" if isinstance(error, Interrupted) else "error"
            for line in str(error).splitlines() or [type(error).__name__]:
                _tell(f"{word}: {line}")
            sys.exit(error.exit_code)
        except KeyboardInterrupt as error:
            where = "".join(f" {note}" for note in vars(error).get("__notes__", ()))
            _tell(f"stopped: interrupted{where}")
            sys.exit(Interrupted.exit_code)
        except OSError as error:
            told = file_error(error)
            if told is None:
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            _tell(f"error: {told}")
            sys.exit(told.exit_code)
