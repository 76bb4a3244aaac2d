"""Every name found, every option checked, every problem said with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_plugins import (
    RECIPE,
    TOY,
    finished_stage,
    load_toys,
    offering,
    resolved,
    write_distribution,
)

from rlhf_kit.components import StageRef
from rlhf_kit.errors import DataError, PluginError, RecipeError
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import dump_yaml, filled, refs_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site")
    write_distribution(folder, "toy-package", toy_for_resolve=TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def toys(site: Path) -> LoadedPlugins:
    loaded = load_toys(site)
    assert loaded.broken == []
    return loaded


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str = RECIPE, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = Path("r.yaml")
    path.write_text(text)
    return path


def problems(loaded: LoadedPlugins, *changes: tuple[str, str], overrides=()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolved(loaded, write(RECIPE, *changes), *overrides)
    lines = str(caught.value).splitlines()
    for line in lines:
        assert re.match(r"(r\.yaml:\d+|command line): [a-z_.0-9]+: .", line), line
    return lines


def problem(loaded: LoadedPlugins, *changes: tuple[str, str], overrides=()) -> str:
    (line,) = problems(loaded, *changes, overrides=overrides)
    return line


def test_a_right_recipe(toys: LoadedPlugins, tmp_path: Path) -> None:
    recipe = resolved(toys, write())
    assert (recipe.name, recipe.seed) == ("r", 3)
    assert recipe.memory.options.rank == 8
    assert recipe.model.where == "r.yaml:2"
    assert recipe.data["demos"].options.path == tmp_path / "demos.jsonl"
    sft, ppo = recipe.stages["sft"], recipe.stages["ppo"].part.options
    assert sft.part.options.lr == 1e-5, "YAML 1.1 reads 1e-5 as text; it must become a number"
    assert sft.part.options.data is recipe.data["demos"]
    assert ppo.from_ == StageRef(stage="sft")
    assert ppo.advantage.component.name == "toy-gae", "the slot's default"
    assert ppo.advantage.options.lam == 0.9
    assert ppo.advantage.key == "stages.ppo.advantage"
    assert ppo.advantage.where == "r.yaml:34"
    assert ppo.reward.options.parts["b"].options.word == "fine"
    assert ppo.bonus is None, "an optional slot without a default"
    assert ppo.sampling.temperature == 1.0


def test_needs_follow_slots_and_named_data(toys: LoadedPlugins) -> None:
    recipe = resolved(toys, write())
    assert {key: stage.needs for key, stage in recipe.stages.items()} == {
        "sft": [],
        "collect": ["sft"],
        "reward": ["collect"],  # through data.compared
        "ppo": ["sft", "reward"],
    }


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("kl_coef: 0.05", "kl_cof: 0.05"),
            "r.yaml:28: stages.ppo.kl_cof: unknown key; did you mean 'kl_coef'?",
        ),
        (
            ("kl_coef: 0.05", "from_: sft"),
            "r.yaml:28: stages.ppo.from_: unknown key; did you mean 'from'?",
        ),
        (("rank: 8", "zzz: 8"), "r.yaml:5: memory.zzz: unknown key; known: rank"),
        (("seed: 3", "sed: 3"), "r.yaml:1: sed: unknown key; did you mean 'seed'?"),
        (
            ("kl_coef: 0.05", "kl_coef: high"),
            "r.yaml:28: stages.ppo.kl_coef: is 'high'; should be a valid number, "
            "unable to parse string as a number",
        ),
        (
            ("kl_coef: 0.05", "kl_coef: -1"),
            "r.yaml:28: stages.ppo.kl_coef: is -1; should be greater than or equal to 0",
        ),
        (
            ("kl_coef: 0.05", "schedule: cosine"),
            "r.yaml:28: stages.ppo.schedule: is 'cosine'; should be 'constant' or 'linear'",
        ),
        (
            ("kl_coef: 0.05", "sampling: {temprature: 1}"),
            "r.yaml:28: stages.ppo.sampling.temprature: unknown key; did you mean 'temperature'?",
        ),
        (
            ("kl_coef: 0.05", "size: [1]"),
            "r.yaml:28: stages.ppo.size: is [1]; should be a valid integer or a valid string",
        ),
        (
            ("kl_coef: 0.05", "sampling: {temperature: .nan}"),
            "r.yaml:28: stages.ppo.sampling.temperature: is nan; should be greater than 0",
        ),
        (("seed: 3", "seed: -3"), "r.yaml:1: seed: is -3; should be greater than or equal to 0"),
        (
            ("seed: 3", "name: a b"),
            "r.yaml:1: name: is 'a b'; should be made of letters, digits, - and _",
        ),
        (
            ("    path: demos.jsonl\n", ""),
            "r.yaml:7: data.demos.path: missing; a .jsonl file",
        ),
        (("    data: demos\n", ""), "r.yaml:14: stages.sft.data: missing; demonstrations (known: "),
        (
            ("model: toy-model\n", ""),
            "r.yaml:1: model: missing; the pretrained model and its tokenizer",
        ),
        (("model: toy-model", "model: 7"), "r.yaml:2: model: is 7; should be a component's name"),
        (("model: toy-model", "model: {width: 2}"), "r.yaml:2: model: names no component; add `u"),
        (
            ("use: toy-lora", "use: toy-lara"),
            "r.yaml:4: memory.use: no memory is called 'toy-lara'; did you mean 'toy-lora'?; "
            "known: toy-full, toy-lora",
        ),
        (
            ("        a: toy-keyword", "        a: toy-keywrd"),
            "r.yaml:32: stages.ppo.reward.parts.a: no reward is called 'toy-keywrd'; did you mean",
        ),
        (
            ("        b: {use: toy-keyword, word: fine}", "        b: {use: toy-keyword, wrd: x}"),
            "r.yaml:33: stages.ppo.reward.parts.b.wrd: unknown key; did you mean 'word'?",
        ),
        (("use: toy-ppo", "use: toy-gae"), "r.yaml:25: stages.ppo.use: no stage is called 'toy-"),
        (
            ("data: demos", "data: dems"),
            "r.yaml:16: stages.sft.data: 'dems' is no entry of data:; did you mean 'demos'?",
        ),
        (
            ("data: demos", "data: toy-jsonl"),
            "r.yaml:16: stages.sft.data: 'toy-jsonl' is no entry of data:; entries: demos, "
            "compared; for the component write {use: toy-jsonl, ...}",
        ),
        (
            ("data: demos", "data: {use: demos, limit: 3}"),
            "r.yaml:16: stages.sft.data.use: 'demos' is an entry of data:; set its options there",
        ),
        (
            ("    from: sft\n    critic", "    from: sfd\n    critic"),
            "r.yaml:26: stages.ppo.from: 'sfd' names no stage; did you mean 'sft'?; stages that "
            "fit: sft; a folder is written with a slash, as in ./sfd",
        ),
        (
            ("    from: sft\n  reward", "    from: ppo\n  reward"),
            "r.yaml:20: stages.collect.from: 'ppo' is not an earlier stage; it must come above "
            "this one; stages that fit: sft",
        ),
        (
            ("    from: sft\n  reward", "    from: collect\n  reward"),
            "r.yaml:20: stages.collect.from: 'collect' is not an earlier stage; ",
        ),
        (
            ("critic: reward", "critic: collect"),
            "r.yaml:27: stages.ppo.critic: stage 'collect' produces comparisons, not reward_model; "
            "stages that fit: reward",
        ),
        (("critic: reward", "critic: 3"), "r.yaml:27: stages.ppo.critic: is 3; should be the id"),
        (
            ("data: demos", "data: compared"),
            "r.yaml:14: stages.sft: uses data that comes from stage 'collect'; 'collect' must run",
        ),
        (
            ("    advantage:\n      lam: 0.9\n", "    advantage: null\n"),
            "r.yaml:34: stages.ppo.advantage: is null; should be the name of an advantage",
        ),
        (("  sft:\n", "  seed:\n"), "r.yaml:14: stages.seed: is 'seed'; should not be a top-level"),
    ],
)
def test_one_problem(toys: LoadedPlugins, change: tuple[str, str], line: str) -> None:
    found = problems(toys, change)
    assert any(text.startswith(line) for text in found), found
    if "from: sft" not in change[0] and "  sft:" not in change[0]:
        assert len(found) == 1, found


def test_all_problems_are_said_at_once_in_order_of_lines(toys: LoadedPlugins) -> None:
    lines = problems(
        toys,
        ("seed: 3", "seed: x"),
        ("rank: 8", "rnk: 8"),
        ("path: demos.jsonl", "pth: demos.jsonl"),
        ("lr: 1e-5", "lr: -1"),
        ("lam: 0.9", "lam: 2"),
        overrides=["ppo.steps=0"],
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["command line", "stages.ppo.steps"],
        ["r.yaml:1", "seed"],
        ["r.yaml:5", "memory.rnk"],
        ["r.yaml:7", "data.demos.path"],
        ["r.yaml:9", "data.demos.pth"],
        ["r.yaml:17", "stages.sft.lr"],
        ["r.yaml:35", "stages.ppo.advantage.lam"],
    ]


def test_overrides_are_checked_and_say_command_line(toys: LoadedPlugins) -> None:
    assert problem(toys, overrides=["ppo.kl_coef=-1"]).startswith(
        "command line: stages.ppo.kl_coef: is -1; should be greater"
    )
    assert problem(toys, overrides=["memory.use=toy-full", "memory.rank=1"]).startswith(
        "command line: memory.rank: unknown key"
    )
    recipe = resolved(toys, write(), "memory.use=toy-full", "ppo.critic=null", "ppo.bonus=null")
    assert recipe.memory.component.name == "toy-full"
    assert recipe.memory.where == "command line"
    assert recipe.stages["ppo"].part.options.critic is None
    assert recipe.stages["ppo"].part.options.bonus is None
    filled = resolved(toys, write(), "ppo.bonus=toy-keyword").stages["ppo"].part.options.bonus
    assert filled.component.name == "toy-keyword"


def test_a_folder_of_another_run(toys: LoadedPlugins, tmp_path: Path) -> None:
    finished_stage(tmp_path / "other/stages/sft", "policy")
    finished_stage(tmp_path / "x", "reward_model")
    recipe = resolved(toys, write(), "ppo.from=./other", "ppo.critic=./x")
    options = recipe.stages["ppo"].part.options
    # A run folder means the stage in it that holds such an artifact.
    assert options.from_ == StageRef(folder=tmp_path / "other/stages/sft")
    assert options.critic == StageRef(folder=tmp_path / "x")
    assert recipe.stages["ppo"].needs == []
    assert len(refs_of(recipe.stages["ppo"].part)) == 2


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (None, "no such folder"),
        ("reward_model", "holds no finished policy"),
    ],
)
def test_a_folder_without_the_artifact(
    toys: LoadedPlugins, tmp_path: Path, make: str | None, cause: str
) -> None:
    if make is not None:
        finished_stage(tmp_path / "other", make)
    with pytest.raises(RecipeError, match=cause):
        resolved(toys, write(), "ppo.from=./other")


def test_a_stage_with_a_bad_name_does_not_blame_those_that_start_from_it(
    toys: LoadedPlugins,
) -> None:
    assert "no stage is called 'toy-sfd'" in problem(toys, ("use: toy-sft", "use: toy-sfd"))


def test_a_stage_that_produces_nothing(toys: LoadedPlugins) -> None:
    line = problem(toys, ("use: toy-collect", "use: toy-evaluate"))
    assert "data.compared.from: stage 'collect' produces nothing to start from, not comp" in line


def test_named_data_builds_only_on_what_is_above(toys: LoadedPlugins) -> None:
    assert problems(toys, ("from: collect", "from: later"))[0].startswith(
        "r.yaml:12: data.compared.from: 'later' names no stage"
    )


def test_no_stages(toys: LoadedPlugins) -> None:
    text = "model: toy-model\nmemory: toy-full\nstages: {}\n"
    with pytest.raises(RecipeError, match=r"^r\.yaml:3: stages: is {}; should have at least 1"):
        resolved(toys, write(text))


def test_a_component_of_a_broken_plugin(site: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_module_at_all")
    loaded = load_toys(site, bad)
    path = write(RECIPE, ("use: toy-lora\n  rank: 8", "use: special"))
    with pytest.raises(PluginError) as caught:
        resolved(loaded, path)
    assert str(caught.value).startswith("r.yaml:4: memory.use: no memory is called 'special'")
    assert "No module named 'no_such_module_at_all' (bad.py:1)" in str(caught.value)
    assert caught.value.exit_code == 2
    assert resolved(loaded, write()).seed == 3, "a broken plugin nobody asks for does no harm"


def test_two_packages_with_one_name(site: Path, tmp_path: Path) -> None:
    write_distribution(tmp_path / "more", "other", toy_other=offering("memory", "toy-lora"))
    file = tmp_path / "more" / "toy_other.py"
    loaded = load_toys(site, file)
    with pytest.raises(RecipeError, match="write toy-package/toy-lora or toy_other/toy-lora"):
        resolved(loaded, write())
    recipe = resolved(loaded, write(RECIPE, ("use: toy-lora", "use: toy-package/toy-lora")))
    assert recipe.memory.package == "toy-package"


CHECK = """
import rlhf_kit

@rlhf_kit.hookimpl
def rlhf_check_recipe(recipe):
    {}
"""


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (
            "yield 'stages.ppo.kl_coef: too high; lower it'",
            RecipeError,
            "r.yaml:28: stages.ppo.kl_coef: too high; lower it",
        ),
        ("return ['memory and model clash']", RecipeError, "r.yaml:1: memory and model clash"),
        ("return [recipe.memory.where + ': no']", RecipeError, "r.yaml:3: no"),
        ("yield rlhf_kit.DataError('r.yaml:9: no rows')", DataError, "r.yaml:9: no rows"),
        ("raise rlhf_kit.DataError('r.yaml:9: no rows')", DataError, "r.yaml:9: no rows"),
        (
            "yield rlhf_kit.DataError('x'); yield 'model: too wide'",
            RecipeError,
            "r.yaml:2: model: too wide",
        ),
        ("return recipe.nonsense", PluginError, "rlhf_check_recipe raised AttributeError"),
    ],
)
def test_plugins_may_object(
    site: Path, tmp_path: Path, body: str, error: type[Exception], message: str
) -> None:
    file = tmp_path / "checks.py"
    file.write_text(CHECK.format(body))
    with pytest.raises(error) as caught:
        resolved(load_toys(site, file), write())
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validators_of_options_meet_no_stand_ins(site: Path, tmp_path: Path) -> None:
    """A wrong slot is one problem, even where a validator of the block would trip over it."""
    file = tmp_path / "strict.py"
    file.write_text("""
import pydantic, rlhf_kit

class Strict(rlhf_kit.Options):
    reward: rlhf_kit.Part = rlhf_kit.slot("reward", description="the reward")
    a: int = 1
    @pydantic.model_validator(mode="after")
    def check(self):
        if self.a > 5:
            raise ValueError(f"a with {self.reward.options.word!r} should be at most 5")
        return self

@rlhf_kit.hookimpl
def rlhf_components():
    return [rlhf_kit.Component("stage", "strict", f"{__name__}:Strict", Strict, produces="policy")]
""")
    loaded = load_toys(site, file)
    text = "model: toy-model\nmemory: toy-full\nstages:\n  s: {use: strict, reward: toy-keyword}\n"
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        resolved(loaded, path, "s.a=6")
    assert str(caught.value) == "r.yaml:4: stages.s: a with 'good' should be at most 5"
    with pytest.raises(RecipeError) as caught:
        resolved(loaded, path, "s.a=6", "s.reward=nothing")
    assert str(caught.value).startswith("command line: stages.s.reward: no reward is called")
    assert "\n" not in str(caught.value)


IDLE = """
import rlhf_kit
from pydantic import Field

class Rate(rlhf_kit.Options):
    schedule: str = Field("constant", description="a word")
    end: float = Field(0.1, description="a number")

    def idle(self):
        return {} if self.schedule == "cosine" else {"end": "schedule is constant"}

class Idle(rlhf_kit.Options):
    from_: rlhf_kit.StageRef | None = rlhf_kit.stage_ref(
        "policy", default=None, alias="from", description="a start"
    )
    init: str = Field("normal", description="a word")
    std: float = Field(1.0, description="a number")
    rate: Rate = Field(Rate(schedule="cosine", end=0.5), description="a block")
    reward: rlhf_kit.Part | None = rlhf_kit.slot("reward", description="a reward")

    def idle(self):
        if self.init == "normal":
            return {}
        return {"std": f"init is {self.init}; set init: normal", "from": "init is not normal"}

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component("stage", "idle", f"{__name__}:Idle", Idle, produces="policy")
    yield rlhf_kit.Component("reward", "idle", f"{__name__}:Idle", Idle)
"""


def idle_problems(site: Path, block: str, *overrides: str) -> list[str]:
    Path("idle.py").write_text(IDLE)
    text = f"model: toy-model\nmemory: toy-full\nstages:\n  a: idle\n  s:\n    use: idle\n{block}"
    loaded = load_toys(site, Path("idle.py"))
    try:
        resolved(loaded, write(text), *overrides)
    except RecipeError as error:
        assert error.exit_code == 2
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("block", "lines"),
    [
        ("    init: probe\n", []),
        ("    std: 1.0\n", []),
        (
            "    init: probe\n    std: 1.0\n",  # the default, but written
            [
                "r.yaml:8: stages.s.std: nothing reads it: init is probe; remove it, or set "
                "init: normal"
            ],
        ),
        (
            "    init: probe\n    from: a\n",
            ["r.yaml:8: stages.s.from: nothing reads it: init is not normal; remove it"],
        ),
        ("    rate: {schedule: cosine, end: 0.2}\n", []),
        ("    rate: {end: 0.2}\n", []),  # the field's own default is cosine
        ("    rate: {schedule: constant}\n", []),  # the end that it makes idle is not written
        (
            "    rate:\n      schedule: constant\n      end: 0.2\n",
            ["r.yaml:9: stages.s.rate.end: nothing reads it: schedule is constant; remove it"],
        ),
        (
            "    reward:\n      use: idle\n      init: probe\n      std: 2\n",
            [
                "r.yaml:10: stages.s.reward.std: nothing reads it: init is probe; remove it, or "
                "set init: normal"
            ],
        ),
    ],
)
def test_what_nothing_reads_is_refused_where_it_is_written(
    site: Path, block: str, lines: list[str]
) -> None:
    assert idle_problems(site, block) == lines


def test_values_of_the_command_line_count_as_written(site: Path) -> None:
    (line,) = idle_problems(site, "    init: probe\n", "s.std=2")
    assert line.startswith("command line: stages.s.std: nothing reads it")
    (line,) = idle_problems(site, "    std: 2\n", "s.init=probe")
    assert line.startswith("r.yaml:7: stages.s.std: nothing reads it")
    (line,) = idle_problems(site, "    rate: {schedule: constant}\n", "s.rate.end=2")
    assert line.startswith("command line: stages.s.rate.end: nothing reads it")


def test_a_filled_recipe_leaves_out_what_nothing_reads(site: Path) -> None:
    Path("idle.py").write_text(IDLE)
    text = "model: toy-model\nmemory: toy-full\nstages:\n"
    text += "  s: {use: idle, init: probe, rate: {schedule: constant}}\n"
    loaded = load_toys(site, Path("idle.py"))
    recipe = resolved(loaded, write(text))
    block = filled(recipe)["stages"]["s"]
    assert block == {
        "use": "idle",
        "init": "probe",
        "rate": {"schedule": "constant"},
        "reward": None,
    }
    Path("r.yaml").write_text(dump_yaml(recipe))
    assert filled(resolved(loaded, Path("r.yaml"))) == filled(recipe)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("data: demos", "data: {use: toy-jsonl, path: x}"),
            "r.yaml:7: data.demos: no stage uses it; remove it, or name it in a data slot of a "
            "stage",
        ),
        (("    data: compared", "    data: demos"), "r.yaml:10: data.compared: no stage uses it"),
    ],
)
def test_data_that_no_stage_uses(toys: LoadedPlugins, change: tuple[str, str], line: str) -> None:
    assert problem(toys, change).startswith(line)


def test_unused_data_on_the_command_line(toys: LoadedPlugins) -> None:
    more = "data.more={use: toy-jsonl, path: x}"
    assert problem(toys, overrides=[more]).startswith("command line: data.more: no stage uses it")
    # A stage that is wrong itself might be the one that uses it: one problem at a time.
    assert "kl_coef" in problem(toys, overrides=[more, "ppo.kl_coef=-1"])
