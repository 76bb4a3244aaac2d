"""Registration of the data components, and the check of their files; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit import Component, RlhfKitError, hookimpl
from rlhf_kit_data import options, rows


@hookimpl
def rlhf_components() -> Iterable[Component]:
    package = "rlhf_kit_data.sources"
    for kind, text in (
        ("prompts", "Prompts, one JSON object a line."),
        ("demonstrations", "Prompts with the responses a person wrote."),
        ("comparisons", "K-way comparisons from a file, by hand or from another tool."),
    ):
        target = f"{package}:{kind.capitalize()}"
        yield Component("data", kind, target, options.JsonlOptions, text)
    yield Component(
        "data",
        "collected",
        f"{package}:Collected",
        options.CollectedOptions,
        "The comparisons that a collect stage has written.",
    )
    yield Component(
        "data",
        "text",
        f"{package}:RunningText",
        options.TextOptions,
        "Running text, for the mix.",
    )


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str | RlhfKitError]:
    """Read every JSONL file a recipe names, so that a bad line is known before a model loads."""
    for part in recipe.data.values():
        path = getattr(part.options, "path", None)
        if part.component.target.startswith("rlhf_kit_data.") and path is not None:
            try:
                if part.component.name in rows.KINDS:
                    for _ in rows.read_rows(path, part.component.name):
                        pass
                elif not path.is_file():
                    yield rows.DataError(f"{path}: no such file ({part.where}: {part.key}.path)")
            except RlhfKitError as error:
                yield error
