"""Observers for tests, each in a plugin file of its own."""

from __future__ import annotations

import textwrap
from pathlib import Path

_PLUGIN = """\
from rlhf_kit import Component, hookimpl
from rlhf_kit.interfaces import Observer


class Watcher(Observer):
    def __init__(self, options):
        pass

{events}

@hookimpl
def rlhf_components():
    return [Component("observer", "{name}", "{name}:Watcher")]
"""


def write_watcher(path: Path, events: str) -> str:
    """Write an observer with the methods ``events``; the override that puts it into a recipe.

    It is named as its file is.
    """
    indented = textwrap.indent(textwrap.dedent(events), "    ")
    path.write_text(_PLUGIN.format(events=indented, name=path.stem))
    return f"observers.{path.stem}.use={path.stem}"
