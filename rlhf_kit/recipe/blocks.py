"""Turn one block of a recipe into a Part: find its component, fill its slots, check its options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlhf_kit.components import Component, Options, Part, StageRef, placed
from rlhf_kit.errors import PluginError, RlhfKitError, did_you_mean
from rlhf_kit.option_fields import admits, declared, key_of, laid_over
from rlhf_kit.recipe.document import Document, Place, dotted
from rlhf_kit.recipe.folders import stage_folder
from rlhf_kit.recipe.problems import Problems, in_short, known_keys, unknown_key
from rlhf_kit.recipe.walk import blocks_of
from rlhf_kit.registry import BUILT_IN, Registry, article
from rlhf_kit.seams import DATA, NAMED

_LEAST, _MOST = 2.0**-126, 2.0**127  # that float32 has at full precision

# Stands in for what could not be resolved, so that the options around it are checked all the same.
_STAND_IN = Part(Component("", "", ":"), Options(), "", "", "")
_STAND_IN_REF = StageRef(stage="")


@dataclasses.dataclass
class Scope:
    """What the block being resolved may refer to."""

    data: dict[str, Part | None] = dataclasses.field(default_factory=dict)
    """Named data, None where it is wrong itself."""
    produces: dict[str, str | None] = dataclasses.field(default_factory=dict)
    """What each stage's artifact is, by id in running order; None where the stage is unknown."""
    earlier: list[str] | None = None
    """Ids of the stages that may be named; None where the order is checked later (named data)."""


class Blocks:
    """Resolves blocks, collecting problems instead of stopping at the first."""

    def __init__(self, document: Document, registry: Registry, problems: Problems) -> None:
        self.document = document
        self.registry = registry
        self.problems = problems
        self.scope = Scope()
        self._around: list[tuple[Component, str]] = []  # with their packages, the innermost last

    def part(self, seam: str, block: Any, place: Place, default: str | None = None) -> Part | None:
        """Resolve one block, or the bare name of a component. None when it has a problem."""
        before = len(self.problems)
        found = self.component(seam, block, place, default)
        if found is None:
            return None
        component, package = found
        values = {k: v for k, v in block.items() if k != "use"} if isinstance(block, dict) else {}
        self._around.append(found)
        options = self._options(component, values, place)
        self._around.pop()
        if options is None or len(self.problems) > before:
            return None
        return Part(component, options, package, dotted(place), self.document.where(place))

    def component(
        self, seam: str, block: Any, place: Place, default: str | None = None
    ) -> tuple[Component, str] | None:
        """Find the component of a block and the package it is from."""
        spelled_out = isinstance(block, dict)
        if not spelled_out and not isinstance(block, str):
            self.problems.add(
                place,
                f"is {in_short(block)}; should be the name of {article(seam)}, "
                "or a block with `use:`",
            )
            return None
        name = block.get("use", default) if spelled_out else block
        at = (*place, "use") if spelled_out and "use" in block else place
        if name is None:
            self.problems.add(
                place, f"names no component; add `use:` ({self.registry.known(seam)})"
            )
            return None
        if not isinstance(name, str):
            self.problems.add(at, f"is {in_short(name)}; should be the name of {article(seam)}")
            return None
        named = not spelled_out or "use" in block
        written = named and _writes(self.document.values, at)
        # A default means what its author meant, whoever else offers the name.
        mine = () if written else (*(package for _, package in self._around[-1:]), BUILT_IN)
        try:
            found = self.registry.find(seam, name, self.document.where(at), dotted(at), mine)
        except RlhfKitError as error:
            if seam in NAMED and name in self.scope.data and spelled_out:
                self.problems.add(
                    at, f"{name!r} is an entry of data:; set its options there, under data.{name}"
                )
            else:
                self.problems.add_error(error, at)
            return None
        if not written and any(found[0] is component for component, _ in self._around):
            self.problems.add(
                place,
                f"its default is {seam} {name!r}, which has this slot itself, without end; write "
                "which component it is to be",
            )
            return None
        return found

    def _options(self, component: Component, block: dict[str, Any], place: Place) -> Options | None:
        model = component.options
        before = len(self.problems)
        values = self._values(model, block, {}, place)
        try:
            options = model.model_validate(values, context={"base": self.document.base})
            if len(self.problems) == before:  # else what decides may be a stand-in
                self._refuse_idle(options, block, place)
                before = len(self.problems)
                self._refuse_numbers(options, place)
                if len(self.problems) == before:  # else a sum of them could be anything
                    self._refuse_problems(options, place)
            return options
        except ValidationError as error:
            self.problems.add_invalid(error, model, values, place)
        except RlhfKitError as error:
            self.problems.add(place, str(error))
        except (Exception, SystemExit) as error:
            if len(self.problems) == before:  # else a validator may have met a stand-in
                self.problems.add_error(
                    PluginError(
                        f"{self.document.where(place)}: {dotted(place)}: the options of "
                        f"{component.seam} {component.name!r} raised "
                        f"{type(error).__name__}: {error}"
                    ),
                    place,
                )
        return None

    def _values(
        self,
        model: type[BaseModel],
        written: Mapping[str, Any],
        default: Mapping[str, Any],
        place: Place,
    ) -> dict[str, Any]:
        """``written`` over ``default``, with every slot and reference in it filled, at any depth.

        What nothing knows is said and left out.
        """
        written = dict(written)
        if model.model_config.get("extra") == "forbid":
            known = known_keys(model)
            for key in [key for key in written if key not in known]:
                self.problems.add((*place, key), unknown_key(key, known))
                del written[key]
        values, below = laid_over(model, written, default)
        for name, field in model.model_fields.items():
            self._fill(values, key_of(name, field), field, place)
        for key, inner in below.items():
            at = (*place, key)
            values[key] = self._values(inner.model, inner.written, inner.default, at)
        return values

    def _refuse_idle(self, options: Options, block: dict[str, Any], place: Place) -> None:
        """Refuse what ``block`` writes and, as it is set up, nothing reads."""
        for inside, inner in blocks_of(options):
            if not isinstance(inner, Options):
                continue
            for key, why in inner.idle().items():
                at = (*inside, *key.split("."))
                if _writes(block, at):
                    cause, _, remedy = why.partition("; ")
                    ways = f"remove it, or {remedy}" if remedy else "remove it"
                    self.problems.add((*place, *at), f"nothing reads it: {cause}; {ways}")

    def _refuse_problems(self, options: Options, place: Place) -> None:
        """Refuse options that do not go together."""
        for inside, inner in blocks_of(options):
            if isinstance(inner, Options):
                for key, what in inner.problems().items():
                    self.problems.add((*place, *inside, *key.split(".")), what)

    def _refuse_numbers(self, options: Options, place: Place) -> None:
        """Refuse numbers that no tensor of the run could hold."""
        for inside, inner in blocks_of(options):
            for name, field in type(inner).model_fields.items():
                for at, number in _numbers(getattr(inner, name), (*inside, key_of(name, field))):
                    if isinstance(number, int):
                        fits, what = abs(number) < 2**63, "of 64 bits"
                    else:
                        size = abs(number)
                        fits, what = size == 0 or _LEAST <= size <= _MOST, "that float32 can hold"
                    if not fits:
                        self.problems.add((*place, *at), f"is {number}; should be a number {what}")

    def _fill(self, values: dict[str, Any], key: str, field: FieldInfo, place: Place) -> None:
        """Replace the value of a slot by Parts, and of a stage reference by a StageRef."""
        extra = declared(field)
        at = (*place, key)
        if "produces" in extra and admits(field, dict):
            if isinstance(values.get(key), dict):
                values[key] = {
                    name: self._ref(value, str(extra["produces"]), (*at, name))
                    for name, value in values[key].items()
                }
        elif "produces" in extra:
            if key in values and not (values[key] is None and admits(field, type(None))):
                values[key] = self._ref(values[key], str(extra["produces"]), at)
        elif "seam" in extra and admits(field, dict):
            if isinstance(values.get(key), dict):
                seam = str(extra["seam"])
                values[key] = {
                    name: self._slot(seam, block, (*at, name)) or _STAND_IN
                    for name, block in values[key].items()
                }
        elif "seam" in extra:
            use = extra.get("use")
            default = str(use) if use is not None else None
            if key in values and values[key] is None:
                if not admits(field, type(None)):
                    self.problems.add(
                        at, f"is null; should be the name of {article(str(extra['seam']))}"
                    )
                    values[key] = _STAND_IN
            elif key in values or default is not None:
                # A data slot's default is an entry of `data:`, as a bare word in it would be.
                block = values.get(key, default if extra["seam"] in NAMED else {})
                part = self._slot(str(extra["seam"]), block, at, default)
                if part is not None:
                    self._refuse_rows(part, extra.get("rows"), at)
                values[key] = part or _STAND_IN
            elif admits(field, type(None)):
                values[key] = None
            else:
                self.problems.add(
                    at,
                    f"missing; {field.description} ({self.registry.known(str(extra['seam']))})",
                )
                values[key] = _STAND_IN

    def _slot(self, seam: str, block: Any, at: Place, default: str | None = None) -> Part | None:
        if seam in NAMED and isinstance(block, str):
            return self._named(block, at)
        return self.part(seam, block, at, default)

    def _refuse_rows(self, part: Part, rows: object, at: Place) -> None:
        """Refuse data whose rows are not those that a slot reads."""
        given = part.component.rows
        if not rows or not given or rows in given:
            return
        offers = [c for _, _, c in self.registry.all() if c.seam == part.component.seam]
        fit = sorted({c.name for c in offers if rows in c.rows})
        self.problems.add(
            at,
            f"{part.component.name!r} gives {' and '.join(sorted(given))}, not {rows}; data that "
            f"{'fits' if len(fit) == 1 else 'fit'}: {', '.join(fit) or 'none'}",
        )

    def _named(self, name: str, at: Place) -> Part | None:
        """A data slot's bare word is an entry of the recipe's top-level ``data:``."""
        if name in self.scope.data:
            return self.scope.data[name]
        if name in (self.document.values.get("data") or {}):
            self.problems.add(at, f"data.{name} is written below; move it above this entry")
            return None
        entries = list(self.scope.data)
        what = f"{name!r} is no entry of data:{did_you_mean(name, entries)}"
        what += f"; entries: {', '.join(entries) or 'none'}"
        if name.rpartition("/")[2] in self.registry.names(DATA):
            what += f"; for the component write {{use: {name}, ...}}"
        self.problems.add(at, what)
        return None

    def _ref(self, value: Any, produces: str, at: Place) -> StageRef:
        if not isinstance(value, str) or not value:
            self.problems.add(
                at, f"is {in_short(value)}; should be the id of an earlier stage, or a folder"
            )
            return _STAND_IN_REF
        if "/" in value or os.sep in value or value.startswith("."):
            try:
                folder = placed(value, self.document.base)
                return StageRef(folder=stage_folder(folder, produces))
            except (RlhfKitError, ValueError) as error:
                self.problems.add(at, str(error))
                return _STAND_IN_REF
        what = self._wrong_stage(value, produces)
        if what is None:
            return StageRef(stage=value)
        self.problems.add(at, what)
        return _STAND_IN_REF

    def _wrong_stage(self, name: str, produces: str) -> str | None:
        stages, earlier = self.scope.produces, self.scope.earlier
        above = list(stages) if earlier is None else earlier
        fit = f"stages that fit: {', '.join(s for s in above if stages[s] == produces) or 'none'}"
        if name not in stages:
            return (
                f"{name!r} names no stage{did_you_mean(name, above)}; {fit}; "
                f"a folder is written with a slash, as in ./{name}"
            )
        if name not in above:
            return f"{name!r} is not an earlier stage; it must come above this one; {fit}"
        made = stages[name]
        if made is not None and made != produces:
            has = f"produces {made}" if made else "produces nothing to start from"
            return f"stage {name!r} {has}, not {produces}; {fit}"
        return None


def _numbers(value: Any, place: Place) -> Iterator[tuple[Place, int | float]]:
    """The numbers in an option's value; a block or part in it has options of its own."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, (*place, str(index)))


def _writes(block: Any, place: Place) -> bool:
    """Whether ``block`` has something written at ``place``."""
    for key in place:
        if isinstance(block, list) and key.isdigit():
            block = block[int(key)]
        elif isinstance(block, dict) and key in block:
            block = block[key]
        else:
            return False
    return True
