"""The page of the seams: each example is a plugin that runs as the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from toys import environment

from rlhf_kit.cli.main import main
from rlhf_kit.interfaces import SEAMS
from rlhf_kit.testing import toy_recipe

PAGE = (Path(__file__).parents[2] / "docs/plugin-authors/seams.md").read_text()
EXAMPLES = re.findall(
    r"```python (\S+)\n(.*?)```\n\n```console\n\$ rlhf-kit (.*?)\n```", PAGE, re.DOTALL
)


@pytest.mark.parametrize(("name", "code", "command"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_an_example_runs(
    name: str, code: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    toy_recipe(Path("toy"), Path(words[1]).stem)
    Path(name).write_text(code)
    result = CliRunner().invoke(main, [*words, "--out", "out"])
    assert result.exit_code == 0, result.output
    assert words[words.index("--plugin") + 1] == name
    assert len(list(Path("out").glob("stages/*/stage.json"))) >= 1


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == PAGE.count("```python ") >= 14
    headings = " ".join(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    losses = {seam for seam in SEAMS if seam.endswith("_loss")}
    assert not {seam for seam in set(SEAMS) - losses if seam not in headings}


def test_the_toy_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((words, printed),) = re.findall(r"\$ python (-m rlhf_kit\.testing.*)\n(.*)\n", PAGE)
    command = [sys.executable, *words.split()]
    found = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{printed}\n"
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["check", printed]).exit_code == 0
