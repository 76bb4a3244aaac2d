"""Supervised fine-tuning: what a batch holds, which epoch is kept, and residual dropout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.dropout import add_residual_dropout
from rlhf_kit_hf.policy import TransformersPolicy
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_runs import metrics, one_stage, run, run_in_two, summary
from toys import ANSWERS, texts

from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.errors import RecipeError
from rlhf_kit.types import TextBatch

TRAIN = 8  # demonstrations of the toy recipe's train split


def sft(folder: Path, model: Path, memory: str = "hydra", **options: Any) -> Path:
    return one_stage(folder, model, "sft", memory, **options)


@dataclass
class Step:
    """What one optimizer step learned from, and its gradient before clipping."""

    demonstrations: list[tuple[int, ...]] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    batches: list[TextBatch] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Every step that is taken while the test runs."""
    seen = [Step()]
    forward, step = TransformersPolicy.next_token_logprobs, Optimizer.step

    def watched_forward(self: Any, batch: TextBatch) -> Tensor:
        if torch.is_grad_enabled():
            seen[-1].batches.append(batch)
            for tokens, mask, target in zip(batch.tokens, batch.mask, batch.target, strict=True):
                # A prompt comes before the target of a demonstration; in text all but one count.
                kind = "blocks" if bool(target[1]) else "demonstrations"
                getattr(seen[-1], kind).append(tuple(tokens[mask].tolist()))
        return forward(self, batch)

    def watched_step(self: Any) -> float:
        seen[-1].gradient = [p.grad.clone() for p in self._model]
        seen.append(Step())
        return step(self)

    monkeypatch.setattr(TransformersPolicy, "next_token_logprobs", watched_forward)
    monkeypatch.setattr(Optimizer, "step", watched_step)
    yield seen


def sizes(steps: list[Step]) -> list[tuple[int, int]]:
    return [(len(step.demonstrations), len(step.blocks)) for step in steps[:-1]]


# ---------------------------------------------------------------- what a batch holds


@pytest.mark.parametrize("micro_batch", [2, 16])
def test_an_epoch_sees_every_row_once(
    toy_model: Path, tmp_path: Path, steps: list[Step], micro_batch: int
) -> None:
    """The last batch of a pass is short: 3 + 3 + 2, and so again."""
    recipe = sft(tmp_path / "project", toy_model, epochs=3, batch_size=3, micro_batch=micro_batch)
    run(recipe, tmp_path / "run")
    assert sizes(steps) == [(3, 0), (3, 0), (2, 0)] * 3
    epochs = [
        [row for step in steps[begin : begin + 3] for row in step.demonstrations]
        for begin in (0, 3, 6)
    ]
    for rows in epochs:
        assert len(set(rows)) == len(rows) == TRAIN
        assert set(rows) == set(epochs[0])
    assert len({tuple(rows) for rows in epochs}) == 3  # in an order of its own
    rows = metrics(tmp_path / "run")
    assert [step for step, row in enumerate(rows) if "validation/loss" in row] == [2, 5, 8]


MIX = {"pretraining": "pretraining", "pretraining_length": 24}


@pytest.mark.parametrize(
    ("batch_size", "fraction", "wanted"),
    [
        (4, 0.25, [(3, 1), (3, 1), (2, 1)]),
        (8, 0.5, [(4, 4), (4, 4)]),
        (10, 0.2, [(8, 2)]),
        (5, 0.4, [(3, 2), (3, 2), (2, 1)]),
    ],
)
def test_a_mix_has_its_share_of_every_batch(
    toy_model: Path,
    tmp_path: Path,
    steps: list[Step],
    batch_size: int,
    fraction: float,
    wanted: list[tuple[int, int]],
) -> None:
    """`batch_size` counts both; a short batch has less text, in proportion."""
    options = MIX | {"batch_size": batch_size, "pretraining_fraction": fraction, "epochs": 2}
    run(sft(tmp_path / "project", toy_model, micro_batch=2, **options), tmp_path / "run")
    assert sizes(steps) == wanted * 2
    half = len(wanted)
    for part in (steps[:half], steps[half : 2 * half]):
        rows = [row for step in part for row in step.demonstrations]
        assert len(set(rows)) == len(rows) == TRAIN
    blocks = [row for step in steps for row in step.blocks]
    assert all(len(block) == 24 for block in blocks)
    assert max(Counter(blocks).values()) == 1  # there is more text than this takes
    assert {row["step"] for row in metrics(tmp_path / "run")} == set(range(2 * half))
    assert "validation/perplexity" in metrics(tmp_path / "run")[-1]


@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradient_is_of_the_mean_over_all_tokens(
    toy_model: Path, tmp_path: Path, steps: list[Step], context_of: Any, mixed: bool
) -> None:
    """Response tokens and running text are counted alike, whatever micro-batch they are in."""
    mix: dict[str, Any] = MIX | {"pretraining_fraction": 0.4} if mixed else {}
    recipe = sft(tmp_path / "project", toy_model, batch_size=5, micro_batch=2, **mix)
    run(recipe, tmp_path / "run")
    first = steps[0]
    assert len(first.batches) > 2
    policy = context_of("hydra").memory().policy(None)
    total, count = torch.zeros(()), 0
    for batch in first.batches:
        total = total - policy.next_token_logprobs(batch).sum()
        count += int((batch.target & batch.mask)[:, 1:].sum())
    wanted = torch.autograd.grad(total / count, list(policy.parameters()))
    scale = max(g.abs().max().item() for g in wanted)
    for found, expected in zip(first.gradient, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * scale)
    loss = metrics(tmp_path / "run")[0]["sft/loss"]
    assert loss == pytest.approx((total / count).item(), rel=1e-5)


# ---------------------------------------------------------------- which epoch is kept

RIGGED = """
calls = []

def reward(responses):
    calls.append(1)
    return [{scores}[len(calls) - 1]] * len(responses)
"""


def rigged(*scores: float) -> str:
    """A reward that says these numbers in turn, after one for the trial before any training."""
    return RIGGED.format(scores=[0.0, *scores])


JUDGED = {
    "batch_size": 4,
    "select_by": {"use": "python", "path": "reward.py"},
    "sampling": {"max_new_tokens": 4, "batch_size": 16},
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
}


def same_weights(a: Path, b: Path, name: str = "branch.safetensors") -> bool:
    one, other = load_file(a / name), load_file(b / name)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_epoch_with_the_best_score_is_kept(toy_model: Path, tmp_path: Path) -> None:
    """The second of four, although the loss falls on: the weights are those of two epochs."""
    recipe = sft(
        tmp_path / "four", toy_model, epochs=4, reward=rigged(1.0, 2.0, 5.0, 4.0, 3.0), **JUDGED
    )
    kept = run(recipe, tmp_path / "run")
    two = sft(tmp_path / "two", toy_model, epochs=2, reward=rigged(1.0, 2.0, 5.0), **JUDGED)
    assert same_weights(kept, run(two, tmp_path / "short"))
    rows = [row for row in metrics(tmp_path / "run") if "validation/loss" in row]
    assert [row["validation/score"] for row in rows] == [2.0, 5.0, 4.0, 3.0]
    losses = [row["validation/loss"] for row in rows]
    assert min(losses) != losses[1]
    said = summary(tmp_path / "run")["stages"]["sft"]
    assert said == {"validation_score": {"start": 1.0, "best": 5.0}}


def test_without_a_reward_the_lowest_loss_is_kept(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that is too high: the second epoch is worse than the first, which is saved.

    Also after an interrupt in the second one.
    """
    options = {"learning_rate": 0.2, "schedule": "constant"}
    recipe = sft(tmp_path / "one", toy_model, epochs=2, optimizer=options)
    kept = run(recipe, tmp_path / "run")
    losses = [r["validation/loss"] for r in metrics(tmp_path / "run") if "validation/loss" in r]
    said = summary(tmp_path / "run")["stages"]["sft"]["validation_loss"]
    assert said["best"] == min(said["start"], *losses) < losses[-1]
    assert same_weights(run_in_two(recipe, tmp_path / "parts", 3, monkeypatch), kept)
    assert summary(tmp_path / "parts") == summary(tmp_path / "run")
    # Who starts from the folder starts there.
    run(sft(tmp_path / "two", toy_model, **{"from": str(kept)}), tmp_path / "next")
    following = summary(tmp_path / "next")["stages"]["sft"]["validation_loss"]
    assert following["start"] == pytest.approx(said["best"], rel=1e-6)


def test_the_score_is_a_mean_over_the_chosen_prompts(toy_model: Path, tmp_path: Path) -> None:
    """Two validation prompts, answered one by one or together, or only the first of them."""
    reward = """
def reward(responses, prompts):
    return [1.0 if "lamp" in prompt or "hill" in prompt else 0.0 for prompt in prompts]
"""
    prompts: dict[str, float] = {}
    for name, size, count in (("one", 1, 64), ("both", 16, 64), ("first", 16, 1)):
        changes = {"sampling": {"max_new_tokens": 4, "batch_size": size}, "select_prompts": count}
        recipe = sft(tmp_path / name, toy_model, reward=reward, epochs=1, **JUDGED | changes)
        run(recipe, tmp_path / f"run-{name}")
        said = summary(tmp_path / f"run-{name}")["stages"]["sft"]
        prompts[name] = said["validation_score"]["start"]
    # The validation demonstrations are of the words moon and hill, in this order.
    assert prompts == {"one": 0.5, "both": 0.5, "first": 0.0}


# ---------------------------------------------------------------- residual dropout


class Layer(nn.Module):
    """A decoder layer in small: attention answers with a tuple, as in transformers."""

    class Attention(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return super().forward(x), None

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = self.Attention(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(x)[0]
        return x + self.mlp(x)


def test_dropout_equals_one_made_by_hand() -> None:
    torch.manual_seed(3)
    layer, x = Layer(), torch.randn(5, 7, 16)
    torch.manual_seed(4)
    h = x + torch.nn.functional.dropout(layer.self_attn(x)[0], 0.2)
    wanted = h + torch.nn.functional.dropout(layer.mlp(h), 0.2)
    add_residual_dropout([layer], 0.2)
    layer.eval()  # models here never leave evaluation mode
    torch.manual_seed(4)
    assert torch.equal(layer(x), wanted)


def test_dropout_keeps_the_mean() -> None:
    """What stays is divided by the share that stays."""
    torch.manual_seed(3)
    layer, x = Layer(), torch.randn(1, 16)
    nn.init.zeros_(layer.mlp.weight)
    nn.init.zeros_(layer.mlp.bias)
    plain = layer(x).detach()
    add_residual_dropout([layer], 0.2)
    many = layer(x.expand(20_000, 16)).detach()
    added = plain - x
    spread = (added.abs() * math.sqrt(0.2 / 0.8) / math.sqrt(20_000)).squeeze()
    assert ((many.mean(0) - plain.squeeze()).abs() < 5 * spread + 1e-5).all()
    dropped = (many == x).float().mean().item()
    assert dropped == pytest.approx(0.2, abs=0.01)


def test_dropout_is_for_passes_with_gradients() -> None:
    torch.manual_seed(3)
    layer, x = Layer(), torch.randn(5, 16)
    plain = layer(x)
    add_residual_dropout([layer], 0.5)
    with torch.no_grad():
        assert torch.equal(layer(x), plain)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain)
    assert not torch.equal(layer(x), plain)


class Unknown(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "names", [(), ("self_attn",), ("mixer", "mlp"), ("self_attn", "attn", "mlp")]
)
def test_dropout_refuses_layers_it_cannot_read(names: tuple[str, ...]) -> None:
    """One branch without the other would be half of what the recipe says, in silence."""
    with pytest.raises(RecipeError, match=r"residual_dropout: Unknown has no .* set it to 0"):
        add_residual_dropout([Unknown("self_attn", "mlp"), Unknown(*names)], 0.2)


FAMILIES = [
    (memory, kind)
    for memory in ("full", "lora", "hydra")
    for kind in ("llama", "qwen3", "neox", "gpt2")
    if (memory, kind) != ("hydra", "gpt2")  # which hydra refuses
]


@pytest.mark.parametrize(("memory", "kind"), FAMILIES)
def test_dropout_in_every_family(context_of: Callable[..., Any], memory: str, kind: str) -> None:
    """A number of the residual stream passes a layer unchanged when both branches drop theirs: a

    quarter of them at 0.5. Nothing else is touched, and nothing in passes without gradients.
    """
    context = context_of(memory, kind)
    batch = texts(context.tokenizer, *ANSWERS)
    plain = context.memory().policy(None)
    policy = context.memory().policy(None, residual_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(policy.next_token_logprobs(batch), plain.next_token_logprobs(batch))
    unchanged: list[float] = []

    def watch(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if isinstance(output, Tensor) else output[0]
        valid = batch.mask
        unchanged.append((before == after)[valid].float().mean().item())

    for layer in policy.role.layers:
        layer.register_forward_hook(watch, with_kwargs=True)
    first = policy.next_token_logprobs(batch)
    assert len(unchanged) == (2 if memory == "hydra" else 4)
    assert unchanged == pytest.approx([0.25] * len(unchanged), abs=0.03)
    assert not torch.equal(first, policy.next_token_logprobs(batch))
    assert torch.equal(plain.next_token_logprobs(batch), plain.next_token_logprobs(batch))


def test_dropout_in_training(toy_model: Path, tmp_path: Path) -> None:
    """It changes what is learned; the loss on the validation split is measured without it."""
    recipe = sft(tmp_path / "project", toy_model, batch_size=4)
    for name, rate in (("none", 0.0), ("some", 0.3)):
        run(recipe, tmp_path / name, f"sft.residual_dropout={rate}")
    none, some = metrics(tmp_path / "none"), metrics(tmp_path / "some")
    assert none[0]["sft/loss"] != some[0]["sft/loss"]
    starts = [
        summary(tmp_path / name)["stages"]["sft"]["validation_loss"]["start"]
        for name in ("none", "some")
    ]
    assert starts[0] == starts[1]
    run(recipe, tmp_path / "default")
    assert metrics(tmp_path / "default") == none


# ---------------------------------------------------------------- an interrupt


@pytest.mark.parametrize("memory", ["hydra", "lora"])
def test_going_on_in_the_middle_of_an_epoch(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """With a mix, a selection and dropout: all that is drawn at random is drawn as without."""
    options = JUDGED | MIX | {"epochs": 2, "pretraining_fraction": 0.25, "residual_dropout": 0.1}
    recipe = sft(tmp_path / "project", toy_model, memory, **options)
    whole = run(recipe, tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) == 6
    for step in (1, 4):
        out = tmp_path / f"parts{step}"
        parts = run_in_two(recipe, out, step, monkeypatch)
        assert metrics(out) == metrics(tmp_path / "whole")
        assert summary(out) == summary(tmp_path / "whole")
        name = "adapter_model.safetensors" if memory == "lora" else "branch.safetensors"
        assert same_weights(parts, whole, name)
