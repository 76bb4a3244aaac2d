"""The gate before the first PPO update: it passes what is right and names what is wrong.

Every fault goes in through a whole run of the stage, which must end with exit code 4.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rlhf_kit_hf.hydra import HydraRole
from rlhf_kit_hf.strategy import Strategy
from rlhf_kit_hf.tokenizer import ChatTokenizer
from rlhf_kit_policy_gradient.gate import Setup, check_setup, widened
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_runs import edited, metrics, one_stage, ppo_options, run, run_in_two
from toys import prompts, respond

from rlhf_kit.cli.main import main
from rlhf_kit.errors import NumericsError
from rlhf_kit.types import PartialScores

CHECKS = ("reference", "sampled", "ratio", "reward", "padding", "end", "tokenizers", "repeatable")


def quick(folder: Path, model: Path, memory: str = "hydra", **options: Any) -> Path:
    """One step of PPO after the gate."""
    chosen = {"steps": 1, "ptx": None} | options
    return one_stage(folder, model, memory=memory, **chosen)


def gate(out: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((out / "stages/ppo/gate.json").read_text())
    return found


# ---------------------------------------------------------------- what is right passes

FAMILIES = [
    (memory, kind)
    for memory in ("full", "lora", "hydra")
    for kind in ("llama", "qwen3", "neox", "gpt2")
    if (memory, kind) != ("hydra", "gpt2")  # which hydra refuses
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("memory", "kind"), FAMILIES)
def test_it_passes(
    toy_models: Callable[[str], Path], tmp_path: Path, memory: str, kind: str, dtype: str
) -> None:
    recipe = quick(tmp_path / "project", toy_models(kind), memory)
    run(recipe, tmp_path / "run", f"memory.dtype={dtype}")
    found = gate(tmp_path / "run")
    assert set(CHECKS) <= found.keys()
    for name, (measured, allowed) in found.items():
        assert measured >= allowed if name == "end" else measured <= allowed
    # Bounds are those of the arithmetic, with room but not so much that a fault would fit.
    assert found["padding"][1] == (1e-3 if dtype == "float32" else 0.1)
    assert found["repeatable"][0] == found["reference"][0] == 0.0
    if dtype == "float32":
        assert found["padding"][0] < 1e-4


@pytest.mark.parametrize("memory", ["hydra", "lora"])
def test_it_changes_nothing_that_follows(toy_model: Path, tmp_path: Path, memory: str) -> None:
    recipe = quick(tmp_path / "project", toy_model, memory, steps=3)
    on = run(recipe, tmp_path / "on")
    off = run(recipe, tmp_path / "off", "ppo.gate.check=false")
    assert metrics(tmp_path / "on") == metrics(tmp_path / "off")
    name = "adapter_model.safetensors" if memory == "lora" else "branch.safetensors"
    one, other = load_file(on / name), load_file(off / name)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (off / "gate.json").exists()


def test_it_is_not_run_again_after_an_interrupt(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By then the policy has been trained and is no longer its reference."""
    recipe = quick(tmp_path / "project", toy_model, steps=3)
    run_in_two(recipe, tmp_path / "run", 1, monkeypatch)
    said = capsys.readouterr().err
    assert said.count("[ppo] gate  reference 0") == 1
    assert said.index("[ppo] gate") < said.index("[ppo] going on after step 1")
    assert gate(tmp_path / "run")["reference"][0] == 0.0


# ---------------------------------------------------------------- what is wrong does not


def refused(recipe: Path, out: Path, *checks: str) -> str:
    """What the command says; exactly ``checks`` failed, and naming them lets it go on."""
    result = CliRunner().invoke(main, ["run", str(recipe), "--out", str(out)])
    assert result.exit_code == 4, result.stderr
    said = result.stderr.splitlines()[-1]
    assert said.startswith("error: stage 'ppo': the gate before the first update stopped the run")
    for name in CHECKS:
        named = f" {name}: " in said
        assert named == (name in checks), said
    listed = [name for name in CHECKS if name in checks]
    assert said.endswith(f"write gate.skip: [{', '.join(listed)}]")
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob("metrics.jsonl"))
    skipped = f"ppo.gate.skip=[{', '.join(listed)}]"
    assert CliRunner().invoke(main, ["run", str(recipe), skipped, "--out", str(out)]).exit_code == 0
    assert gate(out).keys() == set(CHECKS) - set(checks)
    off = out.with_name("off")
    result = CliRunner().invoke(
        main, ["run", str(recipe), "ppo.gate.check=false", "--out", str(off)]
    )
    assert result.exit_code == 0, result.stderr
    assert "gate" not in result.stderr
    return said


def test_reference(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that were loaded for the reference are not those of the policy."""
    original = Strategy.reference

    def other(self: Any, start: Path | None) -> Any:
        built = original(self, start)
        with torch.no_grad():
            for tensor in built.role.state_dict().values():
                tensor += 0.01
        return built

    monkeypatch.setattr(Strategy, "reference", other)
    said = refused(quick(tmp_path / "project", toy_model), tmp_path / "run", "reference")
    assert "which start from the same weights" in said


def test_a_reference_of_its_own_is_told_and_not_judged(toy_model: Path, tmp_path: Path) -> None:
    """Another start than the reference's is what the recipe says: the KL is reported."""
    first = run(quick(tmp_path / "one", toy_model), tmp_path / "first")
    note = json.loads((first / "stage.json").read_text())
    assert note["produces"] == "policy"
    weights = load_file(first / "branch.safetensors")
    save_file({k: v + 0.05 for k, v in weights.items()}, first / "branch.safetensors")
    edited(first)
    recipe = quick(tmp_path / "two", toy_model, reference=str(first))
    run(recipe, tmp_path / "run")
    measured, allowed = gate(tmp_path / "run")["reference"]
    assert allowed is None
    assert abs(measured) > 0.1
    assert math.isfinite(measured)


class Dropout:
    """On what a layer adds, in every pass, or in those that need gradients."""

    def __init__(self, *, always: bool) -> None:
        self.always = always

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        if not self.always and not torch.is_grad_enabled():
            return output
        return torch.nn.functional.dropout(output, 0.3, training=True)


@pytest.mark.parametrize(
    ("always", "checks"),
    [
        (False, ("ratio", "repeatable")),
        (True, ("reference", "sampled", "ratio", "padding", "repeatable")),
    ],
)
def test_dropout(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    always: bool,
    checks: tuple[str, ...],
) -> None:
    """Dropout that acts only in training is seen by what compares training with sampling."""
    original = HydraRole.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for layer in self._branch.layers:
            layer.mlp.register_forward_hook(Dropout(always=always))

    monkeypatch.setattr(HydraRole, "__init__", init)
    # The check of hydra itself would find dropout that is always on.
    monkeypatch.setattr("rlhf_kit_hf.hydra.HydraMemory._check_split", lambda self: None)
    said = refused(quick(tmp_path / "project", toy_model), tmp_path / "run", *checks)
    assert "the probability ratio of PPO is not 1 although nothing was trained" in said


def test_a_models_own_dropout(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' attention dropout, which a forgotten ``train()`` switches on."""
    from rlhf_kit_hf import full

    original = full.FullRole.__init__

    def init(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        original(self, model.train(), *args, **kwargs)

    monkeypatch.setattr(full.FullRole, "__init__", init)
    checks = ("reference", "sampled", "ratio", "padding", "repeatable")
    refused(quick(tmp_path / "project", toy_model, "full"), tmp_path / "run", *checks)


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
@pytest.mark.parametrize("fault", ["padding", "temperature"])
def test_sampling_from_something_else(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, fault: str
) -> None:
    """Tokens drawn while looking at the padding, or at another temperature than they are scored."""
    from rlhf_kit_hf import decode

    step, sample = decode._step, decode.sample_tokens

    def looking(model: Any, tokens: Tensor, mask: Tensor, *args: Any) -> Tensor:
        return step(model, tokens, torch.ones_like(mask), *args)

    def colder(logits: Tensor, temperature: float, draws: Tensor) -> Any:
        return sample(logits, 0.7 * temperature, draws)

    if fault == "padding":
        monkeypatch.setattr(decode, "_step", looking)
    else:
        monkeypatch.setattr(decode, "sample_tokens", colder)
    said = refused(quick(tmp_path / "project", toy_model, memory), tmp_path / "run", "sampled")
    assert "the policy is not scored on what it samples" in said


REWARDS = {
    # Scores that depend on the company: what is left of a row alone is 0.
    "normalised": """
def reward(responses):
    scores = [float(len(set(text))) for text in responses]
    mean = sum(scores) / len(scores)
    return [s - mean for s in scores]
""",
    # One score has no deviation: what the reward says of a row alone is NaN.
    "standardised": """
import torch

def reward(responses):
    scores = torch.tensor([float(len(set(text))) for text in responses])
    return (scores - scores.mean()) / (scores.std() + 1e-8)
""",
    # The padding of a response is counted as its tokens.
    "padding": """
def reward(samples):
    return samples.response_tokens.float().mean(1) / 100
""",
    # The width of the batch is in the score.
    "width": """
def reward(samples):
    return samples.response_mask.float().mean(1)
""",
    # The padding of the prompt is read.
    "prompt": """
def reward(samples):
    return samples.prompts.tokens.float().mean(1) / 100
""",
}


@pytest.mark.parametrize("name", list(REWARDS))
def test_reward(toy_model: Path, tmp_path: Path, name: str) -> None:
    recipe = quick(tmp_path / "project", toy_model, reward=REWARDS[name])
    said = refused(recipe, tmp_path / "run", "reward")
    assert "a score changes with padding or with the other rows of its batch" in said


def test_a_random_reward(toy_model: Path, tmp_path: Path) -> None:
    """No two calls agree, whatever is compared."""
    reward = (
        "import random\ndef reward(responses):\n    return [random.random() for _ in responses]"
    )
    recipe = quick(tmp_path / "project", toy_model, reward=reward)
    said = refused(recipe, tmp_path / "run", "reward", "repeatable")
    assert "dropout is on, or a reward is random" in said


def test_padding(
    toy_models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned positions counted over the padding: a row means something else in another batch."""

    def from_the_left(mask: Tensor) -> Tensor:
        return torch.arange(mask.shape[1])[None].expand_as(mask)

    monkeypatch.setattr("rlhf_kit_hf.role.position_ids", from_the_left)
    recipe = quick(tmp_path / "project", toy_models("gpt2"), "full")
    said = refused(recipe, tmp_path / "run", "sampled", "ratio", "padding")
    assert "log-probabilities or values change with the padding" in said


def test_a_mask_that_is_not_applied(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention to what stands in the padding."""
    from rlhf_kit_hf import full
    from rlhf_kit_hf.role import run_decoder

    def unmasked(decoder: Any, mask: Tensor, positions: Any, **fed: Tensor) -> Tensor:
        return run_decoder(decoder, torch.ones_like(mask), positions, **fed)

    monkeypatch.setattr(full, "run_decoder", unmasked)
    checks = ("sampled", "ratio", "padding")
    refused(quick(tmp_path / "project", toy_model, "full"), tmp_path / "run", *checks)


@pytest.mark.parametrize("memory", ["full", "hydra"])
def test_end(
    toy_models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
) -> None:
    """A head that can never choose the end token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(toy_models("llama"), dtype=torch.float32).eval()
    head, end = model.get_output_embeddings(), model.config.eos_token_id
    bias = torch.zeros(head.out_features)
    bias[end] = -1e4
    head.bias = torch.nn.Parameter(bias)
    # A Llama's folder has no place for a bias.
    source = "rlhf_kit_hf.sources.PretrainedSource.load"
    monkeypatch.setattr(source, lambda self, dtype: copy.deepcopy(model))
    recipe = quick(tmp_path / "project", toy_models("llama"), memory)
    said = refused(recipe, tmp_path / "run", "end")
    assert "end: 0, should be at least 1e-06" in said
    assert f"an end token ({end}) at any place tried" in said


def test_tokenizers(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading and writing adds a word: a reward would see other tokens than were sampled."""
    original = ChatTokenizer.decode
    monkeypatch.setattr(
        ChatTokenizer, "decode", lambda self, tokens: original(self, tokens) + " well"
    )
    said = refused(quick(tmp_path / "project", toy_model), tmp_path / "run", "tokenizers")
    assert "responses whose text changes when a tokenizer reads and writes it, such as '" in said


def test_several_faults_are_told_together(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ChatTokenizer.decode
    monkeypatch.setattr(
        ChatTokenizer, "decode", lambda self, tokens: original(self, tokens) + " well"
    )
    recipe = quick(tmp_path / "project", toy_model, reward=REWARDS["width"])
    refused(recipe, tmp_path / "run", "reward", "tokenizers")


# ---------------------------------------------------------------- what it looks at


def setup_of(context: Any, **changes: Any) -> Setup:
    strategy = context.memory()
    policy, reference = strategy.policy(None), strategy.reference(None)
    samples = respond(policy, prompts(context.tokenizer), 6, key=4)

    def reward(seen: Any) -> Tensor:
        return torch.tensor([float(len(text)) for text in seen.responses])

    setup = Setup(policy, reference, None, reward, context.tokenizer, samples, True, 2)
    return replace(setup, **changes)


def test_what_has_no_score_is_not_said_to_have_passed(context_of: Any) -> None:
    """A judge that drops everything leaves nothing to compare; the policy is compared still."""

    def drops(seen: Any) -> PartialScores:
        return PartialScores(torch.zeros(len(seen)), torch.zeros(len(seen), dtype=torch.bool))

    found = {f.name: f for f in check_setup(setup_of(context_of("full"), reward=drops), ["end"])}
    assert found["reward"].measured is found["repeatable/reward"].measured is None
    assert str(found["reward"]).startswith("reward not checked: the reward has no score for any")
    assert found["repeatable"].measured == 0.0
    known = {f.name: f for f in check_setup(setup_of(context_of("full")), ["end"])}
    assert known["reward"].measured == 0.0 and "repeatable/reward" not in known


def test_what_is_not_finite_fails(context_of: Any) -> None:
    """A comparison with NaN is false either way round; it must count as a failure."""
    setup = setup_of(context_of("full"))
    with torch.no_grad():
        for p in setup.policy.parameters():
            p.fill_(float("nan"))
    with pytest.raises(NumericsError) as caught:
        check_setup(setup, ["reward", "tokenizers", "end"])
    for name in ("reference", "ratio", "padding", "repeatable"):
        assert f"{name}: nan, should be at most" in str(caught.value)


def test_values_are_looked_at(context_of: Any) -> None:
    """A critic that reads the padding fails where the policy is right."""

    class Wide:
        def __call__(self, states: Tensor, samples: Any) -> Tensor:
            return states.float().mean(-1) + states.shape[1]

    setup = setup_of(context_of("full"), value=Wide())
    with pytest.raises(NumericsError, match=r"padding: [\d.]+, should be") as caught:
        check_setup(setup, [])
    assert "gate.skip: [padding]" in str(caught.value)


class Learned:
    """A reward with a model of its own, as it says itself."""

    def __init__(self, tokenizer: Any, dtype: torch.dtype | None) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype

    def __call__(self, seen: Any) -> Tensor:
        return torch.tensor([float(len(text)) for text in seen.responses])


class Alone:
    """Made of one reward."""

    def __init__(self, reward: Any) -> None:
        self.parts = {"only": reward}

    def components(self, samples: Any) -> dict[str, Tensor]:
        return {"only": self.parts["only"](samples)}

    def combine(self, components: Any) -> Tensor:
        return components["only"]

    def __call__(self, samples: Any) -> Tensor:
        return self.combine(self.components(samples))


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_reward_computes_with_is_looked_at(context_of: Any, nested: bool) -> None:
    context = context_of("full")

    def found(tokenizer: Any, dtype: torch.dtype | None) -> dict[str, Any]:
        reward: Any = Learned(tokenizer, dtype)
        setup = setup_of(context, reward=Alone(Alone(reward)) if nested else reward)
        return {finding.name: finding for finding in check_setup(setup, [])}

    exact, half = found(context.tokenizer, None), found(context.tokenizer, torch.bfloat16)
    assert half["reward"].allowed == pytest.approx(100 * exact["reward"].allowed)
    with pytest.raises(NumericsError, match=r"tokenizers: 4, should be at most 1: responses whose"):
        found(Lossy(context.tokenizer), torch.float32)
    # A tokenizer of another library is none that the gate could ask.
    assert found(context.tokenizer.hf, None).keys() == exact.keys()


class Lossy:
    """Cuts the last character of what it reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        return self._tokenizer.response(text[:-1], finished=finished)


@pytest.mark.parametrize("memory", ["full", "hydra"])
def test_widened_rows_say_the_same(context_of: Any, memory: str) -> None:
    """More padding on both sides, all of it garbage; the valid tokens, in order, are the same."""
    samples = setup_of(context_of(memory)).samples
    wide = widened(samples, 2, 3)
    before, after = samples.prompts, wide.prompts
    assert wide.tokens.shape[1] == samples.tokens.shape[1] + 5
    for i in range(len(samples)):
        assert before.tokens[i][before.mask[i]].tolist() == after.tokens[i][after.mask[i]].tolist()
        old_mask, new_mask = samples.response_mask[i], wide.response_mask[i]
        assert samples.response_tokens[i][old_mask].tolist() == (
            wide.response_tokens[i][new_mask].tolist()
        )
    assert wide.responses == samples.responses
    assert not bool(before.mask.all())
    assert not bool(samples.response_mask.all())
    kept = wide.response_tokens[:, : samples.response_tokens.shape[1]]
    assert not torch.equal(kept, samples.response_tokens)
    assert not torch.equal(after.tokens[:, 2:], before.tokens)
    if samples.trunk is not None:
        assert wide.trunk is not None
        assert wide.trunk.rows == samples.trunk.rows


def test_every_check_can_be_skipped() -> None:
    """The names that a recipe may write are the names of checks."""
    from rlhf_kit_policy_gradient import gate as module

    assert set(CHECKS) <= set(module._CHECKS)
    ppo_options(gate={"skip": list(CHECKS)})
    with pytest.raises(ValueError, match="skip"):
        ppo_options(gate={"skip": ["padings"]})
