"""What a plugin declares: components, their options, and the slots that hold other components.

Nothing here imports torch, so that a recipe can be checked in a fraction of a second.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rlhf_kit.errors import PluginError, did_you_mean
from rlhf_kit.option_fields import holds_truth, is_of_numbers, key_of, over_defaults

T = TypeVar("T")


@dataclass(frozen=True)
class Effect:
    """What changing an option does to a result; an option without one is part of its identity."""

    kind: Literal["execution", "observation"]


Execution = Annotated[T, Effect("execution")]
"""How an option is written that changes rounding at most, such as a micro-batch or a device.

``micro_batch: Execution[int] = Field(16, ge=1, description="...")``. Changing it keeps finished
stages and checkpoints; what each attempt used is recorded, and two attempts that differ in it are
not promised to be bit-equal.
"""

Observation = Annotated[T, Effect("observation")]
"""How an option is written that only decides what is logged or shown."""


class Options(BaseModel):
    """Base of every component's options: unknown keys are refused, values are range-checked.

    An option is part of the identity of a result: a stage runs again when one changes. One that
    is not says so in its type, :data:`Execution` or :data:`Observation`.

    A nested block (:func:`block`) is laid over the default of its field: what it does not write
    stays as it was.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        populate_by_name=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        return over_defaults(cls, values) if isinstance(values, Mapping) else values

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes`` is no 1."""
        assert info.field_name is not None
        if holds_truth(value) and is_of_numbers(cls.model_fields[info.field_name].annotation):
            raise ValueError("should be a number, not true or false")
        return value

    def effect(self, name: str) -> str:
        """What a change of the field ``name`` does: "identity", "execution" or "observation".

        As its type says; here an option can say otherwise that depends on another one.
        """
        return effect_of(type(self), name)

    def binds(self) -> frozenset[str]:
        """The keys that weights trained under these options are bound to.

        Of a model or memory strategy: where one of them differs, the weights cannot be loaded, and
        a recipe that tries is refused. All of them, unless a strategy says otherwise.
        """
        return frozenset(key_of(n, f) for n, f in type(self).model_fields.items())

    def idle(self) -> Mapping[str, str]:
        """The options that another option makes idle: key -> why nothing reads it.

        A recipe that writes one of them is refused with ``why``. What would make it read may
        follow after a semicolon: ``{"probe_l2": 'head_init is "normal"; set head_init: probe'}``.
        Keys are spelled as in a recipe, and dotted for an option of a block inside.
        """
        return {}

    def problems(self) -> Mapping[str, str]:
        """What is wrong with these options together: key -> what it is, and what would be right.

        Of a component, and of each block inside its block::

            {"minibatch": "64 is larger than rollout_batch 32"}

        Asked when every option is valid by itself. A recipe is refused with each of them at its
        line. Keys are spelled as in a recipe, and dotted for an option of a block inside.
        """
        return {}


NEEDS = {
    "advantage": {
        "values": "it reads values: a critic is built, trained and saved",
        "groups": "it compares the responses to one prompt: samples_per_prompt must be at least 2",
        "scores": "it reads scores, in which there is no KL: it cannot be a reward (kl.place)",
        "own_normalization": "it normalises its advantages itself: normalize.advantages is left "
        "out, and refused where it is written",
    },
    "policy_loss": {
        "own_kl": "it has the KL to the reference in it: no other may be added",
        "whole_groups": "its micro-batches must keep the responses to one prompt together",
    },
    "kl_controller": {
        "positive_coefficient": "it multiplies its coefficient, which 0 would stop",
    },
    "labelled_loss": {
        "mismatched": "it observes prompts with the answers of others",
    },
}
"""What a component may need of the recipe around it: seam -> need -> what follows."""


def check_needs(seam: str, name: str, needs: Iterable[str]) -> None:
    """Refuse a need that nobody would look at.

    Raises:
        PluginError: no component of ``seam`` can have it.
    """
    known = NEEDS.get(seam, {})
    for need in sorted(set(needs) - known.keys()):
        seams = [other for other, found in NEEDS.items() if need in found]
        what = f"no need is called {need!r}{did_you_mean(need, list(known))}"
        if seams:
            what = f"need {need!r} is for {' and '.join(seams)}"
        raise PluginError(f"{seam} {name!r}: {what}; {seam} knows: {', '.join(known) or 'none'}")


@dataclass(frozen=True)
class Component:
    """A named implementation of one seam.

    ``target`` is "package.module:Attribute" and is imported only when a run builds the component.
    The attribute is called as ``target(options)``, or ``target(options, context)`` when it has a
    parameter named ``context`` (see :class:`rlhf_kit.interfaces.Context`).
    ``needs`` are those of its seam in :data:`NEEDS`: a recipe is checked against them, and a run
    builds what is needed and nothing else.
    ``rows`` is set by data only and names the kinds that its rows can be read as ("prompts",
    "demonstrations", "comparisons", "text", ...), so that a slot for others refuses it early.
    ``produces`` is set by stages only and names the kind of artifact in their folder ("policy",
    "reward_model", "comparisons", ...), so that a reference to the wrong kind is refused early.
    """

    seam: str
    name: str
    target: str
    options: type[Options] = Options
    summary: str = ""
    produces: str = ""
    needs: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_needs(self.seam, self.name, self.needs)

    def load(self) -> Any:
        """Import and return the target. Raises PluginError with the cause."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.seam} {self.name!r}: cannot import {self.target}: "
                f"{type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class Part:
    """A component chosen by one block of a recipe, with its validated options."""

    component: Component
    options: Options
    package: str  # the distribution (or single file) the component came from
    key: str  # dotted place in the recipe, "stages.ppo.advantage"
    where: str  # "recipes/quickstart.yaml:31"


def slot(seam: str, *, use: str | None = None, rows: str | None = None, description: str) -> Any:
    """Declare an options field of type ``Part`` or ``Part | None``: a nested component of ``seam``.

    ``use`` names the default component, or for data the default entry of the recipe's ``data:``;
    without it the recipe must fill the slot, unless the field's type admits None. A default is the
    component of that name in the same package, else the one that comes with rlhf-kit, whoever else
    offers the name. ``rows`` is the kind of rows that is read; data that declares others is
    refused.
    """
    return Field(
        description=description, json_schema_extra={"seam": seam, "use": use, "rows": rows}
    )


def slots(seam: str, *, description: str) -> Any:
    """Declare an options field of type ``dict[str, Part]``: several components of one ``seam``."""
    return Field(description=description, min_length=1, json_schema_extra={"seam": seam})


def block(
    default: Mapping[str, Any] | None = MappingProxyType({}),
    *,
    alias: str | None = None,
    description: str,
) -> Any:
    """Declare an options field whose type is an options class: a block inside the block.

    ``default`` is what holds where the recipe writes nothing, spelled as a recipe would: the keys
    that differ from the defaults of the class, components of slots by name or as a block with
    ``use``. What a recipe writes is laid over it. None, for a type that admits None: no block
    unless one is written, and then one over the defaults of the class::

        kl: KLOptions = block({"coef": 0.05, "controller": "adaptive"}, description="...")
        ptx: PtxOptions | None = block(None, description="...")
    """
    value = None if default is None else dict(default)
    return Field(value, alias=alias, description=description)


def stage_ref(
    produces: str,
    *,
    default: Any = ...,
    alias: str | None = None,
    loads_into: Literal["own", "its"] | None = None,
    description: str,
) -> Any:
    """Declare an options field of type ``StageRef``: an earlier stage, or a folder of another run,

    that holds an artifact of kind ``produces``. ``loads_into`` says which memory its weights are
    loaded into, so that what cannot be loaded is refused before anything runs: "own", that of the
    stage that refers to it; "its", that of the stage that trained it (``context.memory(of=ref)``),
    which for a folder is the recipe's; None: there are no weights.
    """
    return Field(
        default,
        alias=alias,
        description=description,
        json_schema_extra={"produces": produces, "loads_into": loads_into},
    )


def stage_refs(
    produces: str, *, loads_into: Literal["own", "its"] | None = None, description: str
) -> Any:
    """Declare an options field of type ``dict[str, StageRef]``: one or several of ``stage_ref``,

    by names of the user's own.
    """
    return Field(
        description=description,
        min_length=1,
        json_schema_extra={"produces": produces, "loads_into": loads_into},
    )


@dataclass(frozen=True)
class StageRef:
    """Where a stage starts from: a stage of this recipe (``stage``) or a folder (``folder``)."""

    stage: str | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return self.stage if self.stage is not None else str(self.folder)


def placed(value: str | Path, base: Path) -> Path:
    """``value`` as an absolute path, relative to the folder ``base``; ``~`` is a home.

    Raises:
        ValueError: no file can have such a path: it is empty or too long, goes round in links, or
            is below the home of nobody.
    """
    if not str(value).strip():
        raise ValueError("should be a path, and is empty")
    try:
        path = (base / Path(value).expanduser()).resolve()
        path.exists()
    except RuntimeError as error:
        raise ValueError(f"should be a path that a file can have: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("should be a path that a file can have: it is too long") from error
    return path  # what else is wrong with it, its reader says


def in_recipe(value: str | Path, info: ValidationInfo) -> Path:
    """``value`` as a path relative to the recipe's folder, inside a pydantic validator.

    Raises:
        ValueError: see :func:`placed`.
    """
    return placed(value, Path(info.context["base"])) if info.context else Path(value)


def _relative_to_recipe(value: Any, info: ValidationInfo) -> Any:
    return in_recipe(value, info) if isinstance(value, (str, Path)) else value


RecipePath = Annotated[Path, BeforeValidator(_relative_to_recipe)]
"""A path that a recipe gives relative to its own file.

What lies there is part of the identity of a result: the bytes of a file, of every file of a folder,
and of a Python file with the modules that it imports.
"""


class Module(str):
    """The name of an importable module."""


def _module(name: str) -> Module:
    if not all(word.isidentifier() for word in name.split(".")):
        raise ValueError("should be the name of a module, as in package.module")
    return Module(name)


ModuleName = Annotated[str, AfterValidator(_module)]
"""The name of an importable module; its source is part of the identity of a result."""


def effect_of(options: type[BaseModel], name: str) -> str:
    """Whether the field ``name`` is "identity", "execution" or "observation"."""
    marks = [mark for mark in options.model_fields[name].metadata if isinstance(mark, Effect)]
    return marks[0].kind if marks else "identity"
