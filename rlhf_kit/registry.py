"""Look components up by seam and name; refuse unknown and ambiguous names with what is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from rlhf_kit.components import Component
from rlhf_kit.errors import PluginError, RecipeError, did_you_mean
from rlhf_kit.option_fields import declared, models_in
from rlhf_kit.plugins import BrokenPlugin, LoadedPlugins
from rlhf_kit.seams import GRAMMAR

BUILT_IN = "rlhf-kit"  # the distribution of the components that come along
_SHOWN = 12  # names listed in an error message before it refers to `plugins list`


class Registry:
    """All components of the loaded plugins."""

    def __init__(self, loaded: LoadedPlugins) -> None:
        self.loaded = loaded
        self._offers: dict[tuple[str, str], list[tuple[str, str, Component]]] = {}
        for offer in loaded.components:
            component = offer[2]
            self._offers.setdefault((component.seam, component.name), []).append(offer)

    def all(self) -> list[tuple[str, str, Component]]:
        """Every (package, plugin, component), sorted by seam and name."""
        return [offer for key in sorted(self._offers) for offer in self._offers[key]]

    def seams(self) -> list[str]:
        """The seams that some component fills."""
        return sorted({seam for seam, _ in self._offers})

    def unused(self, seam: str | None = None) -> list[str]:
        """A line about each component, of ``seam`` if one is given, that no recipe could use.

        Neither the grammar of a recipe nor a slot of any component asks for its seam.
        """
        options = [component.options for *_, component in self.all()]
        asked = {*GRAMMAR, *(str(d["seam"]) for o in options for d in _declared(o) if "seam" in d)}
        return [
            f"{component.seam} {component.name!r} of package {package!r} cannot be used: no slot "
            f"asks for {article(component.seam)}{did_you_mean(component.seam, asked)}"
            for package, _, component in self.all()
            if component.seam not in asked and seam in (None, component.seam)
        ]

    def names(self, seam: str) -> list[str]:
        """The component names of one seam."""
        return sorted(name for other, name in self._offers if other == seam)

    def ambiguous(self) -> frozenset[tuple[str, str]]:
        """The (seam, name) pairs that need ``package/name``."""
        return frozenset(
            key
            for key, offers in self._offers.items()
            if len({package for package, _, _ in offers}) > 1
        )

    def find(
        self, seam: str, name: str, where: str, key: str, preferred: Sequence[str] = ()
    ) -> tuple[Component, str]:
        """Return the component that ``name`` or ``package/name`` means, and its package.

        Where several packages offer a bare name, the first of ``preferred`` that does is meant.

        Raises RecipeError for an unknown or ambiguous name, and PluginError when a broken plugin
        may be the reason. ``where`` ("file:line") and ``key`` (dotted) only serve the message.
        """
        place = f"{where}: {key}: "
        package, _, bare = name.rpartition("/")
        offers = [
            offer
            for offer in self._offers.get((seam, bare), [])
            if not package or _same(offer[0], package)
        ]
        if not offers:
            raise self._unknown(seam, name, place)
        packages = sorted({offer[0] for offer in offers})
        first = [p for other in preferred for p in packages if _same(p, other)]
        if len(packages) > 1 and first:
            packages, offers = first[:1], [offer for offer in offers if offer[0] == first[0]]
        if len(packages) > 1:
            raise RecipeError(
                f"{place}{len(packages)} packages offer {article(seam)} {bare!r}; write "
                + " or ".join(f"{package}/{bare}" for package in packages)
            )
        if len(offers) > 1:
            plugins = ", ".join(plugin for _, plugin, _ in offers)
            raise PluginError(
                f"{place}package {packages[0]!r} declares {seam} {bare!r} {len(offers)} times "
                f"(plugins: {plugins}); it should give each its own name"
            )
        return offers[0][2], packages[0]

    def known(self, seam: str) -> str:
        """The names of a seam, short enough for an error message."""
        names = self.names(seam)
        if not names:
            return f"no installed plugin offers {article(seam)}"
        more = f", ... (`rlhf-kit plugins list --seam {seam}`)" if len(names) > _SHOWN else ""
        return f"known: {', '.join(names[:_SHOWN])}{more}"

    def _unknown(self, seam: str, name: str, place: str) -> RecipeError | PluginError:
        package, _, bare = name.rpartition("/")
        suspects = [broken for broken in self.loaded.broken if _same(broken.package, package)]
        if suspects:
            return PluginError(
                f"{place}{seam} {name!r} is not available: {_broken(suspects)}; "
                "fix or uninstall that plugin"
            )
        what = f"no {seam} is called {name!r}{did_you_mean(bare, self.names(seam))}"
        what += "; " + self.known(seam)
        elsewhere = [other for other in self.seams() if (other, bare) in self._offers]
        owners = sorted({offer[0] for offer in self._offers.get((seam, bare), [])})
        if owners:
            what += f"; {bare!r} is in package {', '.join(owners)}"
        elif elsewhere:
            what += f"; {bare!r} is {article(elsewhere[0])}"
        if self.loaded.broken:
            return PluginError(
                f"{place}{what}; or it was to come from {_broken(self.loaded.broken)}"
            )
        return RecipeError(place + what)


def _declared(
    options: type[BaseModel], seen: frozenset[type[BaseModel]] = frozenset()
) -> Iterator[Mapping[str, object]]:
    """What the fields of an options class, and of the blocks inside it, declare."""
    for field in options.model_fields.values():
        yield declared(field)
        for model in models_in(field.annotation):
            if model not in seen:
                yield from _declared(model, seen | {options, model})


def _same(package: str, other: str) -> bool:
    """Distribution names compare as the packaging specification says: rlhf_kit is rlhf-kit."""
    return _normal(package) == _normal(other)


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def article(seam: str) -> str:
    """ "an advantage", "a loss"."""
    return f"an {seam}" if seam[:1] in "aeiou" else f"a {seam}"


def _broken(broken: list[BrokenPlugin]) -> str:
    return "; ".join(
        f"plugin {plugin.name!r} of {plugin.package!r}, which failed to load: {plugin.cause}"
        for plugin in broken
    )
