"""What building would refuse, `check` refuses, without importing it; and what it cannot know."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from toy_plugins import offering, write_distribution
from toy_runs import one_stage, run
from toys import write_toy_recipe

from rlhf_kit.cli.main import main
from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.errors import DataError, NumericsError
from rlhf_kit.importable import parameters, why_no_attribute, why_no_import, why_no_name


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("json:loads", None),
        ("math:sin", None),
        ("torch:Tensor", None),
        ("rlhf_kit_hf.lora:LoraMemory", None),
        ("rlhf_kit:Options", None),  # found by the module's own __getattr__
        ("json:nothing", "AttributeError: module 'json' has no attribute 'nothing'"),
        ("nowhere.at_all:Thing", "ModuleNotFoundError: No module named 'nowhere'"),
        ("json.nowhere:Thing", "ModuleNotFoundError: No module named 'json.nowhere'"),
        ("rlhf_kit_hf.lora:Nothing", "AttributeError: .* has no attribute 'Nothing'"),
    ],
)
def test_a_target(target: str, why: str | None) -> None:
    module, _, attribute = target.partition(":")
    found = why_no_attribute(module, attribute)
    if why is None:
        assert found is None
    else:
        assert found is not None and re.fullmatch(why, found)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import json\nfrom os import path\n", None),
        ("import no_such\n", "ModuleNotFoundError: No module named 'no_such' (file.py)"),
        ("from no_such.inner import x\n", "ModuleNotFoundError: No module named 'no_such'"),
        (
            "from .beside import x\n",
            "ModuleNotFoundError: No module named 'no_such_either' (beside.py)",
        ),
        ("import beside\n", "imports 'beside', which lies beside it; write `from .beside import"),
        ("from .nowhere import x\n", "ModuleNotFoundError: No module named '.nowhere' (file.py)"),
        ("from .puts_a_path import x\nimport no_such\n", None),
        ("from sys import path\npath.append('x')\nimport no_such\n", None),
        ("import sys as s\ns.path.append('x')\nimport no_such\n", None),
        ("try:\n    import no_such\nexcept ImportError: ...\n", None),
        ("if False:\n    import no_such\n", None),
        ("def f():\n    import no_such\n", None),
        ("import sys\nsys.path.append('x')\nimport no_such\n", None),
        ("def (:\n", "SyntaxError: invalid syntax (file.py:1)"),
        ("x = '\0'\n", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_file(source: str, why: str | None, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import no_such_either\n")
    (tmp_path / "puts_a_path.py").write_text("import sys\nsys.path.append('x')\n")
    file = tmp_path / "file.py"
    file.write_text(source)
    found = why_no_import(file)
    assert (found is None) == (why is None)
    assert why is None or (found is not None and found.startswith(why))


@pytest.mark.parametrize(
    ("source", "there"),
    [
        ("def f(): ...\n", True),
        ("class f: ...\n", True),
        ("f = 1\n", True),
        ("from x import y as f\n", True),
        ("for f in (): ...\n", True),
        ("with open('x') as f: ...\n", True),
        ("def g():\n    global f\n    f = 1\n", True),
        ("globals()['f'] = 1\n", True),
        ("from x import *\n", True),
        ("def __getattr__(name): ...\n", True),
        ("__getattr__, __dir__, __all__ = lazy.attach(__name__, ['x'])\n", True),
        ("from x import __getattr__\n", True),
        ("from sys import modules\nmodules[__name__].f = 1\n", True),
        ("import sys\nsys.modules[__name__].f = 1\n", True),
        ("vars()['f'] = 1\n", True),
        ("locals().update(f=1)\n", True),
        ("'vars() and globals() in a text'\n", False),
        ("def g(): ...\n", False),
        ("'f'\n", False),
    ],
)
def test_a_name(source: str, there: bool, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(source)
    assert (why_no_name(file, "f") is None) == there


def test_a_loaded_module_that_finds_its_names_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> str:
            raise AssertionError("check imports nothing")

    monkeypatch.setitem(sys.modules, "lazy_one", Lazy("lazy_one"))
    assert why_no_attribute("lazy_one", "Thing") is None
    monkeypatch.setitem(sys.modules, "no_module", object())
    monkeypatch.setitem(sys.modules, "halted", None)
    for module in ("no_module", "no_module.inner", "halted"):
        assert why_no_attribute(module, "Thing") is None


REWARD = "\n\ndef reward(responses):\n    return [float(len(x) % K) for x in responses]\n"


def test_a_reward_file_that_uses_a_file_beside_it(toy_model: Path, tmp_path: Path) -> None:
    source = "from .statistics import K" + REWARD
    recipe = one_stage(tmp_path / "project", toy_model, reward=source, steps=1)
    beside = recipe.parent / "statistics.py"  # also the name of a module of Python's
    beside.write_text("K = 5\n")
    assert CliRunner().invoke(main, ["check", str(recipe)]).exit_code == 0
    run(recipe, tmp_path / "out")

    def fingerprint() -> str:
        return str(json.loads((tmp_path / "out/stages/ppo/stage.json").read_text())["fingerprint"])

    before = fingerprint()
    beside.write_text("K = 7\n")
    run(recipe, tmp_path / "out")
    assert fingerprint() != before


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_reward_file_that_forgets_the_dot(verb: str, toy_model: Path, tmp_path: Path) -> None:
    source = "from helper_of_it import K" + REWARD
    recipe = one_stage(tmp_path / "project", toy_model, reward=source, steps=1)
    (recipe.parent / "helper_of_it.py").write_text("K = 5\n")
    words = [verb, str(recipe)] + (["--out", str(tmp_path / "out")] if verb == "run" else [])
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    says = "imports 'helper_of_it', which lies beside it; write `from .helper_of_it import ...`"
    assert says in result.stderr


def test_the_parameters_of_a_function(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("def f(a, b=1, *, c, d=2, **rest): ...\n@wrapped\ndef g(a): ...\nh = f\n")
    assert parameters(file, "f") == [("a", True), ("b", False), ("c", True), ("d", False)]
    assert parameters(file, "g") is None and parameters(file, "h") is None


def test_an_installed_plugin_that_is_broken_is_mentioned(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_distribution(
        tmp_path / "site",
        "bad-package",
        bad_import="import rlhf_kit\n\nraise OSError('lost')\n",
        bad_hook=offering("reward", "mine").replace("rlhf_components", "rlhf_component"),
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    for verb in ("check", "run"):
        result = CliRunner().invoke(main, [verb, str(recipe)])
        assert result.exit_code == 0, result.stderr
        begin = "warning: plugin '{}' of 'bad-package' failed to load, and nothing of it can be "
        said = result.stderr
        assert begin.format("bad_import") + "used: OSError: lost (bad_import.py:3)" in said
        assert begin.format("bad_hook") + "used: rlhf_component is no hook of rlhf_kit" in said
        assert verb == "run" or result.stdout.endswith("ok\n")


def one_prompt(recipe: Path) -> Path:
    rows = [{"prompt": "Now sea", "split": "train"}, {"prompt": "Tell", "split": "validation"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (recipe.parent / "prompts.jsonl").write_text(text)
    return recipe


def test_one_training_prompt_is_enough(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_prompt(one_stage(tmp_path / "project", toy_model, steps=1))
    run(recipe, tmp_path / "out")


NORMALISED = """
def reward(responses):
    scores = [float(sum(map(ord, text)) % 101) for text in responses]
    mean = sum(scores) / len(scores)
    spread = (sum((x - mean) ** 2 for x in scores) / len(scores)) ** 0.5
    return [(x - mean) / (spread + 1e-6) for x in scores]
"""


@pytest.mark.parametrize("prompts", ["one", "several"])
def test_a_reward_that_normalises_over_its_batch_is_refused(
    prompts: str, toy_model: Path, tmp_path: Path
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, reward=NORMALISED, steps=1)
    recipe = one_prompt(recipe) if prompts == "one" else recipe
    with pytest.raises(NumericsError, match="a score changes with padding or with the other rows"):
        run(recipe, tmp_path / "out")


def test_comparisons_of_nothing_are_no_result(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_kit_instructgpt.collect._reads_back", lambda *inputs: False)
    recipe = write_toy_recipe(tmp_path / "project", toy_model, "hydra")
    with pytest.raises(DataError, match=r"stage .collect.: none of .* prompts got two"):
        run(recipe, tmp_path / "out")
    record = json.loads((tmp_path / "out/stages/collect/stage.json").read_text())
    assert not record["finished"]


def test_many_passes_at_once() -> None:
    """A batch of a million from one row, say, takes no million copies."""
    cycle = Cycle(3, 100_000, torch.Generator().manual_seed(1))
    batch = cycle.next()
    assert len(batch) == 100_000
    whole = batch[: 3 * 33_333].view(-1, 3).sort(1).values
    assert bool((whole == torch.arange(3)).all())
