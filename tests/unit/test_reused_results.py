"""Which stages run again when something has changed, each fault as it was found."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from toy_runs import EVERY_STEP, STOPPING, newest, one_stage, run, sealed
from toys import write_toy_recipe
from watchers import write_watcher

from rlhf_kit import content
from rlhf_kit.cli.main import main
from rlhf_kit.content import Contents
from rlhf_kit.context import RunContext
from rlhf_kit.errors import DataError, RecipeError, RlhfKitError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run_folder import FORMAT

ALL = ["sft", "collect", "reward_model", "ppo", "evaluate"]


def fingerprints(
    recipe: Path, *overrides: str, out: Path | None = None, plugins: tuple[Path, ...] = ()
) -> dict[str, str]:
    """What `run` compares with the records in the folder ``out``."""
    resolved, _, _ = open_recipe(recipe, overrides, plugins)
    records = RunContext(resolved, out or recipe.parent / "run").records()
    return {id: record.fingerprint for id, record in records.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    assert list(before) == list(after)
    return [id for id in before if before[id] != after[id]]


@pytest.fixture
def recipe(toy_model: Path, tmp_path: Path) -> Path:
    return write_toy_recipe(tmp_path / "project", toy_model, "hydra")


def append(path: Path, text: str = "\n# edited\n") -> None:
    path.write_text(path.read_text() + text)


# -- files are told by what they hold, not by what they are called


def test_two_rewards_of_one_file_name(recipe: Path) -> None:
    for name in ("helpful", "harmless"):
        (recipe.parent / name).mkdir()
        shutil.copy(recipe.parent / "reward.py", recipe.parent / name)
    both = "{use: weighted_sum, rewards: {a: {use: python, path: helpful/reward.py}, b: {use: "
    both += "python, path: harmless/reward.py}}}"
    before = fingerprints(recipe, f"ppo.reward={both}")
    for name in ("helpful", "harmless"):
        append(recipe.parent / name / "reward.py")
        after = fingerprints(recipe, f"ppo.reward={both}")
        assert changed(before, after) == ["ppo", "evaluate"]
        before = after


def test_the_names_of_files_mean_nothing(recipe: Path) -> None:
    before = fingerprints(recipe, "evaluate.gold={use: python, path: reward.py}")
    (recipe.parent / "reward.py").rename(recipe.parent / "gold.py")
    gold = "{use: python, path: gold.py}"
    after = fingerprints(recipe, f"evaluate.gold={gold}", f"collect.labeler.reward={gold}")
    assert changed(before, after) == []


def test_a_project_that_was_moved_is_the_same(recipe: Path) -> None:
    before = fingerprints(recipe)
    moved = shutil.move(recipe.parent, recipe.parent.with_name("elsewhere"))
    assert changed(before, fingerprints(Path(moved) / "toy.yaml")) == []


def test_the_saved_recipe_in_its_own_folder_is_the_same(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    run(recipe, tmp_path / "run")
    run(tmp_path / "run/recipe.yaml", tmp_path / "run")
    assert "[sft] finished already" in capsys.readouterr().err
    assert not (tmp_path / "run/superseded").exists()


@pytest.fixture
def other_runs(toy_model: Path, tmp_path: Path) -> list[Path]:
    """Two finished runs of one PPO stage, which has its last weights in a folder of their own."""
    made = []
    for seed in (0, 1):
        recipe = one_stage(tmp_path / f"project-{seed}", toy_model, "ppo", steps=1, ema=0.9)
        run(recipe, tmp_path / f"other-{seed}", f"seed={seed}")
        made.append(tmp_path / f"other-{seed}")
    return made


def touch_weights(folder: Path) -> None:
    path = folder / "branch.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).add_(1.0)
    save_file(tensors, path)


def test_referenced_folders_count_with_what_is_in_them(
    recipe: Path, other_runs: list[Path]
) -> None:
    start, reference = other_runs
    values = yaml.safe_load(recipe.read_text())
    ppo = values["stages"]["ppo"] | {"from": f"{start}/", "reference": f"{reference}/stages/ppo"}
    ppo["reward"] = {"use": "python", "path": "reward.py"}
    values["stages"] = {"ppo": ppo}
    values["data"] = {name: values["data"][name] for name in ("prompts", "pretraining")}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    last = f"ppo.from={start}/stages/ppo/last"
    before, before_last = fingerprints(recipe), fingerprints(recipe, last)
    assert changed(before, before_last) == ["ppo"]
    touch_weights(start / "stages/ppo/last")
    assert changed(before_last, fingerprints(recipe, last)) == ["ppo"]
    touch_weights(reference / "stages/ppo")
    after = fingerprints(recipe)
    assert changed(before, after) == ["ppo"]
    touch_weights(start / "stages/ppo")
    assert changed(after, fingerprints(recipe)) == ["ppo"]


# -- code


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules outside of every installed distribution."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_reward_given_as_a_module_and_what_it_imports(recipe: Path, importable: Path) -> None:
    scorer, words = importable / "toy_scorer.py", importable / "toy_words"
    words.mkdir()
    (words / "__init__.py").write_text("")
    (words / "lists.py").write_text("GOOD = ['tea']\n")
    (words / "unused.py").write_text("BAD = []\n")
    scorer.write_text(
        "def reward(responses):\n"
        "    from toy_words.lists import GOOD\n"
        "    return [float(GOOD[0] in text) for text in responses]\n"
    )
    gold = "evaluate.gold={use: python, module: toy_scorer}"
    before = fingerprints(recipe, gold)
    append(words / "unused.py")
    assert changed(before, fingerprints(recipe, gold)) == []
    for file in (scorer, words / "lists.py", words / "__init__.py"):
        append(file)
        after = fingerprints(recipe, gold)
        assert changed(before, after) == ["evaluate"], file
        before = after


def test_a_reward_file_and_what_it_imports(recipe: Path, importable: Path) -> None:
    (importable / "toy_helper.py").write_text("import toy_deeper\n")
    (importable / "toy_deeper.py").write_text("SCALE = 2\n")
    append(recipe.parent / "reward.py", "\nimport toy_helper\n")
    before = fingerprints(recipe)
    append(importable / "toy_deeper.py")
    after = ["collect", "reward_model", "ppo", "evaluate"]
    assert changed(before, fingerprints(recipe)) == after


def test_a_reward_file_that_puts_its_own_folder_on_the_path(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has been imported, nothing else could find the module beside it."""
    (recipe.parent / "beside_toy.py").write_text("K = 101\n")
    append(
        recipe.parent / "reward.py",
        "\nimport sys\nsys.path.insert(0, __file__.rpartition('/')[0])\nimport beside_toy\n",
    )
    before = fingerprints(recipe)
    (recipe.parent / "beside_toy.py").write_text("K = 7\n")
    after = fingerprints(recipe)
    assert changed(before, after) == ["collect", "reward_model", "ppo", "evaluate"]
    # That it can be imported by now, in a notebook say, is no change.
    monkeypatch.syspath_prepend(str(recipe.parent))
    assert changed(after, fingerprints(recipe)) == []


def test_a_module_in_a_package_counts_with_the_files_beside_it(
    recipe: Path, importable: Path
) -> None:
    package = importable / "toy_judge"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "score.py").write_text("def reward(responses):\n    return [0.0] * len(responses)\n")
    (package / "words.txt").write_text("tea")
    gold = "evaluate.gold={use: python, module: toy_judge.score}"
    before = fingerprints(recipe, gold)
    append(package / "words.txt")
    assert changed(before, fingerprints(recipe, gold)) == ["evaluate"]


def test_star_imports_reach_the_modules_of_a_package(recipe: Path, importable: Path) -> None:
    package = importable / "toy_star"
    package.mkdir()
    (package / "__init__.py").write_text('__all__ = ["a"]\n')
    (package / "a.py").write_text("K = 1\n")
    append(recipe.parent / "reward.py", "\nfrom toy_star import *\n")
    before = fingerprints(recipe)
    append(package / "a.py")
    assert "collect" in changed(before, fingerprints(recipe))


def test_sources_beside_an_egg_info_are_read(recipe: Path, importable: Path) -> None:
    """It has no list of hashes that could stand for them."""
    info = importable / "toy_egg.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: toy_egg\nVersion: 0.1\n")
    (importable / "toy_egg.py").write_text("K = 1\n")
    append(recipe.parent / "reward.py", "\nimport toy_egg\n")
    before = fingerprints(recipe)
    append(importable / "toy_egg.py")
    assert "collect" in changed(before, fingerprints(recipe))


def test_plugins_of_rlhf_kit_are_followed_where_it_is_installed_from_a_wheel(
    importable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's estimator may build on a built-in one."""
    (importable / "rlhf_kit_toy").mkdir()
    (importable / "rlhf_kit_toy/__init__.py").write_text("")
    info = importable / "rlhf_kit-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rlhf-kit\nVersion: 9.9\n")
    (info / "RECORD").write_text("rlhf_kit_toy/__init__.py,,\n")
    (importable / "toy_builder.py").write_text("import rlhf_kit_toy\n")
    monkeypatch.setattr(content, "_all_distributions", lambda: {"rlhf_kit_toy": ["rlhf-kit"]})
    before = Contents().source("toy_builder")
    append(importable / "rlhf_kit_toy/__init__.py")
    assert Contents().source("toy_builder") != before


PLUGIN = """
import rlhf_kit

class {name}Options(rlhf_kit.Options):
    scale: float = 1.0

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component("reward", "{seam_name}", "{target}", {name}Options)
"""

REWARD = """
import torch

class Brief:
    def __init__(self, options):
        self.scale = options.scale

    def __call__(self, samples):
        return torch.tensor([-self.scale * len(text) for text in samples.responses])
"""


def install(folder: Path, *, editable: bool) -> Path:
    """A distribution `toy-brief` 1.0 in ``folder``, as pip lays it out; where its source is."""
    info = folder / "toy_brief-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-brief\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlhf_kit]\ntoy_brief = toy_brief.plugin\n")
    source = folder.with_name("checkout") if editable else folder
    package = source / "toy_brief"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    text = PLUGIN.format(name="Brief", seam_name="toy_brief", target="toy_brief.brief:Brief")
    (package / "plugin.py").write_text(text)
    (package / "brief.py").write_text(REWARD)
    (package / "words.json").write_text("[]")
    listed = "" if editable else "toy_brief/__init__.py,,\ntoy_brief/brief.py,,\n"
    (info / "RECORD").write_text(listed)
    return source


@pytest.mark.parametrize("editable", [False, True])
def test_an_installed_plugin_is_its_source_and_not_its_version(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    editable: bool,
) -> None:
    source = install(tmp_path / "site", editable=editable)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    if editable:
        monkeypatch.syspath_prepend(str(source))
    for name in [name for name in sys.modules if name.startswith("toy_brief")]:
        monkeypatch.delitem(sys.modules, name)
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=1)
    out = tmp_path / "run"
    run(recipe, out, "ppo.reward=toy_brief")
    run(recipe, out, "ppo.reward=toy_brief")
    assert "[ppo] finished already" in capsys.readouterr().err
    for name in ("brief.py", "words.json"):
        append(source / "toy_brief" / name, "\n")
        run(recipe, out, "ppo.reward=toy_brief")
        shown = capsys.readouterr().err
        assert "[ppo] what it depends on has changed (its options, or a file or plugin" in shown
        assert "[ppo] done" in shown


SINGLE = """
import rlhf_kit
from rlhf_kit_hf.options import FullOptions, PretrainedOptions

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component("memory", "own_memory", "single:Own", FullOptions)
    yield rlhf_kit.Component("model", "own_model", "single:Source", PretrainedOptions)
    yield rlhf_kit.Component("reward", "own_reward", "single:Reward")

def __getattr__(name):
    from rlhf_kit_hf.full import FullMemory
    from rlhf_kit_hf.sources import PretrainedSource
    return {"Own": FullMemory, "Source": PretrainedSource}[name]

class Reward:
    def __init__(self, options):
        pass

    def __call__(self, samples):
        import torch
        return torch.zeros(len(samples.responses))
"""


@pytest.mark.parametrize(
    ("override", "reached"),
    [
        ("memory={use: own_memory}", ALL),
        ("model.use=own_model", ALL),
        ("ppo.reward=own_reward", ["ppo", "evaluate"]),
    ],
)
def test_a_plugin_file_counts_for_whatever_it_supplies(
    recipe: Path, tmp_path: Path, toy_model: Path, override: str, reached: list[str]
) -> None:
    single = tmp_path / "single.py"
    single.write_text(SINGLE)
    overrides = [override]
    if override.startswith("model"):
        overrides.append(f"model.name={toy_model}")
    before = fingerprints(recipe, *overrides, plugins=(single,))
    append(single)
    for name in [name for name in sys.modules if name.startswith("rlhf_kit_file_single")]:
        del sys.modules[name]
    assert changed(before, fingerprints(recipe, *overrides, plugins=(single,))) == reached


@pytest.mark.parametrize(
    "name", ["modeling_toy.py", "merges.txt", "vocab.txt", "config.json", "model.safetensors"]
)
def test_every_file_of_a_model_folder(recipe: Path, toy_model: Path, name: str) -> None:
    model = shutil.copytree(toy_model, recipe.parent / "model")
    (model / "modeling_toy.py").write_text("")
    (model / "merges.txt").write_text("")
    (model / "vocab.txt").write_text("")
    place = f"model.name={model}"
    before = fingerprints(recipe, place)
    path = model / name
    content = path.read_bytes()
    # A file of weights that is too long would be refused.
    other = content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".safetensors" else None
    path.write_bytes(other or content + b" ")
    assert changed(before, fingerprints(recipe, place)) == ALL


def test_a_file_of_a_model_folder_that_nobody_reads(recipe: Path, toy_model: Path) -> None:
    model = shutil.copytree(toy_model, recipe.parent / "model")
    before = fingerprints(recipe, f"model.name={model}")
    (model / "README.md").write_text("about it")
    assert changed(before, fingerprints(recipe, f"model.name={model}")) == []


# -- what is set aside


def test_a_rerun_that_is_not_finished_hides_the_old_result(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=2)
    out = tmp_path / "run"
    run(recipe, out)
    follower = one_stage(tmp_path / "next", toy_model, "sft")
    start = f"sft.from={out}/"
    before = fingerprints(follower, start)
    stop_at(recipe, out, monkeypatch, "ppo.kl.coef=0.5")
    with pytest.raises(RecipeError, match="holds no finished policy: ppo is not finished"):
        open_recipe(follower, [start])
    aside = out / "superseded/ppo-1"
    named = fingerprints(follower, f"sft.from={aside}")
    assert changed(before, named) == []  # the very same weights
    run(recipe, out, "ppo.kl.coef=0.5")
    assert changed(before, fingerprints(follower, start)) == ["sft"]


def stop_at(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, step: int = 0
) -> None:
    """Run until an observer stops it at ``step``, with a checkpoint after every step."""
    stopping = recipe.parent / "stopping.py"
    watched = write_watcher(stopping, STOPPING.format(step=step))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, *overrides, watched, EVERY_STEP, plugins=(stopping,))


def test_a_later_stage_of_the_recipe_before_is_no_result_of_this_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model: Path
) -> None:
    """`evaluate` and `ppo` still lie in stages/ while `sft` is being trained anew."""
    out = tmp_path / "run"
    run(recipe, out)
    stop_at(recipe, out, monkeypatch, "sft.optimizer.learning_rate=0.002")
    assert (out / "stages/ppo/stage.json").is_file()
    follower = one_stage(tmp_path / "next", toy_model, "sft")
    for place in (out, out / "stages/ppo"):
        with pytest.raises(RecipeError, match="is of an earlier recipe, which the run has since"):
            open_recipe(follower, [f"sft.from={place}/"])


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("memory.trainable_layers=4", "memory.trainable_layers: 4, but the model has 4"),
        ("model.max_length=16", "exceed the context"),
        ("sft.epocs=3", "unknown key"),
    ],
)
def test_what_is_refused_moves_nothing(
    recipe: Path, tmp_path: Path, override: str, kind: str
) -> None:
    out = tmp_path / "run"
    run(recipe, out)
    before = {
        path.relative_to(out): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in out.rglob("*")
    }
    with pytest.raises(RlhfKitError, match=kind):
        run(recipe, out, override)
    after = {
        path.relative_to(out): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in out.rglob("*")
    }
    assert after == before


def test_what_is_set_aside_can_be_listed_and_pruned(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    out = tmp_path / "run"
    run(recipe, out)
    listed = CliRunner().invoke(main, ["superseded", str(out)])
    assert (listed.exit_code, listed.output) == (0, "nothing is set aside\n")
    for epochs in (2, 3):
        run(recipe, out, f"sft.epochs={epochs}")
    weights = (out / "stages/sft/branch.safetensors").read_bytes()
    listed = CliRunner().invoke(main, ["superseded", str(out), "--json"])
    found = json.loads(listed.output)["superseded"]
    assert [(i["stage"], Path(i["folder"]).name, i["finished"]) for i in found] == [
        ("sft", "sft-1", True),
        ("sft", "sft-2", True),
    ]
    assert all(item["mib"] > len(weights) / 2**20 for item in found)
    record = out / "superseded/sft-1/stage.json"
    older = json.dumps({"stage": "sft", "format": 1})
    for text in (record.read_text()[:-20], older):
        record.write_text(text)
        listed = CliRunner().invoke(main, ["superseded", str(out)])
        assert [w for w in listed.output.split() if w in ("yes", "damaged")] == ["yes", "damaged"]
    pruned = CliRunner().invoke(main, ["superseded", str(out), "--prune"])
    assert pruned.exit_code == 0 and "deleted" in pruned.output
    assert list((out / "superseded").iterdir()) == []
    assert (out / "stages/sft/branch.safetensors").read_bytes() == weights
    wrong = CliRunner().invoke(main, ["superseded", str(recipe.parent)], standalone_mode=False)
    assert "is no run folder" in str(wrong.exception) + wrong.output


def test_a_run_folder_means_its_last_such_stage_or_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model: Path
) -> None:
    """While `ppo` is being trained, `from: ./run/` must not become `sft`."""
    out = tmp_path / "run"
    run(recipe, out)
    stop_at(recipe, out, monkeypatch, "ppo.kl.coef=0.5")
    follower = one_stage(tmp_path / "next", toy_model, "sft")
    hint = rf"ppo is not finished; name {out}/stages/sft if that is meant"
    with pytest.raises(RecipeError, match=hint):
        open_recipe(follower, [f"sft.from={out}/"])
    open_recipe(follower, [f"sft.from={out}/stages/sft"])
    assert not (out / "summary.json").exists()  # it was of the recipe before


def test_the_folder_says_whose_results_it_holds(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model: Path
) -> None:
    """Back to the first recipe, before anything but a stage it does not have was touched."""
    out, values = tmp_path / "run", yaml.safe_load(recipe.read_text())
    run(recipe, out)
    warm = dict(values["stages"]["sft"])
    other = recipe.with_name("other.yaml")
    stages = {"warm": warm, **values["stages"]}
    other.write_text(yaml.safe_dump(values | {"stages": stages}, sort_keys=False))
    stop_at(other, out, monkeypatch)
    run(recipe, out)
    assert "warm" not in json.loads((out / "manifest.json").read_text())["fingerprints"]
    assert "warm" not in yaml.safe_load((out / "recipe.yaml").read_text())["stages"]
    follower = one_stage(tmp_path / "next", toy_model, "sft")
    open_recipe(follower, [f"sft.from={out}/"])


def test_weights_of_another_kind_inside_a_stage_folder(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(
        tmp_path / "project",
        toy_model,
        "ppo",
        steps=1,
        ema=0.9,
        critic={"value": {"use": "separate"}},
    )
    folder = run(recipe, tmp_path / "run")
    follower = one_stage(tmp_path / "next", toy_model, "sft")
    open_recipe(follower, [f"sft.from={folder}/last"])
    with pytest.raises(RecipeError, match="holds no finished policy"):
        open_recipe(follower, [f"sft.from={folder}/critic"])


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"format": FORMAT})])
@pytest.mark.parametrize("name", ["stages/sft/stage.json", "manifest.json"])
def test_a_damaged_record_is_one_line(
    toy_model: Path, tmp_path: Path, name: str, text: str
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    run(recipe, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match="is damaged"):
        open_recipe(recipe, [f"sft.from={tmp_path}/run/"])


def test_an_observer_of_a_new_run_finds_its_folder(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    watcher = tmp_path / "watcher.py"
    watched = write_watcher(
        watcher,
        "def run_started(self, folder, recipe):\n    (folder / 'started.txt').write_text('x')\n",
    )
    run(recipe, tmp_path / "run", watched, plugins=(watcher,))
    assert (tmp_path / "run/started.txt").is_file()


# -- metrics


def rows(out: Path) -> list[tuple[str, int]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in found]


def test_metrics_are_of_the_present_result_only(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=4)
    out = tmp_path / "run"
    run(recipe, out)
    old = (out / "metrics.jsonl").read_bytes()
    run(recipe, out, "ppo.steps=2")
    assert rows(out) == [("ppo", 0), ("ppo", 1)]
    assert (out / "superseded/ppo-1/metrics.jsonl").read_bytes() == old
    manifest = json.loads((out / "manifest.json").read_text())
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["run"], row["attempt"]) == (manifest["run"], 2)
        assert manifest["fingerprints"]["ppo"].startswith(row["fingerprint"])


def test_a_continuation_repeats_no_row(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=4)
    out = tmp_path / "run"
    stop_at(recipe, out, monkeypatch, step=2)  # saved after two steps, and the third is reported
    assert rows(out) == [("ppo", 0), ("ppo", 1), ("ppo", 2)]
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "st')  # a kill in the middle of a row
    run(recipe, out)
    assert rows(out) == [("ppo", step) for step in range(4)]
    attempts = [json.loads(x)["attempt"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert attempts == [1, 1, 2, 2]


def test_a_stage_killed_before_its_first_checkpoint_leaves_no_rows(
    toy_model: Path, tmp_path: Path
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=3)
    stopping = tmp_path / "stopping.py"
    watched = write_watcher(stopping, STOPPING.format(step=1))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", watched, plugins=(stopping,))
    run(recipe, tmp_path / "run")
    assert rows(tmp_path / "run") == [("ppo", step) for step in range(3)]


# -- options of the machine


def test_a_smaller_micro_batch_goes_on_from_the_checkpoint(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=3, gate={"check": False})
    out = tmp_path / "run"
    stop_at(recipe, out, monkeypatch, step=1)
    capsys.readouterr()
    folder = run(recipe, out, "ppo.micro_batch=2", "memory.device=auto", "ppo.gradient_norms=false")
    shown = capsys.readouterr().err
    assert "[ppo] going on after step 1 of 3" in shown
    assert "[ppo] goes on with micro_batch 2 (was 4): the same result but for rounding" in shown
    record = json.loads((folder / "stage.json").read_text())
    used = [(a["attempt"], a["execution"]["micro_batch"]) for a in record["attempts"]]
    assert used == [(1, 4), (2, 2)]
    assert record["attempts"][1]["execution"]["memory.device"] == "auto"
    whole = run(recipe, tmp_path / "whole")
    for name, tensor in load_file(folder / "branch.safetensors").items():
        expected = load_file(whole / "branch.safetensors")[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-4)
    run(recipe, out)  # and back: still finished
    assert "[ppo] finished already" in capsys.readouterr().err


def test_the_precision_counts_as_what_it_becomes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is float32 on one machine and bfloat16 on another: that is another result."""
    slow, fast = "rlhf_kit.engine.precision.cpu_has_bfloat16", (False, True)
    found = []
    for native in fast:
        monkeypatch.setattr(slow, lambda native=native: native)
        found.append(fingerprints(recipe, "memory.dtype=auto", "memory.device=cpu"))
    assert found[0] == fingerprints(recipe, "memory.dtype=float32")
    assert found[1] == fingerprints(recipe, "memory.dtype=bfloat16")
    assert changed(*found) == ALL


def test_dropout_is_drawn_for_each_forward_pass(recipe: Path) -> None:
    """So with it a micro-batch makes another result."""
    for dropout, reached in (("0.0", []), ("0.2", ALL)):
        before = fingerprints(recipe, f"sft.residual_dropout={dropout}")
        after = fingerprints(recipe, f"sft.residual_dropout={dropout}", "sft.micro_batch=2")
        assert changed(before, after) == reached


NOISY = """
import torch

def reward(responses):
    return torch.rand(len(responses))
"""


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("memory", ["lora", "hydra"])
def test_a_continuation_draws_what_an_uninterrupted_run_draws(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, gate: bool
) -> None:
    """A reward draws from torch's own generator, and so does a new adapter."""
    checks = {"skip": ["repeatable", "reward"]} if gate else {"check": False}
    recipe = one_stage(
        tmp_path / "project", toy_model, "ppo", memory, reward=NOISY, steps=3, gate=checks
    )
    whole = run(recipe, tmp_path / "whole")
    stop_at(recipe, tmp_path / "part", monkeypatch, step=1)
    part = run(recipe, tmp_path / "part")
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert files
    for name in files:
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name


# -- formats


def test_records_and_checkpoints_of_another_format_are_refused_in_one_line(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", steps=2)
    out = tmp_path / "run"
    stop_at(recipe, out, monkeypatch, step=1)
    checkpoint = newest(out)
    content = torch.load(checkpoint, weights_only=True)
    for number, said in ((99, "is of format 99"), (None, "is of format 1")):
        sealed(checkpoint, {**content, "format": number} if number else _without(content))
        refused(recipe, out, said)
    for path in (out / "stages/ppo/stage.json", out / "manifest.json"):
        sealed(checkpoint, content)
        good = path.read_text()
        for number, said in ((99, "is of format 99"), (None, "is of format 1")):
            values = json.loads(good)
            values = values | {"format": number} if number else _without(values)
            path.write_text(json.dumps(values))
            refused(recipe, out, said)
        path.write_text(good)
    run(recipe, out)


def _without(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != "format"}


def refused(recipe: Path, out: Path, said: str) -> None:
    with pytest.raises(DataError) as caught:
        run(recipe, out)
    text = str(caught.value)
    assert said in text and "--out" in text and "\n" not in text


def test_an_artifact_of_another_format_is_refused_by_check(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    folder = run(recipe, tmp_path / "run")
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(RecipeError, match=r"command line: stages.sft.from: .* is of format 1"):
        open_recipe(recipe, [f"sft.from={folder}"])


# -- what is not needed is not built


def test_a_finished_stage_is_not_built_again(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its data read, or tokenised, or held."""
    out = tmp_path / "run"
    run(recipe, out)
    built: list[str] = []
    original: Callable[..., object] = RunContext.build_stage

    def noted(self: RunContext, stage: object) -> object:
        built.append(stage.id)  # type: ignore[attr-defined]
        return original(self, stage)

    monkeypatch.setattr(RunContext, "build_stage", noted)
    run(recipe, out)
    assert built == []
    run(recipe, out, "evaluate.samples_per_prompt=3")
    assert built == ["evaluate"]


def test_times_and_peak_of_a_run_with_nothing_to_do_stay(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    out = tmp_path / "run"
    run(recipe, out)
    before = json.loads((out / "summary.json").read_text())
    ballast = os.urandom(1)  # another process would have another peak
    run(recipe, out)
    after = json.loads((out / "summary.json").read_text())
    assert ballast and after["peak_rss_mib"] == before["peak_rss_mib"] > 100
    assert after["seconds"]["sft"] == before["seconds"]["sft"]
