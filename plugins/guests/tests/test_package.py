"""The package as a stranger's: its declarations, what it imports, how long it is, its recipe."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src/rlhf_kit_guests"
RECIPE = HERE.parent / "dpo.yaml"
PUBLIC = ("rlhf_kit", "rlhf_kit.interfaces", "rlhf_kit.types", "rlhf_kit.stagekit")
LONGEST = 60


def test_declarations(check_plugin) -> None:
    components = check_plugin("rlhf_kit_guests.plugin")
    assert [(c.seam, c.name, sorted(c.needs), c.produces) for c in components] == [
        ("advantage", "grpo", ["groups", "own_normalization", "scores"], ""),
        ("policy_loss", "grpo", ["own_kl"], ""),
        ("pair_loss", "dpo", [], ""),
        ("stage", "dpo", [], "policy"),
        ("labelled_loss", "kto", ["mismatched"], ""),
        ("stage", "kto", [], "policy"),
    ]


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports, the name empty for a whole module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def files() -> list[Path]:
    return [*sorted(SOURCE.glob("*.py")), *sorted(HERE.glob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_public_names_only(path: Path) -> None:
    allowed = (*PUBLIC, "rlhf_kit.testing") if path.parent == HERE else PUBLIC
    for module, name in imported(path):
        assert not module.startswith("rlhf_kit_") or module.startswith("rlhf_kit_guests")
        if module.split(".")[0] != "rlhf_kit":
            continue
        assert module in allowed or module.startswith("rlhf_kit.ops."), f"{path}: {module}"
        # What a package exports, not what happens to be in it.
        public = sys.modules.get(module) or __import__(module, fromlist=["_"])
        assert module.startswith("rlhf_kit.ops.") or name in public.__all__, f"{module}: {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            own = ast.unparse(node.value) == "self" or node.attr.startswith("__")
            assert own, f"{path}:{node.lineno}: {ast.unparse(node)}"


def lines_of_code(path: Path) -> int:
    """Lines without blank ones, comments, docstrings and imports."""
    text = path.read_text()
    tree, counted = ast.parse(text), set()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.strip().startswith("#"):
            counted.add(number)
    for node in ast.walk(tree):
        words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if words or isinstance(node, ast.Import | ast.ImportFrom):
            counted -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(counted)


@pytest.mark.parametrize("name", ["grpo", "dpo", "kto"])
def test_short(name: str) -> None:
    assert 15 < lines_of_code(SOURCE / f"{name}.py") <= LONGEST


def check(*overrides: str) -> subprocess.CompletedProcess[str]:
    """`rlhf-kit check dpo.yaml ...`, whether or not the script is on the path."""
    code = "from rlhf_kit.cli.main import main; main()"
    command = [sys.executable, "-c", code, "check", str(RECIPE), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_recipe_is_right() -> None:
    found = check()
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == "ok"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dpo.loss.bete=0.5", "did you mean 'beta'"),
        ("dpo.loss=kto", "kto"),
        ("dpo.loss={use: dpo, beta: 0}", "beta"),
        ("dpo.epochs=0", "epochs"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(override: str, says: str) -> None:
    found = check(override)
    assert found.returncode == 2
    assert says in found.stderr
