"""PPO on a trained language model comes close to the best there is, which is known in closed form.

The largest ``J = E[r] - beta KL(pi || ref)`` is ``J* = beta log Z``, ``Z = E_ref[exp(r / beta)]``.
With responses of one or two tokens both are exact sums: over the 1,024 responses of one token, or
over the 1,047,553 of at most two (the end alone, or any other token and then any token). The end
of a response is here the full stop, which the model does write: it never writes its own.
"""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from toys import respond

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.ops.sequence import pad
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.types import Prompts

BETA = 0.1
# Half for ending, half for the share of vowels: the best policy must weigh one against the other.
REWARD = """
def reward(samples):
    shares = [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in samples.responses]
    return [(share + end) / 2 for share, end in zip(shares, samples.finished.tolist())]
"""
PROMPTS = {1: ["to her", "The house"], 2: ["to her"]}
STEPS = {1: 25, 2: 48}
RATES = {"full": 3e-4, "hydra": 6e-4, "lora": 1.2e-3}


@pytest.fixture(scope="module")
def model_that_ends(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, with the full stop as the token that ends a response."""
    folder = tmp_path_factory.mktemp("models") / "ends"
    shutil.copytree(trained_model, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": "."}
    path.write_text(json.dumps(config))
    return folder


def trained(folder: Path, model: Path, memory: str, length: int, seed: int) -> Any:
    """Run PPO; the context of its stage."""
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": text, "split": "train"} for text in PROMPTS[length]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    strategy: dict[str, Any] = {"use": memory, "dtype": "float32", "device": "cpu"}
    if memory == "hydra":
        strategy["trainable_layers"] = 2
    stage = {
        "use": "ppo_ptx",
        "reward": {"use": "python", "path": "reward.py"},
        "kl": {"coef": BETA},
        "steps": STEPS[length],
        "rollout_batch": 256,
        "minibatch": 64,
        "micro_batch": 64,
        "advantage": {"use": "gae", "lam": 1.0},  # unbiased, however wrong the critic is
        "sampling": {"max_new_tokens": length},
        "optimizer": {
            "learning_rate": RATES[memory],
            "schedule": "cosine",
            "final_fraction": 0.0,
            "warmup_steps": 4,
        },
        "critic": {"learning_rate": 1e-2},
    }
    values = {
        "seed": seed,
        "model": {"use": "pretrained", "name": str(model), "end_tokens": ["."]},
        "memory": strategy,
        "data": {"prompts": {"use": "prompts", "path": "prompts.jsonl"}},
        "stages": {"ppo": stage},
    }
    path = folder / "closed_form.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    recipe, loaded, _ = open_recipe(path)
    run_recipe(recipe, loaded, out=folder / "run", plain=True)
    return StageContext(RunContext(recipe, folder / "run"), "ppo")


class Responses:
    """Every response of at most ``length`` tokens, in one order: N of them."""

    def __init__(self, tokenizer: Any, length: int, reward: Any) -> None:
        self.eos, self.length, size = tokenizer.eos_id, length, len(tokenizer.hf)
        self.others = [token for token in range(size) if token != self.eos]
        pieces = [tokenizer.hf.decode([token], skip_special_tokens=True) for token in range(size)]
        ends = torch.arange(size) == self.eos
        if length == 1:
            texts = pieces
        else:
            texts = [pieces[self.eos], *(pieces[a] + b for a in self.others for b in pieces)]
            ends = torch.cat([ends[[self.eos]], ends.repeat(len(self.others))])
        samples = SimpleNamespace(responses=[text.strip() for text in texts], finished=ends)
        self.texts, self.ends = samples.responses, ends  # [N]
        self.rewards = torch.tensor(reward(samples), dtype=torch.float64)  # [N]

    def logprobs(self, policy: Any, prompt: list[int]) -> Tensor:
        """[N] float64, by the model's own logits."""

        def following(rows: list[list[int]]) -> Tensor:
            logits = model(input_ids=torch.tensor(rows)).logits[:, -1]
            return torch.log_softmax(logits.double(), -1)

        with torch.no_grad(), policy.role.decoding() as model:
            first = following([prompt])[0]
            if self.length == 1:
                return first
            second = following([[*prompt, token] for token in self.others])
        return torch.cat([first[[self.eos]], (first[self.others, None] + second).flatten()])

    def index(self, tokens: list[int]) -> int:
        """Where a response, as it was sampled, stands."""
        if self.length == 1:
            return tokens[0]
        if tokens == [self.eos]:
            return 0
        return 1 + self.others.index(tokens[0]) * (len(self.others) + 1) + tokens[1]


def check_enumeration(policy: Any, tokenizer: Any, prompt: list[int], every: Responses) -> None:
    """What PPO samples, ends, decodes and scores is what is enumerated."""
    tokens, mask = pad([prompt] * 64, tokenizer.pad_id, left=True)
    asked = Prompts(tokens, mask, [{}] * 64, torch.arange(64), torch.arange(64))
    samples = respond(policy, asked, every.length)
    rows = zip(samples.response_tokens, samples.mask, strict=True)
    places = [every.index(tokens[mask].tolist()) for tokens, mask in rows]
    assert [every.texts[i] for i in places] == samples.responses
    assert every.ends[places].equal(samples.finished)
    assert 0 < samples.finished.sum() < 64
    with torch.no_grad():
        found = policy.evaluate(samples).logprobs.sum(1).double()
    wanted = every.logprobs(policy, prompt)[places]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize(
    ("memory", "length"), [("full", 1), ("full", 2), ("hydra", 2), ("lora", 2)]
)
def test_ppo_comes_close_to_the_closed_form(
    model_that_ends: Path, tmp_path: Path, memory: str, length: int, seed: int
) -> None:
    context = trained(tmp_path, model_that_ends, memory, length, seed)
    reward = runpy.run_path(str(tmp_path / "reward.py"))["reward"]
    every = Responses(context.tokenizer, length, reward)
    strategy = context.memory()
    policy = strategy.policy(tmp_path / "run" / "stages" / "ppo")
    reference = strategy.reference(None)
    begin = end = best = 0.0
    for text in PROMPTS[length]:
        prompt = context.tokenizer.prompt({"prompt": text})
        check_enumeration(policy, context.tokenizer, prompt, every)
        log_pi = every.logprobs(policy, prompt)
        log_ref = every.logprobs(reference, prompt)
        assert log_ref.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
        begin += (log_ref.exp() * every.rewards).sum().item()
        end += (log_pi.exp() * (every.rewards - BETA * (log_pi - log_ref))).sum().item()
        best += BETA * (log_ref + every.rewards / BETA).logsumexp(0).item()
    assert best - begin > 0.3 * best  # the start is far below
    assert end < best  # or something else has been measured: nothing is above
    assert best - end <= 0.05 * best
