"""Registration of the data components, and the check of their files; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit import Component, DataError, Part, RlhfKitError, hookimpl
from rlhf_kit.recipe.walk import parts_of
from rlhf_kit_data import options, project, rankings, records, running_text

_COMPARISONS = frozenset({"comparisons", "prompts"})


@hookimpl
def rlhf_components() -> Iterable[Component]:
    package = "rlhf_kit_data.sources"
    for kind, text in (
        ("prompts", "Prompts, one JSON object a line."),
        ("demonstrations", "Prompts with the responses a person wrote."),
        ("comparisons", "K-way comparisons from a file, by hand or from another tool."),
    ):
        target = f"{package}:{kind.capitalize()}"
        rows = frozenset({kind, "prompts"})
        yield Component("data", kind, target, options.JsonlOptions, text, rows=rows)
    yield Component(
        "data",
        "collected",
        f"{package}:Collected",
        options.CollectedOptions,
        "The comparisons that a collect stage has written.",
        rows=_COMPARISONS,
    )
    yield Component(
        "data",
        "text",
        "rlhf_kit_data.running_text:RunningText",
        options.TextOptions,
        "Running text, for the mix.",
        rows=frozenset({"text"}),
    )
    for name, target, schema, text in (
        ("hh_rlhf", "HHRLHF", options.HHOptions, "Anthropic's helpful and harmless pairs."),
        ("oasst", "Oasst", options.OasstOptions, "Open-Assistant trees: K-way human rankings."),
    ):
        place = f"rlhf_kit_data.published:{target}"
        yield Component("data", name, place, schema, text, rows=_COMPARISONS)


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str | RlhfKitError]:
    """Read every local file a recipe names, so that a bad line is known before a model loads."""
    found: list[project.PlacedRows] = []
    wrong: list[RlhfKitError] = []
    tops = [*recipe.data.values(), *(stage.part for stage in recipe.stages.values())]
    for part in {part.key: part for top in tops for part in parts_of(top)}.values():
        if part.component.target.startswith("rlhf_kit_data."):
            try:
                found += _read(part)
            except RlhfKitError as error:
                wrong.append(error)
    try:
        project.refuse_across(found)
    except RlhfKitError as error:
        wrong.append(error)
    return wrong


def _read(part: Part) -> list[project.PlacedRows]:
    """The rows of a part's file if it is in the project's own form.

    Raises what is wrong with a local file of whatever form; the hub is left alone, and so is what
    a stage of the recipe has yet to write.
    """
    o = part.options
    if isinstance(o, options.JsonlOptions):
        return [project.read_placed(o.path, part.component.name)]
    if isinstance(o, options.CollectedOptions):
        folder = o.start.folder
        return [project.read_placed(folder / project.COLLECTED, "comparisons")] if folder else []
    if isinstance(o, options.TextOptions | options.RankingsOptions) and o.path is not None:
        if not records.exists(o.path):
            key = f"{part.key}.{'path' if isinstance(o, options.TextOptions) else 'source'}"
            raise DataError(f"{o.path}: no such file ({part.where}: {key})")
        if isinstance(o, options.RankingsOptions):
            rankings.local_rankings(part.component.name, o)
        else:
            running_text.documents(o.path)
    return []
