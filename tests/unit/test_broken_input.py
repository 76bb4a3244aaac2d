"""What a user can get wrong: one clear line, the right exit code, and before any weights load.

The model folder of most tests has weights that are all NaN: whoever tries to load them fails with
another message than the one expected.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from toy_plugins import offering, write_distribution
from toys import COMMAND, environment, write_toy_model, write_toy_recipe
from watchers import write_watcher

from rlhf_kit.cli.main import main
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe


@pytest.fixture(scope="module")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy_model("llama", tmp_path_factory.mktemp("weightless"))
    weights = load_file(folder / "model.safetensors")
    gone = {name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()}
    save_file(gone, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def broken(weightless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a recipe whose model has no weights; nothing may have been written in the end."""
    monkeypatch.chdir(tmp_path)

    def write(memory: str = "hydra", **overrides: Any) -> Path:
        return write_toy_recipe(tmp_path, weightless, memory, **overrides)

    yield write
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "runs/toy/stages").exists()


def rlhf_kit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def line_of(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def refused(
    path: Path, code: int, *, check: bool = True, plugin: Path | None = None, places: int = 1
) -> str:
    """The one line that both verbs say, with the same exit code; one for each of ``places``."""
    extra: list[str | Path] = [] if plugin is None else ["--plugin", plugin]
    verbs = ("check", "run") if check else ("run",)
    said = set()
    for verb in verbs:
        result = rlhf_kit(verb, path, *extra)
        assert result.exit_code == code, result.stderr
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == places, result.stderr
        assert lines[0].startswith("error: ")
        said.add(lines[0].removeprefix("error: "))
    assert len(said) == 1
    return said.pop()


def test_without_weights_the_stage_that_loads_them_says_so(
    weightless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a recipe that is right gets as far as the weights."""
    monkeypatch.chdir(tmp_path)
    result = rlhf_kit("run", write_toy_recipe(tmp_path, weightless, "hydra"))
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: stage 'sft': model: {weightless}: NaN or inf in 39 of its ")


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ({"ppo": {"kl": {"coeff": 0.1}}}, "ppo.kl.coeff", "unknown key; did you mean 'coef'?"),
        (
            {"ppo": {"optimizer": {"learning_rat": 1}}},
            "ppo.optimizer.learning_rat",
            "did you mean 'learning_rate'?",
        ),
        ({"ppo": {"steps": "many"}}, "ppo.steps", "is 'many'; should be a valid integer"),
        ({"ppo": {"kl": {"coef": [1, 2]}}}, "ppo.kl.coef", "should be a valid number"),
        (
            {"ppo": {"kl": {"coef": -1}}},
            "ppo.kl.coef",
            "is -1; should be greater than or equal to 0",
        ),
        ({"collect": {"completions": 1}}, "collect.completions", "is 1; should be greater"),
        (
            {"ppo": {"critic": {"value": {"use": "linera"}}}},
            "ppo.critic.value.use",
            "did you mean 'linear'?",
        ),
        ({"sft": {"use": "sfft"}}, "sft.use", "no stage is called 'sfft'; did you mean 'sft'?"),
        ({"reward_model": {"from": "stf"}}, "reward_model.from", "did you mean 'sft'?"),
        ({"reward_model": {"from": "ppo"}}, "reward_model.from", "'ppo' is not an earlier stage"),
        ({"ppo": {"from": "collect"}}, "ppo.from", "produces comparisons, not policy"),
        ({"ppo": {"from": "./nowhere"}}, "ppo.from", "nowhere: no such folder"),
        ({"ppo": {"rollout_batch": 2}}, "ppo.minibatch", "4 is larger than rollout_batch 2"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_a_wrong_recipe(broken: Any, override: dict[str, Any], key: str, says: str) -> None:
    path = broken(**override)
    said = refused(path, 2)
    place = re.match(r"toy\.yaml:(\d+): ([\w.]+): ", said)
    assert place, said
    assert says in said
    assert place[2].startswith(f"stages.{key}")
    at = path.read_text().splitlines()[int(place[1]) - 1]
    assert at.strip().startswith(f"{key.rpartition('.')[2]}:")


def test_a_component_of_a_plugin_that_failed_to_import(
    broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_distribution(
        tmp_path / "site", "bad-package", bad_plugin="import rlhf_kit\n\nraise OSError('lost')\n"
    )
    monkeypatch.syspath_prepend(str(site))
    for name in ("bad-package/mine", "mine"):
        said = refused(broken(ppo={"advantage": {"use": name}}), 2)
        assert f"'{name}'" in said
        assert "failed to load: OSError: lost (bad_plugin.py:3)" in said
    # Who does not name it is not disturbed by it.
    assert rlhf_kit("check", broken()).exit_code == 0


def test_two_plugins_with_one_name(
    broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        source = offering("policy_loss", "same")
        site = write_distribution(tmp_path / name, f"{name}-package", **{f"{name}_mod": source})
        monkeypatch.syspath_prepend(str(site))
    said = refused(broken(ppo={"policy_loss": {"use": "same"}}), 2)
    assert said.endswith(
        "2 packages offer a policy_loss 'same'; write one-package/same or two-package/same"
    )
    path = broken(ppo={"policy_loss": {"use": "two-package/same"}})
    assert rlhf_kit("check", path).exit_code == 0


def test_a_component_that_cannot_be_imported(broken: Any, tmp_path: Path) -> None:
    """The plugin is fine; what it names is not there."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import rlhf_kit\n"
        "@rlhf_kit.hookimpl\n"
        "def rlhf_components():\n"
        "    return [rlhf_kit.Component('policy_loss', 'mine', 'nowhere.at_all:Thing')]\n"
    )
    path = broken(ppo={"policy_loss": {"use": "mine"}})
    said = refused(path, 2, plugin=plugin)
    assert "cannot import nowhere.at_all:Thing: ModuleNotFoundError" in said


@pytest.mark.parametrize("name", ["demonstrations.jsonl", "prompts.jsonl", "text.txt"])
def test_a_missing_data_file(broken: Any, tmp_path: Path, name: str) -> None:
    path = broken()
    (tmp_path / name).unlink()
    assert f"{name}: no such file" in refused(path, 3)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "response": "b"', "not valid JSON: .* at column"),
        ('{"prompt": "a", "response": "  "}', "response: is empty"),
        ('{"prompt": "a", "response": ""}', "response: is empty"),
        ('{"prompt": "", "response": "b"}', "prompt: is empty"),
        ('{"prompt": "a"}', "response: Field required"),
        ('{"response": "b"}', "give exactly one of prompt, messages and token_ids"),
        ('{"prompt": 5, "response": "b"}', "prompt: Input should be a valid string"),
        ('["a", "b"]', "valid dictionary"),
        ('{"prompt": "a", "response": "b", "split": "trian"}', "split: .*'train'"),
    ],
)
def test_a_malformed_line(broken: Any, tmp_path: Path, line: str, says: str) -> None:
    path = broken()
    data = tmp_path / "demonstrations.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    said = refused(path, 3)
    assert re.match(rf"{re.escape(str(data))}:5: .*{says}", said), said


def test_other_wrong_files(broken: Any, tmp_path: Path) -> None:
    path = broken()
    data = tmp_path / "prompts.jsonl"
    data.write_bytes(b'{"prompt": "caf\xe9"}\n')
    assert "prompts.jsonl:1: not UTF-8 text" in refused(path, 3)
    data.write_text("\n\n")
    assert "prompts.jsonl: the file has no rows" in refused(path, 3)
    data.write_text('{"prompt": "a", "split": "train"}\n')
    assert "prompts.jsonl: no rows of split 'validation'" in refused(path, 3, check=False)


def test_a_prompt_longer_than_the_context(broken: Any, tmp_path: Path) -> None:
    path = broken()
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "too-long", "prompt": "x" * 240, "split": "train"}) + "\n")
    said = refused(path, 3, check=False)
    assert "'too-long'" in said
    assert re.search(r"259 tokens and 6 new ones exceed the context of 256", said)


def test_a_demonstration_longer_than_the_context(broken: Any, tmp_path: Path) -> None:
    path = broken()
    row = {"prompt": "x" * 100, "response": "y" * 200, "split": "train"}
    with (tmp_path / "demonstrations.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert "tokens exceed the context of 256" in refused(path, 3, check=False)


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("return [float('nan')] * len(responses)", 4, "score nan for response 0 of 2"),
        ("return [1.0, float('inf')]", 4, "score inf for response 1 of 2"),
        ("return [0.5]", 4, r"shape \[2\], or per token, \[2, 3\]; got \[1\]"),
        (
            "return [[0.5]] * len(responses)",
            4,
            r"shape \[2\], or per token, \[2, 3\]; got \[2, 1\]",
        ),
        ("return 0.5", 4, r"one score per response, shape \[2\], or .*; got \[\]"),
        ("return responses", 2, r"reward\.py:reward returned \[.*; it should return one number"),
        ("return [1 / 0]", 2, r"ZeroDivisionError: division by zero \(reward\.py:2\)"),
        ("return None", 2, r"reward\.py:reward returned None; it should return one number"),
    ],
)
def test_a_wrong_reward(broken: Any, tmp_path: Path, body: str, code: int, says: str) -> None:
    path = broken()
    (tmp_path / "reward.py").write_text(f"def reward(responses):\n    {body}\n")
    said = refused(path, code, check=False)
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def other(responses): ...", "AttributeError: the file has no attribute 'reward'"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def reward(answers): ...", "has parameters (answers); it may have any of prompts"),
        ("def reward(:", "SyntaxError"),
        (None, "no such Python file"),
    ],
)
def test_a_reward_that_is_not_there(
    broken: Any, tmp_path: Path, source: str | None, says: str
) -> None:
    path = broken()
    (tmp_path / "reward.py").unlink()
    if source is not None:
        (tmp_path / "reward.py").write_text(source)
    assert says in refused(path, 2, places=2)  # the labeler's, and the gold standard


def test_a_reward_that_turns_bad_on_the_way(
    toy_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Finished stages stay finished; what was wrong is named, with the stage."""
    recipe = toy_recipe("full")
    source = recipe.parent / "reward.py"
    good = source.read_text()
    source.write_text(
        "def reward(responses):\n"
        "    return [1.0 if 'This is an answer' in r else float('nan') for r in responses]\n"
    )
    out = tmp_path / "run"
    result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 4
    last = result.stderr.splitlines()[-1]
    assert "stages.collect.labeler.reward: reward 'python' of package 'rlhf-kit'" in last
    assert "score nan for response" in last
    source.write_text(good)
    result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 0
    assert "[sft] finished already" in result.stderr


def test_a_disk_that_is_full_before(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = broken()
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Full)
    said = refused(path, 3, check=False)
    assert "no space left on the disk (3 MiB free, at least 64 needed)" in said


class _Full:
    free = 3 * 2**20


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_disk_that_fills_up_while_weights_are_written(
    toy_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whatever the strategy, nothing that was written before is lost, and the run goes on."""
    recipe, out = toy_recipe("hydra"), tmp_path / "run"
    full = out / "stages" / stage
    real = os.fsync

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.is_relative_to(full) and "safetensors" in place.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 3, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: stage '{stage}': {full}/branch.safetensors: no space left")
    assert not list(out.rglob("*.part"))
    assert not list(full.glob("*.safetensors"))
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no command mount; the tests above stand in")
    if done.returncode != 0:
        pytest.skip("may not mount a file system; the tests above stand in")
    yield folder
    # Lazily, since weights that were loaded from it may still be mapped.
    subprocess.run(["umount", "-l", str(folder)], check=True)


FILLING = """
def rollout_collected(self, stage, step, rollout):
    import os
    if step == {step}:
        free = os.statvfs({folder!r})
        with open({folder!r} + "/filler", "wb") as file:
            file.write(bytes(free.f_bavail * free.f_frsize - {left}))
"""


@pytest.mark.parametrize("memory", ["full", "hydra", "lora"])
@pytest.mark.parametrize(("step", "left"), [(1, 0), (2, 24 * 1024)])
def test_a_disk_that_is_really_full(
    toy_recipe: Callable[..., Path],
    tmp_path: Path,
    small_disk: Path,
    memory: str,
    step: int,
    left: int,
) -> None:
    """In the middle of PPO, or with so little left that the metrics fit and the weights do not."""
    recipe, out = toy_recipe(memory), small_disk / "run"
    plugin = tmp_path / "filling.py"
    filling = FILLING.format(step=step, folder=str(small_disk), left=left)
    watched = write_watcher(plugin, filling)
    result = rlhf_kit("run", recipe, watched, "--out", out, "--plugin", plugin)
    assert result.exit_code == 3, (result.stderr, result.exception)
    assert "no space left on the disk" in result.stderr.splitlines()[-1]
    (small_disk / "filler").unlink()
    result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "[reward_model] finished already" in result.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if row["stage"] == "ppo"} == {0, 1, 2}


def test_run_in_a_process_of_its_own(broken: Any) -> None:
    """Exit code and streams as a shell sees them."""
    path = broken(ppo={"kl": {"coeff": 0.1}})
    done = subprocess.run(
        [*COMMAND, "run", str(path)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert done.stdout == ""
    line = line_of(path, "coeff")
    assert done.stderr.startswith(f"error: toy.yaml:{line}: stages.ppo.kl.coeff: unknown key")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["quickstart", "toy"])
def test_check_is_cheap(broken: Any, name: str) -> None:
    """No torch, and less than a second of the processor, Python's own start included."""
    quickstart = Path(__file__).parents[2] / "recipes/quickstart.yaml"
    path = quickstart if name == "quickstart" else broken()
    code = f"""
import sys
from rlhf_kit.cli.main import main
try:
    main(["check", {str(path)!r}])
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "peft", "datasets", "numpy", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment()
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_utime + usage.ru_stime < 1.0


def test_a_wrong_recipe_stops_before_torch(broken: Any) -> None:
    path = broken(ppo={"kl": {"coeff": 0.1}})
    code = f"""
import sys
from rlhf_kit.cli.main import main
try:
    main(["run", {str(path)!r}])
except SystemExit as end:
    assert end.code == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("memory", ["lora", "full"])
def test_a_run_folder_of_another_strategy_is_refused(
    toy_recipe: Callable[..., Path], tmp_path: Path, memory: str
) -> None:
    """`from:` a folder that hydra wrote, with the cause."""
    resolved, loaded, _ = open_recipe(_only_sft(toy_recipe("hydra")))
    run_recipe(resolved, loaded, out=tmp_path / "run", plain=True)
    second = _only_sft(toy_recipe(memory, sft={"from": str(tmp_path / "run")}))
    result = rlhf_kit("run", second, "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert f"written with memory strategy 'hydra', the recipe has '{memory}'" in result.stderr


def _only_sft(recipe: Path) -> Path:
    values = yaml.safe_load(recipe.read_text())
    values["stages"] = {"sft": values["stages"]["sft"]}
    values["data"] = {"demonstrations": values["data"]["demonstrations"]}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return recipe
