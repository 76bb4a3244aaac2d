"""The command line: one line per error, exit codes, and no torch before a run."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from toy_plugins import RECIPE, TOY, finished_stage, write_distribution

from rlhf_kit.cli import doctor
from rlhf_kit.cli.lazy import ErrorGroup
from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError, Interrupted, NumericsError, PluginError

FILE = """
import rlhf_kit

@rlhf_kit.hookimpl
def rlhf_components():
    return [rlhf_kit.Component("memory", "from-file", "mine:rlhf_kit", summary="a memory [x]")]
"""


@pytest.fixture(scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site")
    write_distribution(folder, "toy-package", toy_for_cli=TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _here(_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    Path("mine.py").write_text(FILE)


def rlhf_kit(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_check_gives_an_account() -> None:
    result = rlhf_kit("check", "r.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "r (r.yaml)"
    assert lines[-1] == "ok"
    assert [line.split() for line in lines if line.split()[0].isdigit()] == [
        ["1", "sft", "toy-sft", "from", "the", "model"],
        ["2", "collect", "toy-collect", "from", "sft"],
        ["3", "reward", "toy-reward", "from", "collect"],
        ["4", "ppo", "toy-ppo", "from", "sft,", "reward"],
    ]


def test_check_refuses_unused_data() -> None:
    result = rlhf_kit("check", "r.yaml", "sft.data={use: toy-jsonl, path: x}")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: r.yaml:7: data.demos: no stage uses it; remove it, or name it in a data slot of a "
        "stage\n"
    )


def test_check_names_folders() -> None:
    finished_stage(Path("other"), "policy")
    result = rlhf_kit("check", "r.yaml", "ppo.from=./other")
    assert "from reward, other" in result.stdout


def test_check_as_json_and_filled() -> None:
    account = json.loads(rlhf_kit("check", "r.yaml", "--json").stdout)
    assert account["ok"] is True
    assert account["stages"][3]["needs"] == ["sft", "reward"]
    printed = yaml.safe_load(rlhf_kit("check", "r.yaml", "--filled").stdout)
    assert printed == account["recipe"]


def test_every_problem_is_one_line_with_its_place() -> None:
    result = rlhf_kit("check", "r.yaml", "ppo.kl_coef=-1", "ppo.stps=3")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: command line: stages.ppo.") for line in lines)


def test_plugin_files_of_the_recipe_and_of_the_command_line() -> None:
    result = rlhf_kit("check", "r.yaml", "memory.use=from-file", "--plugin", "mine.py", "--filled")
    assert result.exit_code == 0, result.stderr
    printed = yaml.safe_load(result.stdout)
    assert printed["plugins"] == [str(Path("mine.py").resolve())]
    Path("again").mkdir()
    Path("again/r.yaml").write_text(result.stdout)
    assert rlhf_kit("check", "again/r.yaml", "--filled").stdout == result.stdout


@pytest.mark.parametrize(
    ("source", "cause"),
    [(None, "FileNotFoundError"), ("\n1 / 0", r"ZeroDivisionError: .*\(bad\.py:2\)"), ("", "no h")],
)
def test_a_broken_plugin_file_is_refused_at_once(source: str | None, cause: str) -> None:
    if source is not None:
        Path("bad.py").write_text(source)
    Path("r.yaml").write_text(RECIPE + "plugins:\n  - ./bad.py\n")
    result = rlhf_kit("check", "r.yaml")
    assert result.exit_code == 2
    assert re.match(rf"error: r\.yaml:37: plugins\.0: bad\.py: .*{cause}", result.stderr)
    Path("r.yaml").write_text(RECIPE)
    result = rlhf_kit("check", "r.yaml", "--plugin", "bad.py")
    assert result.stderr.startswith("error: --plugin bad.py: bad.py: ")
    assert result.exit_code == 2


def test_missing_recipe() -> None:
    result = rlhf_kit("check", "nothing.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nothing.yaml: no such file; ")


def test_plugins_list() -> None:
    result = rlhf_kit("plugins", "list", "--seam", "memory", "--plugin", "mine.py")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["memory", "from-file", "mine", "a", "memory", "[x]"] in rows
    assert ["memory", "toy-lora", "toy-package", "a", "toy", "memory"] in rows
    assert not any(row[:1] == ["stage"] for row in rows)
    found = json.loads(rlhf_kit("plugins", "list", "--json", "--plugin", "no.py").stdout)
    assert {"seam": "stage", "name": "toy-ppo", "package": "toy-package"}.items() <= next(
        row for row in found["components"] if row["name"] == "toy-ppo"
    ).items()
    broken = next(row for row in found["broken"] if row["package"] == "no")
    assert broken["error"].startswith("FileNotFoundError")
    assert "FileNotFoundError" in rlhf_kit("plugins", "list", "--plugin", "no.py").stdout
    wrong = rlhf_kit("plugins", "list", "--seam", "memry")
    assert wrong.exit_code == 2
    assert "did you mean 'memory'?" in wrong.stderr


def test_plugins_show() -> None:
    found = json.loads(rlhf_kit("plugins", "show", "toy-ppo", "--json").stdout)
    assert found["target"] == "toy_for_cli:Options"
    rows = {row["key"]: (row["type"], row["default"], row["range"]) for row in found["options"]}
    assert rows == {
        "from": ("stage or folder with policy", "required", ""),
        "critic": ("stage or folder with reward_model", "null", ""),
        "advantage": ("advantage", "toy-gae", ""),
        "reward": ("reward", "required", ""),
        "bonus": ("reward", "null", ""),
        "kl_coef": ("float", "0.02", ">= 0"),
        "steps": ("int", "10", ">= 1"),
        "schedule": ("constant or linear", "constant", ""),
        "sampling": ("block", "", ""),
        "sampling.temperature": ("float", "1.0", "> 0"),
        "size": ("int or text", "auto", ""),
    }
    lora = rlhf_kit("plugins", "show", "toy-package/toy-lora").stdout
    assert ">= 1, <= 64" in lora
    assert "rank of the adapters" in lora
    assert "several reward by name" in rlhf_kit("plugins", "show", "toy-weighted").stdout
    wrong = rlhf_kit("plugins", "show", "toy-ppoo")
    assert wrong.exit_code == 2
    assert "did you mean 'toy-ppo'?" in wrong.stderr


def test_doctor() -> None:
    # `deepspeed` and the like may or may not be here; the report must say which.
    result = rlhf_kit("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (2 if report["broken_plugins"] else 0)
    assert report["cores"] >= 1
    assert report["packages"]["pydantic"] != "not installed"
    assert {"plugin": "toy_for_cli", "package": "toy-package", "version": "1.2"} in report[
        "plugins"
    ]
    broken = rlhf_kit("doctor", "--plugin", "no.py")
    assert broken.exit_code == 2
    assert "BROKEN plugin no.py (no): FileNotFoundError" in broken.stdout


def test_doctor_knows_the_extras_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    del extras["dev"]
    names = {
        extra: tuple(re.split(r"[<>=]", requirement)[0] for requirement in requirements)
        for extra, requirements in extras.items()
    }
    assert names == doctor.EXTRAS


def test_doctor_says_which_package_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "strange", ("no-such-distribution",))
    assert (
        "extra 'strange' is not complete: no-such-distribution missing; "
        "pip install 'rlhf-kit[strange]'" in rlhf_kit("doctor").stdout
    )


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PluginError("a: b"), 2, "error: a: b\n"),
        (DataError("a\nb"), 3, "error: a\nerror: b\n"),
        (NumericsError("nan"), 4, "error: nan\n"),
        (Interrupted("saved; go on with x"), 130, "stopped: saved; go on with x\n"),
        (KeyboardInterrupt(), 130, "stopped: interrupted\n"),
        (OSError(errno.ENOSPC, "No space", "m.bin"), 3, "error: m.bin: no space left on the disk"),
    ],
)
def test_exit_codes(error: BaseException, code: int, text: str) -> None:
    @click.group(cls=ErrorGroup, lazy={})
    def group() -> None:
        raise error

    @click.command()
    def verb() -> None:
        pass

    group.get_command = lambda ctx, name: verb  # type: ignore[method-assign]
    result = CliRunner().invoke(group, ["verb"])
    assert result.exit_code == code
    assert result.stderr.startswith(text)


def test_an_unexpected_error_keeps_its_traceback() -> None:
    @click.group(cls=ErrorGroup, lazy={})
    def group() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "no disk has said that")

    group.get_command = lambda ctx, name: click.Command(name)  # type: ignore[method-assign]
    result = CliRunner().invoke(group, ["verb"])
    assert isinstance(result.exception, OSError)


def test_help_and_version() -> None:
    text = rlhf_kit("--help").stdout
    assert "Exit codes" in text
    for verb in ("run", "check", "plugins", "doctor"):
        assert verb in text
        assert rlhf_kit(verb, "--help").exit_code == 0
    assert "OVERRIDES" in rlhf_kit("run", "--help").stdout
    assert rlhf_kit("--version").stdout.startswith("rlhf-kit, version ")


def test_no_verb_but_run_imports_torch(_site: Path) -> None:
    """Also: a check takes less than a second of CPU time."""
    code = f"""
import sys, time
sys.path.insert(0, {str(_site)!r})
from rlhf_kit.cli.main import main
for args in (["check", "r.yaml"], ["plugins", "list"], ["doctor"], ["run", "--help"]):
    try:
        main(args)
    except SystemExit as end:
        code = end.code
    if args[0] == "check":
        assert not code, code
        assert time.process_time() < 1, time.process_time()
        assert "rlhf_kit.cli.run" not in sys.modules
        assert "rich" not in sys.modules
heavy = {{"torch", "transformers", "peft", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    paths = {"PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | paths
    )
    assert done.returncode == 0, done.stderr
    assert "ok" in done.stdout
