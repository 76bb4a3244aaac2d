"""Registration of the data components, and the check of their files; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit import Component, Part, RlhfKitError, hookimpl
from rlhf_kit_data import options, rankings, rows


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
    for name, target, schema, text in (
        ("hh_rlhf", "HHRLHF", options.HHOptions, "Anthropic's helpful and harmless pairs."),
        ("oasst", "Oasst", options.OasstOptions, "Open-Assistant trees: K-way human rankings."),
    ):
        yield Component("data", name, f"rlhf_kit_data.published:{target}", schema, text)


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str | RlhfKitError]:
    """Read every local file a recipe names, so that a bad line is known before a model loads."""
    for part in recipe.data.values():
        if part.component.target.startswith("rlhf_kit_data."):
            try:
                _read(part)
            except RlhfKitError as error:
                yield error


def _read(part: Part) -> None:
    """Raise what is wrong with the local file of a part, if it has one; the hub is left alone."""
    name, path = part.component.name, getattr(part.options, "path", None)
    published = isinstance(part.options, options.RankingsOptions)
    if path is None:
        return
    if name in rows.KINDS:
        for _ in rows.read_rows(path, name):
            pass
    elif not path.exists():
        key = f"{part.key}.{'source' if published else 'path'}"
        raise rows.DataError(f"{path}: no such file ({part.where}: {key})")
    elif isinstance(part.options, options.RankingsOptions):
        rankings.local_rankings(name, part.options)
