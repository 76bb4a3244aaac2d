"""What a context hands out, each call of it guarded: models, memory, engine and data of strangers.

Each is called a few times in a stage or once in a step, so that a guard costs nothing beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn import Parameter

from rlhf_kit.conforming import refuse_unlike
from rlhf_kit.engine.foreign import first_call, foreign
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import (
    Critic,
    DataSource,
    DropsRows,
    Engine,
    Memory,
    ModelSource,
    Optimizer,
    ParameterGroup,
    Policy,
    Reference,
    RewardModel,
    Step,
    Tokenizer,
    World,
)
from rlhf_kit.origins import Whose
from rlhf_kit.stage_options import OptimizerOptions
from rlhf_kit.types import Row


class _Guarded:
    """Passes on whatever else a stranger's part has, such as what its counts say."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "_inner" or name.startswith("__"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._inner, name)


class GuardedSource(_Guarded):
    """Implements rlhf_kit.interfaces.ModelSource."""

    _inner: ModelSource

    def tokenizer(self) -> Tokenizer:
        who = Whose(self._inner, "model", "tokenizer()")
        with foreign(who):
            found = self._inner.tokenizer()
        refuse_unlike(found, Tokenizer, who)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Raises PluginError where it is no dict that JSON can hold."""
        who = Whose(self._inner, "model", "fingerprint()")
        with foreign(who):
            found = self._inner.fingerprint()
            json.dumps(found, default=_in_words)
        if not isinstance(found, dict):
            raise PluginError(f"{who} returned {type(found).__name__}; it should return a dict")
        return found

    def load(self, dtype: Any) -> Any:
        with foreign(Whose(self._inner, "model", "load()")):
            return self._inner.load(dtype)


def _in_words(value: Any) -> str:
    """What is no JSON, such as a path, as it will be hashed: by text that is the same tomorrow."""
    kind = type(value)
    by_address = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    if by_address or isinstance(value, set | frozenset):
        raise TypeError(f"Object of type {kind.__name__} is not JSON serializable")
    return str(value)


class GuardedMemory(_Guarded):
    """Implements rlhf_kit.interfaces.Memory."""

    _inner: Memory

    def policy(
        self, start: Path | None, *, trainable: bool = True, residual_dropout: float = 0.0
    ) -> Policy:
        who = self._who("policy()")
        with foreign(who):
            found = self._inner.policy(
                start, trainable=trainable, residual_dropout=residual_dropout
            )
        refuse_unlike(found, Policy, who)
        return found

    def reference(self, start: Path | None) -> Reference:
        who = self._who("reference()")
        with foreign(who):
            found = self._inner.reference(start)
        refuse_unlike(found, Reference, who)
        return found

    def scorer(
        self,
        start: Path | None,
        *,
        pooling: str = "last",
        init_std: float | None = None,
        trainable: bool = True,
    ) -> RewardModel:
        who = self._who("scorer()")
        with foreign(who):
            found = self._inner.scorer(
                start, pooling=pooling, init_std=init_std, trainable=trainable
            )
        refuse_unlike(found, RewardModel, who)
        return found

    def critic(self, start: Path | None, *, init_std: float = 0.0) -> Critic:
        who = self._who("critic()")
        with foreign(who):
            found = self._inner.critic(start, init_std=init_std)
        refuse_unlike(found, Critic, who)
        return found

    def _who(self, what: str) -> Whose:
        return Whose(self._inner, "memory", what)


class GuardedEngine(_Guarded):
    """Implements rlhf_kit.interfaces.Engine."""

    _inner: Engine

    @property
    def world(self) -> World:
        return self._inner.world

    def optimizer(
        self, groups: Sequence[ParameterGroup], options: OptimizerOptions, total_steps: int
    ) -> Optimizer:
        who = self._who("optimizer()")
        with foreign(who):
            found = self._inner.optimizer(groups, options, total_steps)
        refuse_unlike(found, Optimizer, who)
        return found

    @contextmanager
    def step(self, optimizer: Optimizer, watch: Sequence[Parameter] = ()) -> Iterator[Step]:
        who = self._who("step()")
        with foreign(who):
            manager = self._inner.step(optimizer, watch)
            step = manager.__enter__()
        if first_call(self):
            refuse_unlike(step, Step, who)
        try:
            yield step
        except BaseException as error:  # of the body, which is not the engine's
            if not manager.__exit__(type(error), error, error.__traceback__):
                raise
            return
        with foreign(who):
            manager.__exit__(None, None, None)

    def _who(self, what: str) -> Whose:
        return Whose(self._inner, "engine", what)


class GuardedData(_Guarded):
    """Implements rlhf_kit.interfaces.DataSource; see also :func:`guarded_data`."""

    _inner: DataSource

    @property
    def ready(self) -> bool:
        with foreign(self._who("ready")):
            return bool(self._inner.ready)

    def split(self, name: str) -> Sequence[Row]:
        """Raises PluginError where it is no sequence of dicts."""
        who = self._who(f"split({name!r})")
        with foreign(who):
            rows = self._inner.split(name)
            listed = isinstance(rows, Sequence) and not isinstance(rows, str)
            first = next(iter(rows), None) if listed else None
        if not isinstance(first, dict):
            of = "nothing" if first is None else type(first).__name__
            what = f"a {type(rows).__name__} of {of}"
            raise PluginError(f"{who} returned {what}; it should return a list of dicts")
        return rows

    def fingerprint(self) -> str:
        who = self._who("fingerprint()")
        with foreign(who):
            found = self._inner.fingerprint()
        if not isinstance(found, str):
            raise PluginError(f"{who} returned {type(found).__name__}; it should return text")
        return found

    def _who(self, what: str) -> Whose:
        return Whose(self._inner, "data", what)


class _GuardedDropping(GuardedData):
    """Implements rlhf_kit.interfaces.DropsRows too."""

    _inner: Any

    @property
    def dropped(self) -> Mapping[str, int]:
        with foreign(self._who("dropped")):
            return dict(self._inner.dropped)


def guarded_data(source: DataSource) -> GuardedData:
    """A guard that is a DropsRows where the source is: by its class, which is what Python asks."""
    return (_GuardedDropping if isinstance(source, DropsRows) else GuardedData)(source)
