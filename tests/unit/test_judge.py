"""A reward that calls out: it hangs, fails and is slow, against a real server on this machine."""

from __future__ import annotations

import gc
import itertools
import json
import math
import signal
import subprocess
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rlhf_kit_policy_gradient.experience import with_scores
from rlhf_kit_policy_gradient.report import reward_counts
from rlhf_kit_rewards.calls import Calls, Late, Patience
from safetensors.torch import load_file
from toy_runs import metrics, one_stage, run
from toys import COMMAND, environment, merged, toy_recipe_values, write_toy_recipe

from rlhf_kit.components import Component
from rlhf_kit.content import Contents
from rlhf_kit.engine.scoring import ranked, score, try_out
from rlhf_kit.errors import NumericsError, PluginError, RecipeError
from rlhf_kit.interfaces import Labels
from rlhf_kit.plugins import load_plugins
from rlhf_kit.recipe import open_recipe
from rlhf_kit.recipe.identity import identity
from rlhf_kit.registry import Registry
from rlhf_kit.testing import build, check_reward, made_up_samples, part
from rlhf_kit.types import PartialScores, Rollout

_REGISTRY = Registry(load_plugins())
PLAIN = """
def reward(responses):
    return [sum(map(ord, text)) % 101 / 101 for text in responses]
"""
CALLING = """
import json, urllib.request

def reward(responses):
    request = urllib.request.Request("{url}", json.dumps(responses).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)
"""
TEXTS = ["one", "two", "three", "four", "five", "six", "seven"]
SAMPLES = made_up_samples(TEXTS)
EXPECTED = [sum(map(ord, text)) % 101 / 101 for text in TEXTS]


def of(name: str, seam: str = "reward") -> Component:
    return _REGISTRY.find(seam, f"rlhf-kit/{name}", "test", "test")[0]


class Server:
    """Scores one response per request. ``behave(text, attempt)`` says how: a word of ``_Handler``.

    Attempts at a text count from 1.
    """

    def __init__(self) -> None:
        self.behave: Callable[[str, int], str] = lambda text, attempt: "answer"
        self.attempts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock, self.over = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/"

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Server

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        owner = self.owner
        (text,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner.attempts[text] += 1
            attempt = owner.attempts[text]
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
        how = owner.behave(text, attempt)
        if how == "hang":
            owner.over.wait(20)
        if how == "slow":
            time.sleep(0.02 + 0.05 * (len(text) % 3))
        body = {"nan": "[NaN]", "garbage": "<html>"}.get(how)
        body = body or json.dumps([sum(map(ord, text)) % 101 / 101])
        with owner.lock:
            owner.at_once -= 1
        try:
            self.send_response(int(how) if how.isdigit() else 200)
            self.end_headers()
            self.wfile.write(body.encode())
        except OSError:  # nobody waits any more
            pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def judge(server: Server, tmp_path: Path) -> Callable[..., Any]:
    """A judge that calls the server: ``judge(retries=1)``."""
    path = tmp_path / "calling.py"
    path.write_text(CALLING.format(url=server.url))

    def make(**options: Any) -> Any:
        inner = part(of("python"), path=path)
        return build(of("judge"), **{"reward": inner, "backoff": 0.0, "timeout": 10.0} | options)

    return make


def first_fail(how: str, times: int) -> Callable[[str, int], str]:
    return lambda text, attempt: how if attempt <= times else "answer"


def only(text: str, how: str) -> Callable[[str, int], str]:
    """One response never gets a score."""
    return lambda given, attempt: how if given == text else "answer"


def test_it_is_a_reward(judge: Callable[..., Any]) -> None:
    check_reward(judge(), made_up_samples(["one", "two", "three", "four"]))


@pytest.mark.parametrize("parallel", [1, 3, 16])
def test_the_order_is_that_of_the_responses(
    judge: Callable[..., Any], server: Server, parallel: int
) -> None:
    server.behave = lambda text, attempt: "slow"
    found = score(judge(parallel=parallel), SAMPLES)
    assert found.total.tolist() == pytest.approx(EXPECTED)
    assert found.known.all()
    assert found.counts == dict.fromkeys(("retries", "timeouts", "errors", "failed"), 0.0)
    assert server.most_at_once <= parallel
    assert (server.most_at_once > 1) == (parallel > 1)


@pytest.mark.parametrize("seed", range(6))
def test_neither_failing_nor_its_order_changes_a_score(
    judge: Callable[..., Any], server: Server, seed: int
) -> None:
    """Whatever fails up to ``retries`` times, with whatever is slow in between."""
    ways = ("500", "429", "slow", "garbage", "nan", "answer")
    generator = torch.Generator().manual_seed(seed)
    plan = {
        text: [ways[i] for i in torch.randint(len(ways), (3,), generator=generator)]
        for text in TEXTS
    }
    server.behave = lambda text, attempt: [*plan[text], "answer"][attempt - 1]
    found = score(judge(parallel=1 + seed, retries=3), SAMPLES)
    assert found.total.tolist() == pytest.approx(EXPECTED)
    needed = {
        text: next(i for i, how in enumerate([*each, "answer"]) if how in ("slow", "answer"))
        for text, each in plan.items()
    }
    failures = float(sum(needed.values()))
    assert failures > 0
    assert found.counts == {"retries": failures, "errors": failures, "timeouts": 0.0, "failed": 0.0}


def test_a_hang_costs_a_timeout(judge: Callable[..., Any], server: Server) -> None:
    server.behave = first_fail("hang", 1)
    begin = time.monotonic()
    found = score(judge(timeout=0.5), SAMPLES)
    assert time.monotonic() - begin < 5
    assert found.total.tolist() == pytest.approx(EXPECTED)
    assert found.counts["retries"] == found.counts["timeouts"] >= 7
    assert found.counts["errors"] == found.counts["failed"] == 0


def test_a_pause_doubles(judge: Callable[..., Any], server: Server) -> None:
    server.behave = only("two", "500")
    begin = time.monotonic()
    score(judge(backoff=0.05, retries=3, on_error="drop"), SAMPLES)
    assert time.monotonic() - begin >= 0.05 + 0.1 + 0.2
    assert server.attempts["two"] == 4


def test_stop(judge: Callable[..., Any], server: Server) -> None:
    server.behave = only("three", "500")
    with pytest.raises(PluginError) as caught:
        score(judge(retries=1), SAMPLES)
    said = str(caught.value)
    assert "no score for response 2 of 7 ('three') after 2 calls: " in said
    assert "HTTP Error 500" in said
    assert "set on_error: drop or value to go on without" in said
    assert "\n" not in said


@pytest.mark.parametrize("how", ["500", "nan", "garbage", "hang"])
def test_drop(judge: Callable[..., Any], server: Server, how: str) -> None:
    server.behave = only("three", how)
    found = score(judge(retries=1, on_error="drop", timeout=0.5), SAMPLES)
    assert found.known.tolist() == [text != "three" for text in TEXTS]
    there = [x if known else 0.0 for x, known in zip(EXPECTED, found.known, strict=True)]
    assert found.total.tolist() == pytest.approx(there)
    assert found.counts["failed"] == 1.0
    # On a busy machine another call may be late, and is made again.
    c = found.counts
    assert c["errors"] + c["timeouts"] == c["retries"] + 1 >= 2
    assert server.attempts["three"] == 2
    assert found.known_or_none()[2] is None


def test_value(judge: Callable[..., Any], server: Server) -> None:
    server.behave = only("three", "500")
    found = score(judge(retries=0, on_error="value", error_value=-2.5), SAMPLES)
    assert found.known.all()
    assert found.total[2] == -2.5
    assert found.counts["failed"] == 1.0


@pytest.mark.parametrize("options", [{"on_error": "drop"}, {"on_error": "value", "error_value": 0}])
def test_one_that_has_never_answered_is_no_judge(
    judge: Callable[..., Any], server: Server, options: dict[str, Any]
) -> None:
    """So a wrong address is found when the stage is built, by the two made-up answers."""
    server.behave = lambda text, attempt: "404"
    with pytest.raises(PluginError, match=r"HTTP Error 404.*it has not answered once"):
        try_out(judge(retries=1, **options), [{"prompt": "a"}])


def test_many_in_a_row_are_an_outage(judge: Callable[..., Any], server: Server) -> None:
    reward = judge(retries=0, on_error="drop", most_in_a_row=4)
    score(reward, SAMPLES)
    server.behave = lambda text, attempt: "503"
    few = SAMPLES.select(torch.arange(3))
    assert not score(reward, few).known.any()
    with pytest.raises(PluginError, match=r"4 responses in a row had none \(most_in_a_row\)"):
        score(reward, few)


def test_ctrl_c_while_it_hangs(judge: Callable[..., Any], server: Server) -> None:
    server.behave = lambda text, attempt: "hang"

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    begin = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            score(judge(timeout=60.0), SAMPLES)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 5


MINE = """
import time
import rlhf_kit, torch
from rlhf_kit.types import PartialScores

class Counting:
    def __init__(self, options):
        self.seen = 0

    def __call__(self, samples):
        self.seen += len(samples)
        return torch.full((len(samples),), float(self.seen))

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

class Learned(Counting):
    needs_models = True

    def load(self, memory):
        pass

class Tokens(Counting):
    def __call__(self, samples):
        return torch.zeros(samples.response_mask.shape)

class Slow(Counting):
    def __call__(self, samples):
        time.sleep(2.0)
        return super().__call__(samples)

class Empty(Counting):
    # Stateful by its type, with nothing to see before it is asked.
    def state_dict(self):
        return {}

class Rubric:
    def __init__(self, options):
        pass

    def components(self, samples):
        return {"polite": torch.ones(len(samples)), "short": torch.zeros(len(samples))}

    def combine(self, components):
        return sum(components.values())

    def __call__(self, samples):
        return self.combine(self.components(samples))

class Spending:
    def __init__(self, options):
        pass

    def __call__(self, samples):
        known = torch.ones(len(samples), dtype=torch.bool)
        return PartialScores(torch.zeros(len(samples)), known, {"cents": 2.0, "failed": 1.0})

class Exhausted(Counting):
    def __call__(self, samples):
        raise MemoryError

@rlhf_kit.hookimpl
def rlhf_components():
    kinds = (Counting, Learned, Tokens, Exhausted, Slow, Empty, Rubric, Spending)
    for name in (kind.__name__ for kind in kinds):
        yield rlhf_kit.Component("reward", name.lower(), f"{__name__}:{name}")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Registry:
    (tmp_path / "mine.py").write_text(MINE)
    return Registry(load_plugins([tmp_path / "mine.py"]))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("counting", {}, "keeps a state, which parallel calls would mix up; set parallel: 1"),
        ("empty", {}, "keeps a state, which parallel calls would mix up; set parallel: 1"),
        ("learned", {"parallel": 1}, "computes with a model of this run"),
        ("rubric", {}, "is made of several numbers, .*; put the judge inside"),
    ],
)
def test_what_is_no_judge_is_refused(
    mine: Registry, name: str, options: dict[str, Any], said: str
) -> None:
    inner = part(mine.find("reward", name, "test", "test")[0])
    with pytest.raises(RecipeError, match=f"reward {name!r} {said}"):
        build(of("judge"), reward=inner, **options)


def test_a_state_goes_through(mine: Registry) -> None:
    inner = part(mine.find("reward", "counting", "test", "test")[0])
    reward = build(of("judge"), reward=inner, parallel=1)
    assert score(reward, SAMPLES).total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    other = build(of("judge"), reward=inner, parallel=1)
    other.load_state_dict(reward.state_dict())
    assert score(other, SAMPLES).total[0] == 8.0


def test_a_late_call_of_what_keeps_a_state_ends_the_run(mine: Registry) -> None:
    """It would still write to the state while the next call does."""
    inner = part(mine.find("reward", "slow", "test", "test")[0])
    late = {"timeout": 0.2, "parallel": 1, "backoff": 0.0, "on_error": "drop"}
    begin = time.monotonic()
    with pytest.raises(PluginError, match=r"no answer within 0.2 s; it keeps a state.*raise"):
        score(build(of("judge"), reward=inner, **late), SAMPLES)
    assert time.monotonic() - begin < 1.5


def test_a_judge_in_a_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    inner = part(of("judge"), reward=part(of("python"), path=tmp_path / "plain.py"))
    with pytest.raises(RecipeError, match="'judge' waits already; name it without a judge"):
        build(of("judge"), reward=inner)


def test_what_the_reward_counts_goes_through(mine: Registry) -> None:
    inner = part(mine.find("reward", "spending", "test", "test")[0])
    found = score(build(of("judge"), reward=inner), SAMPLES)
    own = dict.fromkeys(("retries", "timeouts", "errors", "failed"), 0.0)
    assert found.counts == own | {"reward/cents": 14.0, "reward/failed": 7.0}


def test_what_hangs_keeps_its_own_item_alone() -> None:
    over = threading.Event()
    hangs = [True, False, False]
    items = [torch.tensor([i]) for i in range(3)]
    kept = [weakref.ref(item) for item in items]
    late = Late("test", False, 10)

    def ask(item: torch.Tensor) -> int:
        if hangs[int(item)]:
            over.wait(20)
        return int(item)

    calls = Calls(ask, Patience(0.3, 0, 0.0, 3), late)
    assert {x.which: x.value for x in calls.outcomes(items)} == {0: None, 1: 1, 2: 2}
    del calls, items
    for thread in threading.enumerate():  # those that are not late end any moment
        if thread not in late.threads and thread.daemon and "_call" in thread.name:
            thread.join(5)
    gc.collect()
    assert [ref() is not None for ref in kept] == [True, False, False]
    over.set()


def test_late_calls_are_bounded(judge: Callable[..., Any], server: Server) -> None:
    reward = judge(retries=20, timeout=0.1, parallel=1, on_error="drop")
    score(reward, SAMPLES.select(torch.arange(1)))
    server.behave = lambda text, attempt: "hang"
    before = sum(server.attempts.values())
    with pytest.raises(PluginError, match=r"11 late calls are still running, more than 10 times"):
        score(reward, SAMPLES)
    assert sum(server.attempts.values()) - before <= 11


@pytest.mark.parametrize("on_error", ["stop", "drop", "value"])
def test_patience_is_part_of_a_result_that_depends_on_it(on_error: str, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    inner = part(of("python"), path=tmp_path / "plain.py")

    def means(**options: Any) -> dict[str, Any]:
        value = {"error_value": 0.0} if on_error == "value" else {}
        asked = part(of("judge"), reward=inner, on_error=on_error, **value, **options)
        return identity(asked, Contents())

    for option in ({"timeout": 5.0}, {"retries": 1}, {"backoff": 2.0}, {"parallel": 1}):
        assert (means(**option) == means()) == (on_error == "stop"), option
    if on_error != "stop":  # a run that it has stopped has no result yet
        assert means(most_in_a_row=99) == means()


def test_scores_of_tokens_are_not_a_judges(mine: Registry) -> None:
    inner = part(mine.find("reward", "tokens", "test", "test")[0])
    with pytest.raises(PluginError, match="scores tokens; a judge scores whole responses"):
        score(build(of("judge"), reward=inner, parallel=1, backoff=0.0), SAMPLES)


def test_want_of_memory_is_no_failure_of_the_judge(mine: Registry) -> None:
    inner = part(mine.find("reward", "exhausted", "test", "test")[0])
    with pytest.raises(MemoryError):
        score(build(of("judge"), reward=inner, parallel=1, on_error="drop"), SAMPLES)


def test_what_stops_a_composite(judge: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    """One part without a score leaves the sum without; parts of parts too."""
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "calling.py").write_text(CALLING.format(url=server.url))
    plain = part(of("python"), path=tmp_path / "plain.py")
    calling = part(of("python"), path=tmp_path / "calling.py")
    asked = part(of("judge"), reward=calling, backoff=0.0, retries=1, on_error="drop")
    inner = part(of("ensemble"), rewards={"asked": asked, "plain": plain}, combine="min")
    whole = build(of("weighted_sum"), rewards={"both": inner, "plain": plain}, weights={"both": 2})
    server.behave = only("three", "500")
    found = score(whole, SAMPLES)
    assert found.known.tolist() == [text != "three" for text in TEXTS]
    known = torch.tensor([x for x, text in zip(EXPECTED, TEXTS, strict=True) if text != "three"])
    torch.testing.assert_close(found.total[found.known], 3 * known)
    assert found.total[2] == 0
    assert found.counts == {
        "both/asked/retries": 1.0,
        "both/asked/errors": 2.0,
        "both/asked/timeouts": 0.0,
        "both/asked/failed": 1.0,
    }
    assert found.components["both"][2] == 0


@pytest.mark.parametrize(
    "known",
    [
        torch.ones(7),
        torch.ones(6, dtype=torch.bool),
        torch.ones((7, 1), dtype=torch.bool),
        [True] * 7,
    ],
)
def test_partial_scores_are_not_trusted(known: Any) -> None:
    with pytest.raises(PluginError, match=r"reward: known is .*; it should be bool, one per"):
        score(lambda samples: PartialScores(torch.zeros(7), known), SAMPLES)


@pytest.mark.parametrize("scores", [torch.tensor(1.0), torch.zeros(1), torch.zeros((7, 1)), 1.0])
def test_partial_scores_are_one_per_response(scores: Any) -> None:
    known = torch.ones(7, dtype=torch.bool)
    with pytest.raises(NumericsError, match=r"reward: expected one score per response"):
        score(lambda samples: PartialScores(scores, known), SAMPLES)


def test_partial_scores_may_be_a_list_as_plain_ones_may() -> None:
    known = torch.ones(7, dtype=torch.bool)
    listed: Any = [1, 2, 3, 4, 5, 6, 7]
    assert score(lambda _: PartialScores(listed, known), SAMPLES).total.tolist() == listed


COUNTS = [None, {"x": "y"}, {"x": math.nan}, {1: 2.0}, [1.0]]


@pytest.mark.parametrize("counts", COUNTS)
def test_counts_are_finite_numbers_by_name(counts: Any) -> None:
    known = torch.ones(7, dtype=torch.bool)
    with pytest.raises(PluginError, match=r"reward: counts are .*; they should be finite numbers"):
        score(lambda samples: PartialScores(torch.zeros(7), known, counts), SAMPLES)


@pytest.mark.parametrize("counts", COUNTS)
def test_so_are_those_of_a_labeler(counts: Any) -> None:
    with pytest.raises(PluginError, match=r"counts are .*; they should be finite numbers"):
        ranked(lambda samples: Labels([0] * 7, None, counts), SAMPLES)


def test_chunks_need_not_count_the_same() -> None:
    one = made_up_rollout([True, True], [0, 1])
    parts = [replace(one, counts=x) for x in ({}, {"failed": 1.0}, {"failed": 2.0, "late": 1.0})]
    assert Rollout.join(parts).counts == {"failed": 3.0, "late": 1.0}


@dataclass
class Threads:
    """A world whose ranks are threads that wait for each other at every sum, as processes do."""

    rank: int
    size: int
    barrier: threading.Barrier
    given: list[torch.Tensor]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.given[self.rank] = x
        self.barrier.wait(10)
        assert len({y.shape for y in self.given}) == 1
        found = torch.stack(self.given).sum(0)
        self.barrier.wait(10)
        return found


def test_ranks_need_not_count_the_same() -> None:
    one = made_up_rollout([True, True], [0, 1])
    counts: list[dict[str, float]] = [{}, {"failed": 1.0}, {"späte": 2.0, "failed": 3.0}]
    given: list[torch.Tensor] = [torch.empty(0)] * 3
    barrier, found = threading.Barrier(3), dict[int, dict[str, float]]()

    def of_rank(rank: int) -> None:
        world = Threads(rank, 3, barrier, given)
        found[rank] = reward_counts(replace(one, counts=counts[rank]), world)

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[rank] for rank in range(3)] == [{"reward/failed": 4.0, "reward/späte": 2.0}] * 3


def test_nan_is_fine_where_there_is_no_score_and_nowhere_else() -> None:
    scores = torch.tensor([1.0, math.nan, 2.0])
    samples = made_up_samples(["a", "b", "c"])
    known = torch.tensor([True, False, True])
    assert score(lambda _: PartialScores(scores, known), samples).total.tolist() == [1.0, 0.0, 2.0]
    with pytest.raises(NumericsError, match="score nan for response 1 of 3"):
        score(lambda _: PartialScores(scores, torch.ones(3, dtype=torch.bool)), samples)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("{on_error: value}", "error_value: is missing"),
        ("{error_value: 1.0}", 'error_value: .*on_error is "stop"; .* set on_error: value'),
        ("{retries: 0, backoff: 2.0}", "backoff: .*retries is 0"),
        ("{most_in_a_row: 3}", "most_in_a_row: .*the first one stops the run"),
        ("{timeout: 0}", "timeout"),
        ("{timeout: 1e30}", "timeout"),
        ("{backoff: 1e30}", "backoff"),
        ("{on_error: skip}", "on_error"),
    ],
)
def test_a_wrong_option_is_refused_at_its_line(
    toy_model: Path, tmp_path: Path, changes: str, said: str
) -> None:
    path = one_stage(tmp_path, toy_model)
    values = yaml.safe_load(path.read_text())
    gold = values["stages"]["ppo"]["reward"]
    values["stages"]["ppo"]["reward"] = {"use": "judge", "reward": gold} | yaml.safe_load(changes)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=said):
        open_recipe(path)


def made_up_rollout(known: list[bool], group: list[int]) -> Rollout:
    samples = made_up_samples(TEXTS[: len(known)])
    samples = replace(samples, prompts=replace(samples.prompts, group=torch.tensor(group)))
    row = torch.arange(float(len(known)))
    values = row[:, None].expand(samples.mask.shape)
    return Rollout(
        samples,
        values,
        values + 1,
        values + 2,
        torch.where(torch.tensor(known), row, 0.0),
        {"a": -row},
        values + 3,
        torch.tensor(known),
        {"retries": 2.0},
    )


@pytest.mark.parametrize(
    ("whole_groups", "kept"), [(False, [0, 1, 3, 4, 5]), (True, [1, 3, 4])], ids=["alone", "groups"]
)
def test_what_has_no_score_is_not_in_the_rollout(whole_groups: bool, kept: list[int]) -> None:
    given = made_up_rollout([True, True, False, True, True, True], [7, 5, 7, 5, 5, 7])
    found = with_scores(given, whole_groups=whole_groups)
    assert found.samples.responses == [TEXTS[i] for i in kept]
    assert found.scores.tolist() == kept
    assert found.components["a"].tolist() == [-i for i in kept]
    assert found.counts == {"retries": 2.0, "dropped": 6.0 - len(kept)}
    assert found.values is not None and found.token_scores is not None
    for offset, x in enumerate(
        (found.logprobs, found.reference_logprobs, found.values, found.token_scores)
    ):
        assert x.shape == found.mask.shape
        assert x[:, 0].tolist() == [i + offset for i in kept]
    whole = with_scores(made_up_rollout([True] * 3, [0, 1, 2]), whole_groups=True)
    assert (len(whole.samples), whole.counts) == (3, {"retries": 2.0, "dropped": 0.0})


def test_too_few_to_learn_from() -> None:
    given = made_up_rollout([False, True, False], [0, 1, 2])
    with pytest.raises(PluginError, match="no score for 2 of 3 responses of this rollout, and 1"):
        with_scores(given, whole_groups=False)


def asking(server: Server, folder: Path, **options: Any) -> dict[str, Any]:
    """The block of a judge over the server, whose function is written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calling.py").write_text(CALLING.format(url=server.url))
    inner = {"use": "python", "path": "calling.py"}
    soon = {} if options.get("retries") == 0 else {"backoff": 0.0}
    return {"use": "judge", "reward": inner, **soon, **options}


def unlucky(text: str) -> bool:
    """About a fifth of all responses."""
    return sum(map(ord, text)) % 5 == 0


def ppo(folder: Path, model: Path, reward: Any, **changes: Any) -> Path:
    path = one_stage(folder, model, reward=PLAIN, ptx=None, steps=3, **changes)
    values = yaml.safe_load(path.read_text())
    if reward is not None:
        values["stages"]["ppo"]["reward"] = reward
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_judge_that_fails_now_and_then_trains_as_one_that_does_not(
    server: Server, toy_model: Path, tmp_path: Path
) -> None:
    plain = run(ppo(tmp_path / "plain", toy_model, None), tmp_path / "a")
    server.behave = lambda text, attempt: ("503", "429", "slow")[attempt % 3]
    reward = asking(server, tmp_path / "asked")
    asked = run(ppo(tmp_path / "asked", toy_model, reward), tmp_path / "b")
    for name, tensor in load_file(plain / "branch.safetensors").items():
        assert torch.equal(load_file(asked / "branch.safetensors")[name], tensor), name
    rows = metrics(tmp_path / "b")
    assert sum(row["reward/retries"] for row in rows) > 0
    assert all(row["reward/dropped"] == row["reward/failed"] == 0 for row in rows)
    own = [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in rows]
    assert own == metrics(tmp_path / "a")


def test_after_an_outage_the_same_command_goes_on(
    server: Server, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To what an undisturbed run ends in; what is waited for may be changed in between."""
    plain = run(ppo(tmp_path / "plain", toy_model, None), tmp_path / "a")
    calls: Counter[bool] = Counter()

    def down_later(text: str, attempt: int) -> str:
        calls[True] += 1
        return "answer" if calls[True] < 34 else "503"

    server.behave = down_later
    path = ppo(tmp_path / "asked", toy_model, asking(server, tmp_path / "asked", retries=1))
    with pytest.raises(PluginError, match=r"stages.ppo.reward.reward: no score for response"):
        run(path, tmp_path / "b", "checkpoint.steps=1")
    server.behave = lambda text, attempt: "answer"
    capsys.readouterr()
    asked = run(path, tmp_path / "b", "ppo.reward.timeout=5", "ppo.reward.parallel=2")
    assert "[ppo] going on after step" in capsys.readouterr().err
    for name, tensor in load_file(plain / "branch.safetensors").items():
        assert torch.equal(load_file(asked / "branch.safetensors")[name], tensor), name


def test_ctrl_c_twice_leaves_a_run_that_hangs(
    server: Server, toy_model: Path, tmp_path: Path
) -> None:
    hangs = threading.Event()

    def hang_later(text: str, attempt: int) -> str:
        if sum(server.attempts.values()) > 34:
            hangs.set()
            return "hang"
        return "answer"

    server.behave = hang_later
    path = ppo(tmp_path / "p", toy_model, asking(server, tmp_path / "p", timeout=600))
    process = subprocess.Popen(
        [*COMMAND, "run", str(path), "--out", str(tmp_path / "run")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert hangs.wait(60)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said


PAIRS = """
import rlhf_kit, torch
from rlhf_kit.types import Advantages

class Pairs:
    \"\"\"The better one of two.\"\"\"

    def __init__(self, options):
        pass

    def __call__(self, experience):
        group, scores = experience.group, experience.scores
        same = group[:, None] == group[None, :]
        assert (same.sum(1) == 2).all(), group
        above = 2 * scores - same.float() @ scores
        advantages = torch.where(experience.places, above[:, None], 0.0)
        return Advantages(advantages, torch.zeros_like(advantages))

@rlhf_kit.hookimpl
def rlhf_components():
    needs = frozenset({"groups", "scores"})
    return [rlhf_kit.Component("advantage", "pairs", f"{__name__}:Pairs", needs=needs)]
"""


@pytest.mark.parametrize("pairs", [False, True])
def test_ppo_drops(pairs: bool, server: Server, toy_model: Path, tmp_path: Path) -> None:
    """Whole groups where an estimator compares their members, and it never sees a part of one."""
    server.behave = lambda text, attempt: "500" if unlucky(text) else "answer"
    folder = tmp_path / "project"
    reward = asking(server, folder, retries=0, on_error="drop")
    path = ppo(folder, toy_model, reward, samples_per_prompt=2, rollout_batch=16)
    (folder / "pairs.py").write_text(PAIRS)
    values = yaml.safe_load(path.read_text())
    if pairs:
        values["stages"]["ppo"] |= {"advantage": {"use": "pairs"}, "kl": {"coef": 0.0}}
        values["stages"]["ppo"].pop("critic")
    path.write_text(yaml.safe_dump(values))
    folder = run(path, tmp_path / "run", plugins=(folder / "pairs.py",))
    rows = metrics(tmp_path / "run")
    assert sum(row["reward/failed"] for row in rows) > 0
    if pairs:
        assert sum(row["reward/dropped"] - row["reward/failed"] for row in rows) > 0
    for row in rows:
        assert row["reward/failed"] == row["reward/errors"]
        if pairs:
            assert row["reward/dropped"] % 2 == 0
            assert row["reward/failed"] <= row["reward/dropped"] <= 2 * row["reward/failed"]
        else:
            assert row["reward/dropped"] == row["reward/failed"]
        assert all(math.isfinite(x) for x in row.values() if isinstance(x, float))
    for tensor in load_file(folder / "branch.safetensors").values():
        assert torch.isfinite(tensor).all()


def stage(name: str, **changes: Any) -> dict[str, Any]:
    block = merged(toy_recipe_values(Path(), "full")["stages"][name], changes)
    return {key: value for key, value in block.items() if key != "from"}


def one(folder: Path, model: Path, stages: dict[str, Any]) -> Path:
    path = write_toy_recipe(folder, model, "lora")
    values = yaml.safe_load(path.read_text())
    values["stages"] = stages
    used = {"prompts", *(["demonstrations"] if "sft" in stages else [])}
    values["data"] = {name: source for name, source in values["data"].items() if name in used}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_collect_leaves_out_what_was_not_judged(
    server: Server, toy_model: Path, tmp_path: Path
) -> None:
    server.behave = lambda text, attempt: "500" if unlucky(text) else "answer"
    reward = asking(server, tmp_path / "p", retries=0, on_error="drop")
    block = stage("collect", labeler={"use": "scripted", "reward": reward})
    folder = run(one(tmp_path / "p", toy_model, {"collect": block}), tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    texts = [text for row in rows for text in row["completions"]]
    assert texts and not any(map(unlucky, texts))
    for row in rows:
        assert len(row["scores"]) == len(row["ranks"]) == len(row["completions"])
        order = sorted(range(len(row["ranks"])), key=lambda i, row=row: row["ranks"][i])
        scores = [row["scores"][i] for i in order]
        assert scores == sorted(scores, reverse=True)
    found = metrics(tmp_path / "run")
    assert sum(row["labeler/failed"] for row in found) == sum(
        count for text, count in server.attempts.items() if unlucky(text)
    )


def test_best_of_n_reads_what_has_all_scores(
    server: Server, toy_model: Path, tmp_path: Path
) -> None:
    server.behave = lambda text, attempt: "500" if unlucky(text) else "answer"
    gold = asking(server, tmp_path / "p", retries=0, on_error="drop")
    block = {"use": "best_of_n", "proxies": {"plain": {"use": "python", "path": "reward.py"}}}
    sampling = {"max_new_tokens": 6, "batch_size": 16}
    block |= {"gold": gold, "split": "train", "samples_per_prompt": 16, "sampling": sampling}
    folder = run(one(tmp_path / "p", toy_model, {"best_of_n": block}), tmp_path / "run")
    points = json.loads((folder / "best_of_n.json").read_text())
    assert [point["n"] for point in points][:4] == [1.0, 2.0, 4.0, 8.0]
    assert all(math.isfinite(x) for point in points for x in point.values())
    for point in points:  # the two rewards agree, on what both have scored
        assert point["plain/proxy"] == pytest.approx(point["plain/gold"])
    assert sum(row["gold/failed"] for row in metrics(tmp_path / "run")) > 0


def test_one_missing_score_costs_one_prompt_of_the_largest_n(
    server: Server, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = itertools.count()
    server.behave = lambda text, attempt: "500" if next(asked) == 5 else "answer"
    gold = asking(server, tmp_path / "p", retries=0, on_error="drop")
    block = {"use": "best_of_n", "proxies": {"plain": {"use": "python", "path": "reward.py"}}}
    sampling = {"max_new_tokens": 6, "batch_size": 16}
    block |= {"gold": gold, "split": "train", "samples_per_prompt": 8, "sampling": sampling}
    path = one(tmp_path / "p", toy_model, {"best_of_n": block | {"most_prompts": 3}})
    folder = run(path, tmp_path / "run")
    points = json.loads((folder / "best_of_n.json").read_text())
    assert [point["n"] for point in points] == [1.0, 2.0, 4.0, 8.0]
    why = "prompts: fewer than n = 8 of the answers have all scores"
    found = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["best_of_n"]
    assert found["left_out"][why] == 1
    assert f"left out 1 of 3 {why}" in capsys.readouterr().err


def test_evaluate_compares_what_has_scores(server: Server, toy_model: Path, tmp_path: Path) -> None:
    server.behave = lambda text, attempt: "500" if unlucky(text) else "answer"
    gold = asking(server, tmp_path / "p", retries=1, on_error="drop", most_in_a_row=99)
    block = stage("evaluate", gold=gold) | {"baseline": None, "candidates": {"sft": "sft"}}
    block["samples_per_prompt"] = 8
    for idle in ("pretraining", "pretraining_tokens", "pretraining_length", "reward"):
        del block[idle]
    path = one(tmp_path / "p", toy_model, {"sft": stage("sft"), "evaluate": block})
    folder = run(path, tmp_path / "run")
    rows = json.loads((folder / "samples.json").read_text())
    missing: Counter[str] = Counter()
    kept: dict[str, list[float]] = {"baseline": [], "sft": []}
    for row in rows:
        for name, text in row["responses"].items():
            assert (row["gold"][name] is None) == unlucky(text)
            missing[name] += row["gold"][name] is None
            kept[name] += [] if row["gold"][name] is None else [row["gold"][name]]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert sum(missing.values()) > 0
    assert summary["without_gold"] == {name: missing[name] for name in kept}
    for name, scores in kept.items():
        assert summary["gold_score"][name] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert 0 <= summary["win_rate"]["sft"] <= 1
    assert summary["counts"]["gold/failed"] == sum(missing.values())
    assert summary["counts"]["gold/retries"] == sum(missing.values())


def test_sft_selects_by_what_has_scores(server: Server, toy_model: Path, tmp_path: Path) -> None:
    server.behave = lambda text, attempt: "500" if unlucky(text) else "answer"
    reward = asking(server, tmp_path / "p", retries=0, on_error="value", error_value=-1.0)
    changes = {"select_by": reward, "sampling": {"max_new_tokens": 6, "batch_size": 4}}
    path = write_toy_recipe(tmp_path / "p", toy_model, "lora")
    values = yaml.safe_load(path.read_text())
    values["stages"] = {"sft": stage("sft", **changes)}
    values["data"] = {"demonstrations": values["data"]["demonstrations"]}
    path.write_text(yaml.safe_dump(values))
    run(path, tmp_path / "run")
    judged = [row for row in metrics(tmp_path / "run") if "validation/score" in row]
    assert judged
    assert all(row["validation/select_by/timeouts"] == 0 for row in judged)
