"""What a stranger's part does wrong in a run is refused in a line that names it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from rlhf_kit_policy_gradient.control import KLLimit
from rlhf_kit_policy_gradient.steering import Beta
from torch import Tensor
from toy_runs import metrics, one_stage, ppo_options, run
from toys import environment, write_toy_model
from watchers import write_watcher

from rlhf_kit.cli.main import main
from rlhf_kit.engine.accumulate import accumulating
from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.engine.world import OneProcess
from rlhf_kit.errors import NumericsError, PluginError, RecipeError, RlhfKitError
from rlhf_kit.interfaces import Observer, ParameterGroup, Term
from rlhf_kit.stagekit.sample import drawn
from rlhf_kit.testing import TabularPolicy, TabularSampler
from rlhf_kit.types import Activations, LossOutput, Masked, NllInputs, Prompts, Rollout, Sampling

# A part of each seam that can be made wrong or stateful.
STRANGE = """
import torch
import rlhf_kit
from rlhf_kit.types import Advantages

class Options(rlhf_kit.Options):
    mistake: str = ""

class Estimator:
    def __init__(self, options):
        self.mistake, self.rows = options.mistake, 0

    def __call__(self, experience):
        self.rows += len(experience.mask)
        print(f"seen {self.rows}")
        found = torch.where(experience.places, experience.rewards, 0.0)
        if self.mistake == "shape":
            return Advantages(found[:, :1], found)
        if self.mistake == "nan":
            return Advantages(found / 0, found)
        if self.mistake == "type":
            return found
        if self.mistake == "raises":
            return experience.values.sum()
        return Advantages(found, found)

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]

class Sampler:
    def __init__(self, options):
        from rlhf_kit_hf.sampler import DecodeSampler
        from rlhf_kit_hf.options import DecodeOptions
        self.inner, self.calls = DecodeSampler(DecodeOptions()), 0

    def __call__(self, policy, prompts, sampling):
        from dataclasses import replace
        self.calls += 1
        return self.inner(policy, prompts, replace(sampling, key=sampling.key + self.calls))

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component("advantage", "strange", "strange:Estimator", Options)
    yield rlhf_kit.Component("sampler", "strange", "strange:Sampler")
"""

# Fails of no answers at all.
LONGEST = """
def reward(responses):
    most = max(map(len, responses))
    return [len(text) / (1 + 0 * most) for text in responses]
"""

TOKENS = """
def reward(responses, samples):
    return samples.response_mask.float()
"""


@pytest.fixture
def strange(tmp_path: Path) -> tuple[Path, ...]:
    file = tmp_path / "strange.py"
    file.write_text(STRANGE)
    return (file,)


def without_critic(recipe: Path) -> Path:
    values = yaml.safe_load(recipe.read_text())
    values["stages"]["ppo"].pop("critic", None)
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return recipe


@pytest.mark.parametrize(
    ("mistake", "error", "says"),
    [
        (
            "shape",
            PluginError,
            r"advantage 'strange' of \S+ 'strange': advantages are of shape \[\d+, 1\], should",
        ),
        (
            "nan",
            NumericsError,
            r"advantage 'strange' of \S+ 'strange': advantages are nan at response 0, token 0",
        ),
        (
            "type",
            PluginError,
            r"advantage 'strange' of \S+ 'strange' returned Tensor; it should return rlhf_kit\.",
        ),
        (
            "raises",
            PluginError,
            r"advantage 'strange' of \S+ 'strange': AttributeError: 'NoneType' object has no",
        ),
    ],
)
def test_an_estimator_is_refused_by_name(
    mistake: str,
    error: type[Exception],
    says: str,
    toy_model: Path,
    tmp_path: Path,
    strange: tuple[Path, ...],
) -> None:
    recipe = without_critic(one_stage(tmp_path / "project", toy_model, steps=1))
    part = f"ppo.advantage={{use: strange, mistake: {mistake}}}"
    with pytest.raises(error, match=says):
        run(recipe, tmp_path / "out", part, plugins=strange)


def test_a_rollback_takes_back_what_an_estimator_keeps(
    toy_model: Path, tmp_path: Path, strange: tuple[Path, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = one_stage(
        tmp_path / "project",
        toy_model,
        steps=5,
        kl={"limit": 0.2, "on_limit": "rollback"},
        optimizer={"learning_rate": 0.05, "warmup_steps": 0},
    )
    run(without_critic(recipe), tmp_path / "out", "ppo.advantage=strange", plugins=strange)
    seen = [int(x.split()[1]) for x in capfd.readouterr().out.splitlines() if "seen" in x]
    learned = ["policy/loss" in row for row in metrics(tmp_path / "out")]
    assert len(seen) == len(learned) == 5
    backs = [i for i, good in enumerate(learned[:-1]) if not good]
    assert backs
    for i in backs:
        last = max(k for k in range(i) if learned[k])
        assert seen[i] > seen[last]
        assert seen[i + 1] == seen[last]  # as if neither had been seen


def test_the_gate_changes_no_text(
    toy_model: Path, tmp_path: Path, strange: tuple[Path, ...]
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, sampling={"sampler": "strange"})
    found = []
    for check in ("true", "false"):
        run(recipe, tmp_path / check, f"ppo.gate.check={check}", plugins=strange)
        found.append(metrics(tmp_path / check))
    assert found[0] == found[1]


def test_scores_of_tokens_are_not_scaled_as_whole_ones(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, reward=TOKENS, steps=1)
    with pytest.raises(
        RecipeError, match=r"stages\.ppo\.normalize\.scores: it scales .* scores tokens"
    ):
        run(recipe, tmp_path / "out", "ppo.normalize.scores=whiten")
    run(recipe, tmp_path / "out", "ppo.normalize.rewards=whiten")


@pytest.mark.parametrize("trunk", ["keep", "host", "drop"])
def test_where_trunks_are(
    trunk: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `drop` one chunk's at a time while scoring; under `host` all are moved there."""
    from rlhf_kit_policy_gradient import ppo

    alive: set[int] = set()
    most, moved = [0], [0]
    made = Activations.__init__

    def counted(self: Activations, *inputs: Any, **named: Any) -> None:
        made(self, *inputs, **named)
        alive.add(id(self))
        weakref.finalize(self, alive.discard, id(self))

    to = Activations.to

    def sent(self: Activations, device: torch.device) -> Activations:
        moved[0] += device.type == "cpu"
        return to(self, device)

    score = ppo.score

    def asked(*inputs: Any) -> Any:
        most[0] = max(most[0], len(alive))
        return score(*inputs)

    monkeypatch.setattr(Activations, "__init__", counted)
    monkeypatch.setattr(Activations, "to", sent)
    monkeypatch.setattr(ppo, "score", asked)
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, sampling={"batch_size": 2})
    run(recipe, tmp_path / trunk, f"ppo.trunk={trunk}")
    chunks = 4
    assert (most[0] <= 2) == (trunk == "drop"), (most, chunks)
    assert (moved[0] >= chunks) == (trunk == "host")


def test_an_observer_that_writes_into_a_rollout_stops_the_run(
    toy_model: Path, tmp_path: Path
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    plugin, body = (
        tmp_path / "meddler.py",
        """
    def rollout_collected(self, stage, step, rollout):
        rollout.scores.mul_(-1)
    """,
    )
    says = r"observer 'meddler' of package 'meddler' wrote into rollout\.scores"
    with pytest.raises(PluginError, match=says):
        run(recipe, tmp_path / "out", write_watcher(plugin, body), plugins=(plugin,))


def test_an_event_that_there_is_not() -> None:
    with pytest.raises(PluginError, match="'rollout_colected'; did you mean 'rollout_collected'"):
        type("Mine", (Observer,), {"rollout_colected": lambda self, *inputs: None})
    type("Other", (Observer,), {"note": lambda self: None, "_helper": lambda self: None})


def test_the_command_line_as_a_module() -> None:
    command = [sys.executable, "-m", "rlhf_kit", "plugins", "list", "--seam", "engine", "--json"]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert [c["name"] for c in json.loads(found.stdout)["components"]] == ["single"]


class Wrong:
    """A loss over rows of one weight, with a mistake."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake

    def count(self, units: Masked) -> Tensor:
        count = units.mask.sum()
        return {"count none": None, "count rows": units.mask, "count less": -count}.get(
            self.mistake, count
        )  # type: ignore[return-value]

    def __call__(self, inputs: NllInputs) -> Any:
        total = (inputs.logprobs * inputs.mask).sum()
        if self.mistake == "raises":
            raise KeyError("gold")
        if self.mistake == "leaves":
            sys.exit(0)
        if self.mistake == "writes":
            inputs.mask.zero_()
        return {
            "none": None,
            "float": LossOutput(1.0),  # type: ignore[arg-type]
            "rows": LossOutput(total[None]),
            "detached": LossOutput(total.detach()),
            "stat float": LossOutput(total, {"rows": 2.0}),  # type: ignore[dict-item]
            "stat loss": LossOutput(total, {"loss": total}),
            "nan": LossOutput(total / 0),
        }.get(self.mistake, LossOutput(total))


class Observing(Wrong):
    def observe(self, inputs: NllInputs) -> Any:
        rows = inputs.mask.sum()
        return {
            "observes none": None,
            "observes rows": {"rows": inputs.mask},
        }.get(self.mistake, {"rows": rows})

    def __call__(self, inputs: NllInputs, observed: Any) -> Any:  # type: ignore[override]
        return super().__call__(inputs)


def one_step(loss: Any) -> float:
    weight = torch.ones(3, requires_grad=True)
    optimizer = Optimizer([ParameterGroup([weight], 0.1)], max_gradient_norm=None)  # type: ignore
    with accumulating(optimizer) as step:
        step.add(
            {"mine": Term(loss, lambda x: Masked(x.mask))},
            lambda x: {"mine": NllInputs(weight * x.logprobs, x.mask)},
            [NllInputs(torch.ones(3), torch.tensor([True, True, False]))],
        )
    return step.stats["mine/loss"]


@pytest.mark.parametrize("kind", [Wrong, Observing])
@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("raises", r"loss 'mine': KeyError: 'gold' \(test_author_mistakes\.py:\d+\)"),
        ("leaves", r"loss 'mine': SystemExit"),
        ("none", r"loss 'mine' returned NoneType; it should return a rlhf_kit"),
        ("float", r"loss 'mine': total is 1\.0; it should be a tensor of shape \[\]"),
        ("rows", r"loss 'mine': total is a tensor of shape \[1\]; it should be"),
        ("detached", r"loss 'mine': total does not depend on what is trained"),
        ("stat float", r"loss 'mine': statistic 'rows' is 2\.0; it should be"),
        ("stat loss", r"loss 'mine': a statistic is called 'loss'"),
        ("nan", r"loss 'mine' is (nan|inf): the step was not taken"),
        ("writes", r"loss 'mine' wrote into inputs\.mask"),
        ("count none", r"loss 'mine': count is None; it should be a tensor of shape"),
        ("count rows", r"loss 'mine': count is a tensor of shape \[3\]"),
        ("count less", r"loss 'mine': count is -2\.0; it should be 0 or more"),
    ],
)
def test_a_loss_is_refused_by_name(kind: type, mistake: str, says: str) -> None:
    assert one_step(kind("")) == 1.0
    with pytest.raises(RlhfKitError, match=says):
        one_step(kind(mistake))


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("observes none", r"loss 'mine': observe returned NoneType; it should return a dict"),
        ("observes rows", r"loss 'mine': observe: 'rows' is a tensor of shape \[3\]"),
    ],
)
def test_what_a_loss_observes_is_refused_by_name(mistake: str, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        one_step(Observing(mistake))


@pytest.mark.parametrize("found", [-5.0, math.nan, math.inf, None, "a"])
def test_a_coefficient_is_a_number(found: Any) -> None:
    policy = TabularPolicy()
    samples = policy.all_samples()
    logprobs = policy.evaluate(samples).logprobs.detach()
    rollout = Rollout(samples, logprobs, logprobs, None, torch.zeros(len(samples)))
    limit = KLLimit(ppo_options().kl)
    beta = Beta(0.1, lambda *inputs: found, limit, OneProcess())
    with pytest.raises(PluginError, match=r"kl\.controller returned .*; it should return a number"):
        beta.settle("go on", rollout, {})


@pytest.mark.parametrize("mistake", ["permuted", "short", "type", "empty"])
def test_a_sampler_answers_what_it_was_asked(mistake: str) -> None:
    policy, draw = TabularPolicy(), TabularSampler()

    def sampler(policy: Any, prompts: Prompts, sampling: Sampling) -> Any:
        found = draw(policy, prompts, sampling)
        if mistake == "type":
            return found.response_tokens
        if mistake == "empty":
            return replace(found, response_mask=torch.zeros_like(found.response_mask))
        rows = torch.arange(len(found))
        return found.select(rows.flip(0) if mistake == "permuted" else rows[1:])

    one, rows = torch.zeros((4, 1), dtype=torch.long), torch.arange(4)
    prompts = Prompts(one, one.bool(), [{"prompt": ""}] * 4, rows, rows)
    with pytest.raises(PluginError, match="sampler function"):
        drawn(sampler, policy, prompts, Sampling(3, 1.0, 1))


def test_one_prompt_is_enough_for_the_gate(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, reward=LONGEST)
    values = yaml.safe_load(recipe.read_text())
    (tmp_path / "project" / "one.jsonl").write_text('{"prompt": "A?", "split": "train"}\n')
    values["data"]["prompts"]["path"] = "one.jsonl"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    run(recipe, tmp_path / "out")
    assert len(metrics(tmp_path / "out")) == 1


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    llama, other = (write_toy_model(kind, tmp_path / kind) for kind in ("llama", "qwen3"))
    first = one_stage(tmp_path / "first", other, "sft", "full", epochs=1)
    folder = run(first, tmp_path / "out")
    then = one_stage(tmp_path / "then", llama, "sft", "full", epochs=1)
    with pytest.raises(RecipeError, match=r"holds weights of Qwen3\w+, and the recipe's .* Llama"):
        run(then, tmp_path / "again", f"sft.from={folder}")


def test_who_debugs_sees_the_stack_too(toy_model: Path, tmp_path: Path) -> None:
    reward = "def inner():\n    return 1 / 0\n\ndef reward(responses):\n    return inner()\n"
    recipe = one_stage(tmp_path / "project", toy_model, reward=reward)
    arguments = ("run", str(recipe), "--out", str(tmp_path / "out"))
    plain = CliRunner().invoke(main, arguments)
    shown = CliRunner().invoke(main, ("--debug", *arguments))
    assert plain.exit_code == shown.exit_code == 2
    assert "Traceback" not in plain.stderr and "reward.py:2" in plain.stderr
    assert "Traceback" in shown.stderr and "return 1 / 0" in shown.stderr
    assert shown.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
