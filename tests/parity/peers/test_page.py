"""docs/numerics.md names tests that exist. Needs no peer."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "docs/numerics.md"


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text()))
    assert len(named) > 25
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_comparison_with_a_peer_is_on_the_page() -> None:
    page = PAGE.read_text()
    unnamed = [
        f"{file.name}::{name}"
        for file in sorted(Path(__file__).parent.glob("test_t*.py"))
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
        if f"{file.name}::{name}`" not in page
    ]
    assert unnamed == []
