"""The documentation tells the truth: its commands run, its code works, every hook is in it."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from test_shipped_recipes import SMALL, labeler
from toys import write_toy_recipe

import rlhf_kit.hookspecs
from rlhf_kit.cli.main import main
from rlhf_kit.interfaces import Observer

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
AUTHORS = (ROOT / "docs/plugin-authors/README.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """(command, what the page says it prints) of every `$ rlhf-kit` line."""
    found: list[tuple[str, str]] = []
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("rlhf-kit"):
                found.append((command.partition("#")[0].strip(), output.strip()))
    return found


def changed_run(toy_model: Path, folder: Path) -> Path:
    """A run folder in which a changed recipe has set something aside."""
    recipe = write_toy_recipe(folder / "project", toy_model, "hydra")
    values = yaml.safe_load(recipe.read_text())
    values["stages"] = {"sft": values["stages"]["sft"]}
    values["data"] = {"demonstrations": values["data"]["demonstrations"]}
    recipe.write_text(yaml.safe_dump(values))
    for epochs in (1, 2):
        words = ["run", str(recipe), f"sft.epochs={epochs}", "--out", str(folder / "run")]
        assert CliRunner().invoke(main, words).exit_code == 0
    return folder / "run"


@pytest.mark.parametrize(("command", "printed"), commands(TUTORIAL), ids=lambda v: str(v)[:60])
def test_tutorial_commands(
    command: str, printed: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vaderSentiment")
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[1:]
    if words[0] == "run":
        model = f"model={{use: pretrained, name: {toy_model}}}"
        words += [model, "memory={use: hydra, trainable_layers: 2}", labeler(tmp_path), *SMALL]
        words[words.index("--out") + 1] = str(tmp_path / "run")
    if words[0] == "superseded":
        words[1] = str(changed_run(toy_model, tmp_path))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == (2 if printed.startswith("error:") else 0), result.output
    assert printed in result.output


def test_readme_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(README, "console"):
        for target in re.findall(r"^\$ make (\S+)", block, flags=re.MULTILINE):
            assert f"\n{target}:" in makefile
    verbs = {command.split()[1] for command, _ in commands(README)}
    assert verbs == {"check", "run", "plugins"}


def test_the_tutorial_reward_works(tmp_path: Path) -> None:
    from rlhf_kit_rewards.options import PythonOptions
    from rlhf_kit_rewards.python import PythonReward

    from rlhf_kit.engine.scoring import score
    from rlhf_kit.testing import made_up_samples

    file = tmp_path / "short_and_polite.py"
    file.write_text(next(code for code in blocks(TUTORIAL, "python") if "def reward" in code))
    reward = PythonReward(PythonOptions(path=file))
    scores = score(reward, made_up_samples(["Please sit down.", "No."])).total
    assert scores.tolist() == pytest.approx([0.97, -0.01])


def test_the_judge_of_the_tutorial_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model: Path
) -> None:
    """The function and the block of the recipe, against a server that fails at first."""
    from rlhf_kit.context import RunContext, StageContext
    from rlhf_kit.engine.scoring import score
    from rlhf_kit.recipe import open_recipe
    from rlhf_kit.testing import made_up_samples

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][0]["content"])
            self.send_response(429 if len(asked) == 1 else 200)
            self.end_headers()
            said = {"message": {"content": "7" if asked[-1].endswith("Yes.") else "3"}}
            self.wfile.write(json.dumps({"choices": [said]}).encode())

    write_toy_recipe(tmp_path, toy_model, "full")
    recipe = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    (block,) = [b for b in blocks(TUTORIAL, "yaml") if "use: judge" in b]
    recipe["stages"]["ppo"] |= yaml.safe_load(block)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (code,) = [code for code in blocks(TUTORIAL, "python") if "JUDGE_URL" in code]
    (tmp_path / "judge.py").write_text(code)
    resolved, *_ = open_recipe(tmp_path / "toy.yaml", ["ppo.reward.backoff=0"])
    options: Any = resolved.stages["ppo"].part.options
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/")
        context = StageContext(RunContext(resolved, tmp_path / "run"), "ppo")
        found = score(context.build(options.reward), made_up_samples(["Yes.", "No."]))
        server.shutdown()
    assert found.total.tolist() == pytest.approx([0.7, 0.3])
    assert found.counts["retries"] == 1.0


def test_the_plugin_of_the_authors_page_works() -> None:
    declared, implemented, tested = map(
        code_with, ("def rlhf_components", "class Length:", "def test_")
    )
    plugin: dict[str, Any] = {"__name__": "my_package.plugin"}
    exec(declared, plugin)
    (component,) = plugin["rlhf_components"]()
    assert (component.seam, component.name) == ("reward", "length")
    length = types.ModuleType("my_package.length")
    exec(implemented, length.__dict__)
    reward = length.Length(component.options(target=2))

    from rlhf_kit.testing import check_reward, made_up_samples

    check_reward(reward)
    samples = made_up_samples(["one two", "one"])
    assert torch.equal(reward(samples), torch.tensor([0.0, -1.0]))
    assert "check_reward(" in tested


def test_the_observer_of_the_authors_page_works(tmp_path: Path) -> None:
    from rlhf_kit.context import WatchContext
    from rlhf_kit.testing import made_up_samples
    from rlhf_kit.types import Rollout

    watching = code_with("class Lengths")
    module: dict[str, Any] = {"__name__": "lengths"}
    exec(watching, module)
    samples = made_up_samples(["one two", "one"])
    nothing = torch.zeros(samples.mask.shape)
    rollout = Rollout(samples, nothing, nothing, None, torch.zeros(2))
    observer = module["Lengths"](None, WatchContext("talk", tmp_path / "talk", print))
    observer.rollout_collected("ppo", 3, rollout)
    mean = samples.mask.sum(1).float().mean().item()
    assert (tmp_path / "talk/lengths.csv").read_text() == f"ppo,3,{mean}\n"


def code_with(text: str) -> str:
    (found,) = [code for code in blocks(AUTHORS, "python") if text in code]
    return found


def class_of(name: str) -> Any:
    """The class of that name on the authors' page."""
    module: dict[str, Any] = {}
    exec(code_with(f"class {name}:"), module)
    return module[name]


def test_the_loss_of_the_authors_page_works() -> None:
    from rlhf_kit.testing import check_pair_loss
    from rlhf_kit.types import PairInputs

    loss = class_of("DPO")(types.SimpleNamespace(beta=0.5))
    check_pair_loss(loss)
    there, five = torch.tensor([True]), torch.tensor([5])
    chosen, rejected = torch.tensor([-3.0]), torch.tensor([-5.0])
    output = loss(PairInputs(chosen, rejected, chosen + 1, rejected + 2, five, five, there))
    # Log-ratios -1 and -2: log(1 + exp(-0.5 (-1 + 2))).
    assert output.total.item() == pytest.approx(0.4740769841801067)
    assert output.stats["accuracy"].item() == 1.0


def test_the_estimator_of_the_authors_page_works() -> None:
    from rlhf_kit.testing import check_advantage, made_up_experience

    estimator = class_of("GroupMean")(None)
    check_advantage(estimator, needs={"scores", "groups"})
    rewards, mask = torch.tensor([[1.0], [5.0], [2.0]]), torch.ones((3, 1), dtype=torch.bool)
    found = estimator(made_up_experience(rewards, mask, group=torch.tensor([4, 9, 4])))
    assert found.advantages.tolist() == [[-0.5], [0.0], [0.5]]


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(rlhf_kit.hookspecs) if name.startswith("rlhf_")]
    assert sorted(hooks) == ["rlhf_check_recipe", "rlhf_components"]
    for name in hooks:
        assert f"`{name}(" in AUTHORS, f"{name} is missing from docs/plugin-authors/README.md"


def test_every_event_is_documented() -> None:
    events = {name: event for name, event in vars(Observer).items() if not name.startswith("_")}
    assert len(events) == 7
    for name, event in events.items():
        arguments = ", ".join(list(inspect.signature(event).parameters)[1:])
        assert f"| `{name}({arguments})` |" in AUTHORS, name


def test_the_architecture_page_shows_the_loop_as_it_is() -> None:
    from rlhf_kit_policy_gradient.ppo import PPOPtx

    page = (ROOT / "docs/architecture.md").read_text()
    (shown,) = blocks(page, "python")
    assert shown == textwrap.dedent(inspect.getsource(PPOPtx.step))


def test_the_architecture_page_names_every_folder() -> None:
    (tree,) = re.findall(
        r"```\n(rlhf_kit/.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S
    )
    folders = {p.parent.name for p in (ROOT / "rlhf_kit").glob("*/__init__.py")}
    plugins = {p.name for p in (ROOT / "plugins").iterdir() if p.is_dir()}
    assert {f for f in folders | plugins if f"{f}/" not in tree} == set()
