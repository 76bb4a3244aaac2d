"""Controllers of gamma, the bound on the KL, and the two gradients that gamma balances."""

from __future__ import annotations

import copy
import io
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_instructgpt.losses import TokenNLL
from rlhf_kit_instructgpt.options import NoOptions
from rlhf_kit_policy_gradient.control import AdaptivePtx, KLLimit
from rlhf_kit_policy_gradient.options import AdaptivePtxOptions, LinearValueOptions
from rlhf_kit_policy_gradient.steering import Gamma
from rlhf_kit_policy_gradient.value import LinearValue
from safetensors.torch import load_file
from toy_runs import execution_of, interrupted, metrics, mix, one_stage, ppo_of, ppo_options, run
from toys import ANSWERS, prompts, texts

from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.engine.signals import StopRequests
from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.testing import TabularPolicy
from rlhf_kit.types import NllInputs, TextBatch

# ---------------------------------------------------------------- gamma


def adaptive(coefficient: float = 2.0, **options: Any) -> AdaptivePtx:
    """Measured 100 before any update, with a budget of 10 %, from 100 to 110.

    The first measurement is only the baseline: not even the bounds act on ``coefficient``.
    """
    chosen = {"budget": 0.1, "gain": 0.5} | options
    gamma = AdaptivePtx(AdaptivePtxOptions(**chosen))
    assert gamma(coefficient, 100.0) == coefficient
    return gamma


def test_the_first_measurement_is_only_the_baseline() -> None:
    adaptive()
    adaptive(coefficient=1e-9)


@pytest.mark.parametrize(
    ("measured", "exponent"),
    [
        (100.0, -0.5),  # at the start of the budget
        (105.0, -0.25),
        (110.0, 0.0),  # at its end
        (115.0, 0.25),
        (120.0, 0.5),
        (500.0, 0.5),  # cut
        (50.0, -0.5),
    ],
)
def test_gamma_follows_the_perplexity(measured: float, exponent: float) -> None:
    gamma = adaptive()
    once = gamma(2.0, measured)
    assert once == pytest.approx(2.0 * math.exp(exponent), rel=1e-12)
    twice = gamma(once, measured)  # relative to the first measurement, not to the last
    assert twice == pytest.approx(2.0 * math.exp(2 * exponent), rel=1e-12)


def test_gamma_stays_within_its_bounds() -> None:
    gamma = adaptive(least=1.5, most=2.5)
    coefficient = gamma(2.0, 500.0)
    assert coefficient == 2.5
    for _ in range(3):
        coefficient = gamma(coefficient, 100.0)
    assert coefficient == 1.5


def test_the_state_of_gamma_survives() -> None:
    """Also the baseline: the next measurement of a resumed run must not become a new one."""
    one, two = adaptive(), AdaptivePtx(AdaptivePtxOptions(budget=0.1, gain=0.5))
    first = Gamma(2.0, one)
    first.coefficient = one(first.coefficient, 115.0)
    second = Gamma(0.0, two)
    second.load_state_dict(first.state_dict())
    for gamma, controller in ((first, one), (second, two)):
        found = controller(gamma.coefficient, 120.0)
        assert found == pytest.approx(2.0 * math.exp(0.75), rel=1e-12)
    fresh = AdaptivePtx(AdaptivePtxOptions())
    fresh.load_state_dict(AdaptivePtx(AdaptivePtxOptions()).state_dict())
    assert fresh(3.0, 7.0) == 3.0


def test_perplexity() -> None:
    """Per token of the whole set: the uniform policy has V; texts of other lengths weigh by it."""
    tokens = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
    batch = TextBatch(tokens, mask, mask)
    assert perplexity(TabularPolicy(scale=0.0), batch) == pytest.approx(3.0, rel=1e-6)
    policy = TabularPolicy(dtype=torch.float64)
    table = torch.log_softmax(policy.table.detach(), 1)
    total, count = 0.0, 0
    for row, length in zip(tokens.tolist(), [4, 2, 3], strict=True):
        for t in range(1, length):
            place = int(policy.prefixes(torch.tensor([row]))[0, t])
            total, count = total - table[place, row[t]].item(), count + 1
    assert count == 6
    for size in (1, 2, 4):
        assert perplexity(policy, batch, size) == pytest.approx(math.exp(total / 6), rel=1e-12)


ADAPTIVE = {"use": "adaptive", "every": 2, "budget": 0.01, "gain": 0.3}


def test_gamma_is_steered_in_a_run(toy_model: Path, tmp_path: Path) -> None:
    """Measured before every second rollout, the first before any update; each is followed."""
    recipe = one_stage(
        tmp_path / "project", toy_model, memory="full", steps=6, ptx={"controller": ADAPTIVE}
    )
    run(recipe, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    measured = [row.get("held_out_perplexity") for row in rows]
    assert [value is not None for value in measured] == [True, False] * 3
    assert len({value for value in measured if value}) == 3  # of the policy as it then is
    coefficient = 0.5
    for row in rows:
        p = row.get("held_out_perplexity")
        if p is not None and row["step"] > 0:
            over = (p - 1.01 * measured[0]) / (0.01 * measured[0])
            coefficient *= math.exp(0.3 * max(-1.0, min(1.0, over)))
        assert row["ptx_coef"] == pytest.approx(coefficient, rel=1e-12)
    assert rows[-1]["ptx_coef"] != rows[2]["ptx_coef"] != 0.5


def test_gamma_reaches_the_gradient(toy_model: Path, tmp_path: Path) -> None:
    """The weight of the text's loss is the controller's, not the recipe's first value."""
    controller = ADAPTIVE | {"budget": 1e-6, "gain": 3.0, "every": 1}
    recipe = one_stage(tmp_path / "project", toy_model, steps=2, ptx={"controller": controller})
    run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "fixed", 'ppo.ptx.controller={"use": "fixed"}')
    steered, fixed = metrics(tmp_path / "run")[1], metrics(tmp_path / "fixed")[1]
    factor = steered["ptx_coef"] / fixed["ptx_coef"]
    assert abs(math.log(factor)) == pytest.approx(3.0, rel=1e-9)
    # Of two minibatches the first has the same weights in both runs, the second has not.
    assert abs(math.log(steered["gradient_ratio"] / fixed["gradient_ratio"])) > 1.5


def test_without_pretraining_text_nothing_is_measured(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, ptx=None)
    run(recipe, tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    unwanted = {"ptx/loss", "ptx_coef", "gradient_norm/ptx", "gradient_ratio"}
    assert not unwanted & row.keys()
    assert row["gradient_norm/ppo"] > 0


# ---------------------------------------------------------------- the bound on the KL


class Trained:
    """A policy in bfloat16, a critic and their optimizer, which can be moved."""

    def __init__(self) -> None:
        self.policy, self.value = TabularPolicy(), LinearValue(LinearValueOptions())
        self.policy.table.data = self.policy.table.data.bfloat16()
        self.value.attach(self.policy)
        groups = [
            ParameterGroup([self.policy.table], 1e-3),
            ParameterGroup(list(self.value.parameters()), 1e-2),
        ]
        self.optimizer = Optimizer(groups, schedule=lambda step: 1.0 / (1 + step))

    @property
    def parts(self) -> dict[str, Any]:
        return {"policy": self.policy, "value": self.value, "optimizer": self.optimizer}

    def train(self, steps: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            for p in [self.policy.table, *self.value.parameters()]:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({name: part.state_dict() for name, part in self.parts.items()})


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


class Bound(KLLimit):
    """Over the same parts all along."""

    def __init__(self, parts: dict[str, Any], **options: Any) -> None:
        super().__init__(ppo_options(kl=options).kl)
        self.parts = parts

    def judge(self, kl: float) -> str:
        return self.check(kl, self.parts)

    def back(self, coefficient: float) -> float:
        return self.take_back(coefficient, self.parts)


def test_without_a_limit_anything_goes() -> None:
    assert Bound({}).judge(1e9) == "go on"


def test_stop_changes_nothing() -> None:
    trained = Trained()
    limit = Bound(trained.parts, limit=1.0)
    assert limit.judge(1.0) == "go on"  # the bound itself is within the bound
    trained.train(2)
    before = trained.state()
    assert limit.judge(1.001) == "stop"
    assert equal(trained.state(), before)
    assert limit.rollbacks == 0


def test_rollback_restores_the_last_rollout_within_the_bound() -> None:
    """Policy, critic, float32 masters, moments and the place in the schedule, bit for bit."""
    trained, coefficient = Trained(), 0.1
    limit = Bound(trained.parts, limit=1.0, on_limit="rollback", rollback_factor=3.0)
    trained.train(1)
    assert limit.judge(0.5) == "go on"
    trained.train(2)
    good = trained.state()
    assert limit.judge(0.9) == "go on"
    for times in (1, 2):  # the second one goes back as far: what was kept has not been trained on
        trained.train(3, seed=times)
        assert not equal(trained.state(), good)
        assert limit.judge(1.5) == "rollback"
        coefficient = limit.back(coefficient)
        assert equal(trained.state(), good)
        assert coefficient == pytest.approx(0.1 * 3.0**times)
        assert limit.rollbacks == times
    # What follows is what would have followed.
    trained.train(2, seed=9)
    after, other = trained.state(), Trained()
    other.train(1)
    other.train(2)
    other.train(2, seed=9)
    assert equal(other.state(), after)


def test_there_may_be_nothing_to_go_back_to() -> None:
    """The first rollout is over the bound already: with another reference than the start, say."""
    trained = Trained()
    before = trained.state()
    assert Bound(trained.parts, limit=1.0, on_limit="rollback").judge(2.0) == "stop"
    assert equal(trained.state(), before)


def test_what_can_be_gone_back_to_survives_a_checkpoint() -> None:
    trained = Trained()
    limit = Bound(trained.parts, limit=1.0, on_limit="rollback")
    trained.train(2)
    good = trained.state()
    limit.judge(0.5)
    trained.train(2)
    assert limit.judge(5.0) == "rollback"
    limit.back(0.1)
    file = io.BytesIO()
    torch.save({"limit": limit.state_dict(), **trained.state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Trained()
    for name, part in again.parts.items():
        part.load_state_dict(saved[name])
    other = Bound(again.parts, limit=1.0, on_limit="rollback")
    other.load_state_dict(saved["limit"])
    again.train(2, seed=4)
    assert other.judge(5.0) == "rollback"
    assert other.back(0.1) == 0.2
    assert equal(again.state(), good)
    assert other.rollbacks == 2


LIMIT = {
    "memory": "full",
    "steps": 5,
    "kl": {"limit": 0.2},
    "ptx": None,
    "optimizer": {"warmup_steps": 0},  # the first update must go over the bound
}
BACK = LIMIT | {"kl": {"limit": 0.2, "on_limit": "rollback"}}


def test_a_run_stops_at_the_bound(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it learns from the rollout that is over: the weights are those of one step."""
    recipe = one_stage(tmp_path / "project", toy_model, **LIMIT)
    stopped = run(recipe, tmp_path / "run")
    rows, said = metrics(tmp_path / "run"), capsys.readouterr().err
    assert [row["kl"] > 0.2 for row in rows] == [False, True]
    assert "policy/loss" in rows[0]
    assert "policy/loss" not in rows[1]
    last = next(line for line in said.splitlines() if "step 2/5" in line)
    assert "over kl.limit: the training ends here" in last
    assert "[ppo] done in" in said
    whole = run(recipe, tmp_path / "one", "ppo.steps=1", "ppo.kl.limit=null")
    for name in ("model.safetensors", "value_head.safetensors"):
        one, other = load_file(stopped / name), load_file(whole / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    capsys.readouterr()
    run(recipe, tmp_path / "run")
    assert "[ppo] finished already" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["steps"], summary["stopped"], summary["rollbacks"]) == (1, True, 0)


def test_an_interrupt_in_the_last_step_of_a_stopped_stage_counts(tmp_path: Path) -> None:
    """The stage ends as it wants to; the stages after it must not start."""
    with StopRequests() as requests:
        for step in execution_of("ppo", tmp_path, requests).steps(5, {}):
            if step == 1:
                signal.raise_signal(signal.SIGINT)
                break
    assert requests.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_going_back_takes_the_average_along(toy_model: Path, tmp_path: Path) -> None:
    """What was taken back must not stay in the average, which is what is saved as the policy."""
    changes = {**BACK, "steps": 2, "ema": 0.5}
    folder = run(one_stage(tmp_path / "project", toy_model, **changes), tmp_path / "run")
    assert metrics(tmp_path / "run")[1]["rollbacks"] == 1
    start = load_file(toy_model / "model.safetensors")
    for saved in (folder / "last", folder):
        weights = load_file(saved / "model.safetensors")
        assert all(torch.equal(weights[name], start[name]) for name in start), saved


def test_the_last_weights_can_be_started_from(toy_model: Path, tmp_path: Path) -> None:
    changes = {**LIMIT, "steps": 1, "kl": {}, "ema": 0.5}
    folder = run(one_stage(tmp_path / "project", toy_model, **changes), tmp_path / "run")
    more = one_stage(tmp_path / "more", toy_model, **changes)
    for start in (folder / "last", folder):
        recipe, *_ = open_recipe(more, [f"ppo.from={start}"])
        options: Any = recipe.stages["ppo"].part.options
        assert options.start.folder == start
    (folder / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no finished policy"):
        open_recipe(more, [f"ppo.from={folder / 'empty'}"])


def test_a_run_goes_back_over_the_bound(
    toy_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the weights of the first rollout, which are the reference's: the KL is 0 again, exactly.

    A run that is interrupted after it went back gives the same numbers.
    """
    recipe = one_stage(tmp_path / "project", toy_model, **BACK)
    run(recipe, tmp_path / "whole")
    rows, said = metrics(tmp_path / "whole"), capsys.readouterr().err
    assert len(rows) == 5
    assert rows[0]["kl"] == 0.0
    assert rows[1]["kl"] > 0.2
    assert rows[2]["kl"] == 0.0
    assert "policy/loss" not in rows[1]
    assert "policy/loss" in rows[2]
    assert [row["rollbacks"] for row in rows[:3]] == [0, 1, 1]
    assert [row["kl_coef"] for row in rows[:3]] == [0.02, 0.02, 0.04]
    last = next(line for line in said.splitlines() if "step 2/5" in line)
    assert "over kl.limit: taken back, kl.coef is now 0.04" in last
    # Nothing has been trained once it went back: neither the critic nor the optimizer either.
    checkpoint = interrupted(recipe, tmp_path / "parts", 2, monkeypatch)
    state = torch.load(checkpoint, weights_only=True)["state"]
    assert state["optimizer"]["step"] == 0
    assert not state["optimizer"]["adam"]["state"]
    assert all((tensor == 0).all() for tensor in state["critic"].values())
    run(recipe, tmp_path / "parts")
    assert metrics(tmp_path / "parts") == rows


# ---------------------------------------------------------------- the two gradients


class Texts:
    """A stream that always gives the same two micro-batches."""

    def __init__(self, batch: TextBatch) -> None:
        self.batch = batch

    def next(self, episodes: int) -> list[TextBatch]:
        return list(self.batch.split(1))


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_gradient_is_ppo_plus_gamma_ptx(context_of: Any, micro_batch: int) -> None:
    """g_total = g_ppo + gamma g_ptx, arXiv:2203.02155, equation 2; and the norms of both.

    Each is taken apart by autograd, on a transformer whose states the critic trains too.
    """
    context = context_of("hydra")
    policy, tokenizer = context.memory().policy(None), context.tokenizer
    gamma = 3.0
    options = ppo_options(
        micro_batch=micro_batch,
        critic={"coef": 0.3},
        sampling={"max_new_tokens": 6},
    )
    batch = texts(tokenizer, *ANSWERS[:2])
    ppo = ppo_of(policy, options, ptx=mix(Texts(batch), gamma))
    critic = ppo.parts.critic
    assert critic is not None
    with torch.no_grad():  # a critic of 0 would send no gradient into the states
        for p in critic.model.parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    rollout = ppo.score(ppo.sample(prompts(tokenizer), key=4))
    assert len(set(rollout.mask.sum(1).tolist())) > 1
    rows = ppo.batch(rollout, ppo.credit(ppo.experience(rollout)))
    parameters = list(policy.parameters())
    count = int(rows.mask.sum())

    inputs = ppo.inputs(rows)
    policy_loss = ppo.parts.policy_loss(inputs["policy"]).total / count
    value_loss = critic.loss(inputs["value"]).total / count
    g_ppo = torch.autograd.grad(policy_loss + 0.3 * value_loss, parameters)
    logprobs = policy.next_token_logprobs(batch)
    nll = TokenNLL(NoOptions())(NllInputs(logprobs, batch.predicted)).total
    g_ptx = torch.autograd.grad(nll / batch.predicted.sum(), parameters)

    stats = ppo.learn(rows)
    found = ppo.parts.optimizer.gradients[: len(parameters)]
    wanted = [a + gamma * b for a, b in zip(g_ppo, g_ptx, strict=True)]
    gap, size = _norm([f - w for f, w in zip(found, wanted, strict=True)]), _norm(wanted)
    assert gap / size < 2e-6
    assert stats["gradient_norm/ppo"] == pytest.approx(_norm(g_ppo), rel=1e-5)
    assert stats["gradient_norm/ptx"] == pytest.approx(gamma * _norm(g_ptx), rel=1e-5)
    assert 0.1 < stats["gradient_norm/ptx"] / stats["gradient_norm/ppo"] < 100


def test_the_ratio_of_the_gradients_is_of_their_means(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    run(recipe, tmp_path / "on")
    run(recipe, tmp_path / "off", "ppo.gradient_norms=false")
    run(recipe, tmp_path / "double", "ppo.ptx.coef=1.0")
    (on,), (off,), (double,) = (metrics(tmp_path / name) for name in ("on", "off", "double"))
    assert on["gradient_ratio"] == on["gradient_norm/ptx"] / on["gradient_norm/ppo"]
    # gamma is in it: the first of two minibatches has twice the pretraining gradient.
    assert double["gradient_ratio"] > 1.5 * on["gradient_ratio"]
    watched = {"gradient_norm/ppo", "gradient_norm/ptx", "gradient_ratio"}
    assert off == {key: value for key, value in on.items() if key not in watched}


def _norm(tensors: Any) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors))
