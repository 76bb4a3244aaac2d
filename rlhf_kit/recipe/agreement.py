"""Whether weights can go from one stage to another: what their model and memory blocks agree on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_kit.components import Part, StageRef
from rlhf_kit.option_fields import declared, key_of
from rlhf_kit.recipe.document import Place
from rlhf_kit.recipe.dump import plain
from rlhf_kit.recipe.problems import Problems
from rlhf_kit.recipe.schema import Recipe, StageBlock
from rlhf_kit.recipe.walk import blocks_of, parts_of
from rlhf_kit.seams import OWN


@dataclass(frozen=True)
class LoadedRef:
    """A reference whose weights a stage loads."""

    place: Place  # ("stages", "ppo", "from")
    ref: StageRef
    own: bool  # into the stage's own memory; else into that of whoever trained them


def loaded_refs(stage: StageBlock) -> Iterator[LoadedRef]:
    """A stage's references that are declared with ``loads_into``, in its blocks and slots too."""
    for part in parts_of(stage.part):
        for place, block in blocks_of(part.options, tuple(part.key.split("."))):
            for name, field in type(block).model_fields.items():
                into, value = declared(field).get("loads_into"), getattr(block, name)
                if into is None:
                    continue
                at = (*place, key_of(name, field))
                if isinstance(value, StageRef):
                    yield LoadedRef(at, value, into == "own")
                elif isinstance(value, dict):
                    for word, ref in value.items():
                        yield LoadedRef((*at, word), ref, into == "own")


def bound(part: Part) -> dict[str, Any]:
    """What must be the same for one block to load what another has trained."""
    keys = {"use", *part.options.binds()}
    return {key: value for key, value in plain(part).items() if key in keys}


def refuse_disagreement(recipe: Recipe, problems: Problems) -> None:
    """Refuse a stage that starts from weights which its own memory cannot load.

    It would fail when it begins, after the stages before it have run.
    """
    for stage in recipe.stages.values():
        for loaded in loaded_refs(stage):
            if not loaded.own or loaded.ref.stage is None:
                continue
            blocks = zip(
                recipe.model_and_memory(stage.id),
                recipe.model_and_memory(loaded.ref.stage),
                strict=True,
            )
            for seam, (own, other) in zip(OWN, blocks, strict=True):
                here, there = bound(own), bound(other)
                if here == there:
                    continue
                key = next(k for k in (*there, *here) if here.get(k) != there.get(k))
                problems.add(
                    loaded.place,
                    f"{loaded.ref} trains another {seam} than this stage's own: {key} "
                    f"{there.get(key)!r}, and here {here.get(key)!r}; give both the same {seam} "
                    f"block, or remove one of `{loaded.place[-1]}` and `{seam}`",
                )
