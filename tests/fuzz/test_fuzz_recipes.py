"""Recipes that were changed at random: `check` says ok or a line, within its time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, strategies as st
from odd import WORDS, at, paths, values
from toys import write_toy_recipe

from rlhf_kit.cli.main import main

pytestmark = pytest.mark.fuzz
PIECES = (
    "\t", "\n", "  ", "- ", ": ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!int ", "!!str ", "|",
    ">", "? ", "---\n", "...\n", "#", "'", '"', "\\0", "\\ud800", "\ufeff", "\x07", "é", "%TAG ",
    "use: ", "from: ", "0" * 50, "[" * 60,
)  # fmt: skip

Check = Callable[[bytes], None]


@pytest.fixture(scope="module")
def project(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_recipe(tmp_path_factory.mktemp("fuzz"), toy_model, "hydra")


@pytest.fixture(scope="module")
def check(project: Path) -> Check:
    path = project.with_name("fuzzed.yaml")

    def look(content: bytes, *overrides: str) -> None:
        path.write_bytes(content)
        begin = time.process_time()
        result = CliRunner().invoke(main, ["check", str(path), *overrides])
        assert time.process_time() - begin < 2.0
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 2, 3)
        assert bool(result.exit_code) == bool(result.stderr), result.output
        begins = ("error: ", "Usage: ", "Try ", "Error: ")
        assert all(line.startswith(begins) for line in result.stderr.splitlines() if line)

    return look


@given(st.data())
def test_values(project: Path, check: Check, data: st.DataObject) -> None:
    recipe = yaml.safe_load(project.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths(recipe)))
        *above, key = path
        owner = at(recipe, tuple(above))
        what = data.draw(st.sampled_from(("replace", "remove", "rename", "move")))
        if what == "replace":
            owner[key] = data.draw(values)
        elif what == "remove":
            del owner[key]
        elif what == "rename" and isinstance(owner, dict):
            owner[data.draw(st.sampled_from(WORDS))] = owner.pop(key)
        else:
            owner[key] = copy.deepcopy(at(recipe, data.draw(st.sampled_from(paths(recipe)))))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    check(text.encode("utf-8", "surrogatepass"))


@given(st.data())
def test_text(project: Path, check: Check, data: st.DataObject) -> None:
    text = project.read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 40)))
        other = st.one_of(st.sampled_from(PIECES), st.sampled_from(WORDS), st.text(max_size=5))
        text = text[:begin] + data.draw(other) + text[end:]
    check(text.encode("utf-8", "surrogatepass"))


@given(st.data())
def test_bytes(project: Path, check: Check, data: st.DataObject) -> None:
    content = bytearray(project.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(content[: data.draw(st.integers(0, len(content)))]))


@given(st.data())
def test_overrides(project: Path, check: Check, data: st.DataObject) -> None:
    recipe = yaml.safe_load(project.read_text())
    known = [".".join(map(str, path)).removeprefix("stages.") for path in paths(recipe)]
    keys = st.one_of(st.sampled_from(known), st.sampled_from(WORDS))
    texts = st.one_of(st.sampled_from(WORDS), st.sampled_from(PIECES), values.map(str))
    given = st.builds(lambda key, text: f"{key}={text}", keys, texts)
    more = data.draw(st.lists(given.filter(lambda x: not x.startswith("-")), max_size=3))
    check(project.read_bytes(), *more)  # type: ignore[call-arg]
