"""Plugins load each on its own; what is broken is kept with its exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_plugins import load_only, offering, write_distribution

from rlhf_kit.components import Component
from rlhf_kit.errors import PluginError
from rlhf_kit.plugins import load_plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def names(loaded) -> list[tuple[str, str, str]]:
    return [(package, plugin, component.name) for package, plugin, component in loaded.components]


def test_an_installed_distribution_is_found(site: Path) -> None:
    write_distribution(site, "some-package", pl_found=offering("loss", "toy-found"))
    assert ("some-package", "pl_found", "toy-found") in names(load_plugins())


def test_two_entry_points_of_one_distribution(site: Path) -> None:
    write_distribution(site, "one", pl_a=offering("loss", "a"), pl_b=offering("loss", "b"))
    assert names(load_only(site)) == [("one", "pl_a", "a"), ("one", "pl_b", "b")]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("x = (", "SyntaxError: "),
        ("x = 1", "implements no hook; write a `@rlhf_kit.hookimpl def rlhf_components()`"),
        ("def rlhf_components(): return []", "write a `@rlhf_kit.hookimpl"),
        (
            "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_componets(): return []",
            "rlhf_componets is no hook of rlhf_kit; did you mean 'rlhf_components'?",
        ),
        (
            "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_components(x): return []",
            "PluginValidationError: ",
        ),
        (
            "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_components(): return ['gae']",
            "rlhf_components returned 'gae'; it should return Components",
        ),
        (
            "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_components(): yield 1 / 0",
            "ZeroDivisionError: division by zero (pl_broken.py:3)",
        ),
        (
            "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_components():\n"
            "    return [rlhf_kit.Component('loss', 'a', 'no_colon')]",
            "target 'no_colon' should be text, 'package.module:Name'",
        ),
    ],
)
def test_a_broken_plugin_is_kept_and_stops_no_other(site: Path, source: str, cause: str) -> None:
    write_distribution(site, "bad-one", pl_broken="")
    (site / "pl_broken.py").write_text(source)
    write_distribution(site, "good-one", pl_good=offering("loss", "good"))
    sys.modules.pop("pl_broken", None)
    loaded = load_only(site)
    assert names(loaded) == [("good-one", "pl_good", "good")]
    (broken,) = loaded.broken
    assert (broken.name, broken.package) == ("pl_broken", "bad-one")
    assert cause in broken.cause
    assert "\n" not in broken.cause
    assert [plugin.package for plugin in loaded.plugins] == ["good-one"]
    assert len(loaded.manager.hook.rlhf_components()) == 1, (
        "a broken plugin must not stay registered"
    )


def test_ctrl_c_while_a_plugin_is_imported_is_not_swallowed(site: Path) -> None:
    write_distribution(site, "slow", pl_slow="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_only(site)


FILE = """
import rlhf_kit

class Thing:
    pass

@rlhf_kit.hookimpl
def rlhf_components():
    return [
        rlhf_kit.Component("loss", "by-stem", "my_loss:Thing"),
        rlhf_kit.Component("loss", "by-name", f"{__name__}:Thing"),
        rlhf_kit.Component("loss", "elsewhere", "collections:OrderedDict"),
    ]
"""


def test_a_single_file_may_name_its_own_attributes(tmp_path: Path) -> None:
    file = tmp_path / "my_loss.py"
    file.write_text(FILE)
    loaded = load_plugins([file, tmp_path / "." / "my_loss.py"], [])
    assert [package for package, _, _ in loaded.components] == ["my_loss"] * 3
    targets = {component.name: component.load() for _, _, component in loaded.components}
    assert targets["by-stem"] is targets["by-name"]
    assert targets["by-stem"].__name__ == "Thing"
    assert targets["elsewhere"].__name__ == "OrderedDict"


def test_two_files_of_one_name_do_not_share_a_module(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        file = tmp_path / folder / "my_loss.py"
        file.parent.mkdir()
        file.write_text(FILE)
        files.append(file)
    first, second = (load_plugins([file], []).components[0][2].load() for file in files)
    assert first is not second


def test_a_missing_or_failing_file_is_broken(tmp_path: Path) -> None:
    before = set(sys.modules)
    bad = tmp_path / "bad.py"
    bad.write_text("\n\nundefined_name")
    loaded = load_plugins([tmp_path / "missing.py", bad, tmp_path / "notes.txt"], [])
    causes = {broken.package: broken.cause for broken in loaded.broken}
    assert "FileNotFoundError" in causes["missing"]
    assert causes["bad"] == "NameError: name 'undefined_name' is not defined (bad.py:3)"
    assert "should end in .py" in causes["notes"]
    assert not [n for n in set(sys.modules) - before if n.startswith("rlhf_kit_file_bad")]


def test_managers_are_not_shared(tmp_path: Path) -> None:
    file = tmp_path / "my_loss.py"
    file.write_text(FILE)
    load_plugins([file], [])
    assert load_plugins([], []).components == []


def test_call_each(tmp_path: Path) -> None:
    good = tmp_path / "watch.py"
    good.write_text(
        "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_check_recipe(recipe):\n"
        "    return 'one problem'\n"
    )
    bad = tmp_path / "bad_check.py"
    bad.write_text(
        "import rlhf_kit\n@rlhf_kit.hookimpl\ndef rlhf_check_recipe(recipe):\n    yield recipe.x\n"
    )
    loaded = load_plugins([good, bad], [])
    assert loaded.broken == []
    answers = dict(loaded.call_each("rlhf_check_recipe", recipe=None))
    assert answers[f"watch:{good}"] == ["one problem"]
    assert isinstance(answers[f"bad_check:{bad}"], AttributeError)


def test_a_target_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(PluginError, match=r"loss 'x': cannot import no_such:Thing: ModuleNot"):
        Component("loss", "x", "no_such:Thing").load()


def test_discovery_does_not_import_torch() -> None:
    code = (
        "import sys; from rlhf_kit.plugins import load_plugins; import rlhf_kit.recipe;"
        "loaded = load_plugins();"
        "print(sorted({'torch', 'transformers', 'peft', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
