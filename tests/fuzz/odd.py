"""Values that nobody meant."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

WORDS = (
    "", " ", "~", "null", "true", "on", "no", "1e30", "1e-40", "-1", "0x10", "1_000", "nan", ".inf",
    "sft", "ppo", "collect", "reward_model", "prompts", "pretraining", "python", "hydra", "fixed",
    "./", "../..", "/", "~nobody/x", "./nowhere", "/dev/null", "a/b", "x" * 300, "é", "\u200b",
    "2024-13-45", "2024-01-01", "{}", "[]", "*x", "&x", "!!int", "=", "a: b", "#", "'", '"', "%",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 1.5, -0.0, 1e30, 1e-40, 1e300, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS),
    st.integers(-5, 40), st.floats(allow_subnormal=True), st.text(max_size=8), st.dates(),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside ``value``."""
    found = [above] if above else []
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    return [*found, *(path for key, item in items for path in paths(item, (*above, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
