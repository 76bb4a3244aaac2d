"""What a recipe may choose: defaults of one's own, rows that fit, seams that are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlhf_kit.cli.main import main
from rlhf_kit.testing import toy_recipe

PLUGIN = """\
from rlhf_kit import Component, Options, Part, hookimpl, slot

class Asking(Options):
    inner: Part = slot("advantage", use="asking", description="another one")

class Mine:
    def __init__(self, options):
        pass

@hookimpl
def rlhf_components():
    yield Component("engine", "single", "mine:Mine")
    yield Component("advantage", "gae", "mine:Mine")
    yield Component("sampler", "decode", "mine:Mine")
    yield Component("advantage", "asking", "mine:Mine", Asking)
    yield Component("rewards", "good", "mine:Mine")
"""


def asked(folder: Path, *overrides: str, verb: str = "check", stage: str = "ppo") -> Result:
    plugin = folder / "mine.py"
    plugin.write_text(PLUGIN)
    words = [verb, str(toy_recipe(folder, stage)), *overrides, "--plugin", str(plugin)]
    return CliRunner().invoke(main, words)


def test_a_default_means_what_its_author_meant(tmp_path: Path) -> None:
    """Others may offer its name; only who writes it must say which."""
    found = asked(tmp_path)
    assert found.exit_code == 0, found.output
    found = asked(tmp_path, "ppo.advantage=gae")
    assert found.exit_code == 2
    assert "2 packages offer an advantage 'gae'; write mine/gae or rlhf-kit/gae" in found.output


def test_a_default_of_a_default_is_filled_in(tmp_path: Path) -> None:
    found = asked(tmp_path, "ppo.advantage={lam: 0.9}")
    assert found.exit_code == 0, found.output


def test_a_component_that_is_its_own_default_is_refused(tmp_path: Path) -> None:
    found = asked(tmp_path, "ppo.advantage=asking")
    assert found.exit_code == 2
    (line,) = [line for line in found.output.splitlines() if line.startswith("error")]
    assert "stages.ppo.advantage.inner: its default is advantage 'asking', which has" in line


def test_a_component_that_nothing_asks_for_is_told(tmp_path: Path) -> None:
    says = "rewards 'good' of package 'mine' cannot be used: no slot asks for a rewards; did you "
    assert f"warning: {says}mean 'reward'?" in asked(tmp_path).output
    listed = CliRunner().invoke(main, ["plugins", "list", "--plugin", str(tmp_path / "mine.py")])
    assert says in listed.output


@pytest.mark.parametrize(
    ("stage", "override", "says"),
    [
        (
            "sft",
            "data.demonstrations={use: prompts, path: prompts.jsonl}",
            "stages.sft.demonstrations: 'prompts' gives prompts, not demonstrations; data that "
            "fits: demonstrations",
        ),
        (
            "reward_model",
            "reward_model.comparisons={use: text, path: text.txt}",
            "stages.reward_model.comparisons: 'text' gives text, not comparisons; data that fit: "
            "collected, comparisons, hh_rlhf, oasst",
        ),
        ("ppo", "ppo.steps=true", "stages.ppo.steps: is True; should be a number, not true"),
        ("ppo", "ppo.optimizer.betas=[0.9, false]", "optimizer.betas: is [0.9, False]; should be"),
        ("ppo", "ppo.kl={coef: 1e-8, controller: adaptive}", "kl.coef: is 1e-08, below the"),
        (
            "ppo",
            "ppo.ptx={text: text, coef: 2000, controller: adaptive}",
            "ptx.coef: is 2000.0, above the controller's most 1000.0; change one of them",
        ),
    ],
)
def test_refused_by_check(stage: str, override: str, says: str, tmp_path: Path) -> None:
    words = ["check", str(toy_recipe(tmp_path, stage)), override]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert says in result.output


def test_comparisons_are_prompts_too(tmp_path: Path) -> None:
    override = "data.prompts={use: comparisons, path: comparisons.jsonl}"
    result = CliRunner().invoke(main, ["check", str(toy_recipe(tmp_path, "collect")), override])
    assert result.exit_code == 0, result.output


BESIDE = """\
from rlhf_kit import Component, hookimpl

@hookimpl
def rlhf_components():
    yield Component("reward", "long", "helper:Long")
    yield Component("reward", "short", "mine:Short")

{imports}

class Short(Long):
    pass
"""
HELPER = """\
import torch
from . import other

class Long:
    def __init__(self, options):
        pass

    def __call__(self, samples):
        return torch.tensor([other.FACTOR * len(text) for text in samples.responses])
"""


def beside(folder: Path, imports: str) -> list[str]:
    """A plugin file that uses a file beside it, which uses another."""
    folder.mkdir(exist_ok=True)
    recipe = toy_recipe(folder / "toy")
    (folder / "mine.py").write_text(BESIDE.format(imports=imports))
    (folder / "helper.py").write_text(HELPER)
    (folder / "other.py").write_text("FACTOR = 2.0\n")
    return ["run", str(recipe), "--plugin", str(folder / "mine.py"), "--out", str(folder / "out")]


@pytest.mark.parametrize("name", ["long", "short"])
def test_a_plugin_file_uses_a_file_beside_it(name: str, tmp_path: Path) -> None:
    words = [*beside(tmp_path, "from .helper import Long"), f"ppo.reward={name}"]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 0, first.output
    (tmp_path / "beside.txt").write_text("nothing that is imported")
    again = CliRunner().invoke(main, words)
    assert "[ppo] finished already" in again.output
    (tmp_path / "other.py").write_text("FACTOR = 3.0\n")
    changed = CliRunner().invoke(main, words)
    assert changed.exit_code == 0, changed.output
    assert "what it depends on has changed" in changed.output


def test_two_plugin_files_have_helpers_of_their_own(tmp_path: Path) -> None:
    words = beside(tmp_path / "one", "from .helper import Long")
    other = tmp_path / "two"
    beside(other, "from .helper import Long")
    (other / "mine.py").rename(other / "yours.py")
    text = (other / "yours.py").read_text().replace('"mine:', '"yours:')
    (other / "yours.py").write_text(text.replace('"short"', '"brief"').replace('"long"', '"far"'))
    (other / "other.py").write_text("FACTOR = 5.0\n")
    result = CliRunner().invoke(
        main, [*words, "--plugin", str(other / "yours.py"), "ppo.reward=brief"]
    )
    assert result.exit_code == 0, result.output


def test_an_import_without_a_dot_is_told(tmp_path: Path) -> None:
    words = beside(tmp_path, "from helper import Long")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    says = "mine.py: imports 'helper', which lies beside it; write `from .helper import ...`"
    assert says in result.output
