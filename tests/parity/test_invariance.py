"""What must not matter: the size of micro-batches, the order of rows, padding and what is in it.

Every loss, advantage estimator and normaliser that is registered is tried, with each value of each
of its options, found through the registry: a new one is tested without being named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from rlhf_kit_engines.options import SingleOptions
from rlhf_kit_engines.single import Single
from rlhf_kit_instructgpt.losses import TokenNLL
from rlhf_kit_instructgpt.options import NoOptions
from rlhf_kit_policy_gradient.control import FixedKL, FixedPtx, KLLimit
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.gae import GAE
from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip
from rlhf_kit_policy_gradient.options import (
    ClipOptions,
    FixedKLOptions,
    FixedPtxOptions,
    GAEOptions,
    LinearValueOptions,
)
from rlhf_kit_policy_gradient.parts import CriticPart, PPOParts, PtxPart
from rlhf_kit_policy_gradient.ppo import PPOPtx
from rlhf_kit_policy_gradient.steering import Beta, Gamma
from rlhf_kit_policy_gradient.value import LinearValue
from torch import Tensor
from torch.nn import Parameter
from toys import ANSWERS, prompts, respond, texts

from rlhf_kit.components import Component
from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.engine.world import OneProcess
from rlhf_kit.plugins import load_plugins
from rlhf_kit.testing import (
    TabularPolicy,
    TabularSampler,
    build,
    check_advantage,
    check_nll_loss,
    check_normalizer,
    check_policy_loss,
    check_preference_loss,
    check_value_loss,
    hollow_part,
)
from rlhf_kit.types import (
    ComparisonBatch,
    NllInputs,
    PackedTexts,
    PolicyLossInputs,
    PPOBatch,
    PreferenceInputs,
    Prompts,
    Sampling,
    TextBatch,
    ValueLossInputs,
)

CHECKS: dict[str, Callable[..., None]] = {
    "policy_loss": check_policy_loss,
    "value_loss": check_value_loss,
    "nll_loss": check_nll_loss,
    "preference_loss": check_preference_loss,
    "advantage": check_advantage,
    "normalizer": check_normalizer,
}
OWN = [c for package, _, c in load_plugins().components if package == "rlhf-kit"]
COVERED = [c for c in OWN if c.seam in CHECKS]
LOSSES = [c for c in COVERED if c.seam.endswith("_loss")]


def variants(component: Component) -> list[dict[str, Any]]:
    """The defaults, and each option with other values than its default."""
    found: list[dict[str, Any]] = [{}]
    for name, field in component.options.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is Literal:
            candidates = list(get_args(kind))
        else:
            candidates = [True, False] if kind is bool else [0.5, 2.0, 2]
        others = [{name: x} for x in candidates if x != field.default and valid(component, name, x)]
        assert others, f"{component.name}.{name}: variants() cannot think of another value for it"
        found += others
    return found


def valid(component: Component, name: str, value: Any) -> bool:
    try:
        component.options(**{name: value})
    except ValidationError:
        return False
    return True


def each(components: Sequence[Component]) -> Any:
    """A test for each component with each of its options."""
    cases = [(c, options) for c in components for options in variants(c)]
    ids = [f"{c.seam}-{c.name}-{options or 'defaults'}" for c, options in cases]
    return pytest.mark.parametrize(("component", "options"), cases, ids=ids)


def test_no_loss_is_left_out() -> None:
    """A seam of losses that is new needs a check in the kit, and a place in these tests."""
    assert {c.seam for c in OWN if "loss" in c.seam} == {c.seam for c in LOSSES} == set(BATCHES)
    assert {"pairwise", "ppo_clip", "sequence_nll"} <= {c.name for c in LOSSES}
    assert {c.seam for c in COVERED} == set(CHECKS)


@each(COVERED)
def test_rows_padding_and_garbage_do_not_matter(
    component: Component, options: dict[str, Any]
) -> None:
    """Other rows, longer padding, 1e9 and NaN in it: all of it is in the kit's check."""
    for seed in (0, 1):
        needs = {"needs": component.needs} if component.needs else {}
        CHECKS[component.seam](build(component, **options), seed=seed, **needs)


class Recorder(Optimizer):
    """Keeps the gradient of the step, and with rate 0 takes a step of no length."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__([ParameterGroup(parameters, 0.0)], max_gradient_norm=None)

    def step(self) -> float:
        self.gradients = [None if p.grad is None else p.grad.clone() for p in self._model]
        return super().step()


@dataclass
class Batch:
    """Rows to learn from, and a small model whose answer the loss reads."""

    rows: Any
    parameters: list[Parameter]
    forward: Callable[[Any], Any]
    counted: Callable[[Any], Any]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rollout(policy: TabularPolicy) -> PPOBatch:
    """Ten responses of one to three tokens, sampled by a policy that is a little off."""
    one = torch.zeros((10, 1), dtype=torch.long)
    asked = Prompts(one, one.bool(), [{"prompt": ""}] * 10, torch.arange(10), torch.arange(10))
    samples = TabularSampler()(policy, asked, Sampling(3, 1.0, 3))
    assert len(samples.mask.sum(1).unique()) == 3
    old, reference, advantages, values, returns = drawn(1, 5, *samples.mask.shape)
    with torch.no_grad():
        old = policy.evaluate(samples).logprobs + 0.3 * old
    reference = old + 0.1 * reference
    return PPOBatch(samples, old, reference, values, advantages, returns, samples.mask)


def policy_batch() -> Batch:
    policy = TabularPolicy()

    def forward(batch: PPOBatch) -> PolicyLossInputs:
        logprobs = policy.evaluate(batch.samples).logprobs
        return PolicyLossInputs(
            logprobs,
            batch.logprobs,
            batch.advantages,
            batch.mask,
            batch.reference_logprobs,
            batch.logprobs,
            batch.samples.group,
        )

    return Batch(rollout(policy), list(policy.parameters()), forward, lambda batch: batch.sampled)


def value_batch() -> Batch:
    policy = TabularPolicy()
    table = Parameter(drawn(2, policy.hidden_size))

    def forward(batch: PPOBatch) -> ValueLossInputs:
        values = policy.evaluate(batch.samples).states @ table
        return ValueLossInputs(values, batch.values, batch.returns, batch.places)

    return Batch(rollout(policy), [table], forward, lambda batch: batch.valued)


def nll_batch() -> Batch:
    policy, rows = TabularPolicy(), 10
    mask = torch.arange(6) < torch.tensor([2, 6, 3, 3, 5, 6, 2, 4, 6, 1])[:, None]
    tokens = (drawn(4, rows, 6) * 10).long().abs() % 3

    def forward(batch: TextBatch) -> NllInputs:
        return NllInputs(policy.next_token_logprobs(batch), batch.predicted)

    target = mask & (torch.arange(6) >= torch.arange(rows)[:, None] % 3)
    texts = TextBatch(tokens, mask, target)
    return Batch(texts, list(policy.parameters()), forward, lambda texts: texts.targets)


def preference_batch() -> Batch:
    """Two to four completions for each of ten prompts, with ties and completions without a rank."""
    table = Parameter(drawn(5, 7))
    generator = torch.Generator().manual_seed(6)
    counts = torch.randint(2, 5, (10,), generator=generator).tolist()
    mask = torch.arange(4) < torch.tensor(counts)[:, None]
    ranks = torch.randint(-1, 3, (10, 4), generator=generator)
    ranks[4] = 0  # nothing but ties
    completions = [
        [torch.randint(0, 7, (1 + k,), generator=generator).tolist() for k in range(count)]
        for count in counts
    ]
    packed = PackedTexts.of([[1, 2]] * 10, completions, pad=0)

    def forward(batch: ComparisonBatch) -> PreferenceInputs:
        scores = (batch.texts.places() * table[batch.texts.tokens][:, None]).sum(2)  # [G, K]
        return PreferenceInputs(scores, batch.ranks, batch.mask)

    return Batch(ComparisonBatch(packed, ranks, mask), [table], forward, lambda batch: batch.ranked)


BATCHES = {
    "policy_loss": policy_batch,
    "value_loss": value_batch,
    "nll_loss": nll_batch,
    "preference_loss": preference_batch,
}


@each(LOSSES)
def test_micro_batches_do_not_change_the_gradient(
    component: Component, options: dict[str, Any]
) -> None:
    """Of a step by the engine, relative to the largest entry, in float32."""
    loss = build(component, **options)
    found = {}
    for size in (1, 3, 10):
        batch = BATCHES[component.seam]()
        recorder = Recorder(batch.parameters)
        with accumulating(recorder) as step:
            step.add(
                {"it": Term(loss, batch.counted, 0.7)},
                lambda rows, batch=batch: {"it": batch.forward(rows)},
                list(batch.rows.split(size)),
            )
        found[size] = recorder.gradients[0], step.stats["it/loss"]
    whole, mean = found[10]
    assert whole.abs().max() > 1e-3
    for size in (1, 3):
        gradient, same_mean = found[size]
        assert (gradient - whole).abs().max() <= 1e-6 * whole.abs().max()
        assert same_mean == pytest.approx(mean, rel=1e-5)


def ppo(micro: int, policy: Any, value: LinearValue, blocks: TextBatch) -> PPOPtx:
    """PPO-ptx over a transformers model, whose steps have no length; nobody asks the reference."""
    component = next(c for c in OWN if (c.seam, c.name) == ("stage", "ppo_ptx"))
    chosen: Any = hollow_part(component, micro_batch=micro, kl={"place": "loss"}).options
    blocks_of: Any = SimpleNamespace(next=lambda episodes: list(blocks.split(micro)))
    unread: Any = None  # nothing is sampled
    parts = PPOParts(
        policy=policy,
        reference=policy,
        sampler=unread,
        prompts=unread,
        endings=unread,
        reward=lambda samples: torch.zeros(len(samples)),
        advantage=GAE(GAEOptions()),
        policy_loss=PPOClip(ClipOptions()),
        engine=Single(SingleOptions()),
        optimizer=Recorder([*policy.parameters(), *value.parameters()]),
        beta=Beta(0.4, FixedKL(FixedKLOptions()), KLLimit(chosen.kl), OneProcess()),
        normalizers=Normalizers(),
        critic=CriticPart(value, ClippedValue(ClipOptions()), 0.3),
        ptx=PtxPart(blocks_of, TokenNLL(NoOptions()), Gamma(1.7, FixedPtx(FixedPtxOptions()))),
    )
    return PPOPtx(parts, chosen)


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_micro_batches_do_not_change_a_step_of_ppo(
    context_of: Callable[..., Any], memory: str
) -> None:
    """All four terms through a transformers model: policy, KL, value, pretraining."""
    context = context_of(memory)
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer).repeat(2)
    samples = respond(policy, asked, 8, key=5)
    assert len(samples.mask.sum(1).unique()) > 2
    value = LinearValue(LinearValueOptions())
    value.attach(policy)
    with torch.no_grad():
        # Away from where it sampled; and LoRA's first factor has no gradient at the start.
        for i, parameter in enumerate([*policy.parameters(), *value.parameters()]):
            parameter += 0.02 * drawn(i, *parameter.shape)
        old, advantages, values, returns = drawn(1, 4, *samples.mask.shape)
        old = policy.evaluate(samples).logprobs + 0.2 * old
    batch = PPOBatch(samples, old, old, values, advantages, returns, samples.mask)
    blocks = texts(context.tokenizer, *ANSWERS)
    found = {}
    for micro in (1, 3, len(samples)):
        algorithm = ppo(micro, policy, value, blocks)
        stats = algorithm.learn(batch)
        assert {"policy/loss", "kl/loss", "value/loss", "ptx/loss"} <= stats.keys()
        found[micro] = algorithm.parts.optimizer.gradients
    whole = found[len(samples)]
    assert all(gradient.abs().max() > 0 for gradient in whole)
    for micro in (1, 3):
        # A single small matrix may be off by a little more than all of them together.
        for gradient, wanted in zip(found[micro], whole, strict=True):
            assert distance([gradient], [wanted]) <= 1e-5
        # A micro-batch is as wide as its longest row: other shapes, other float32 roundings.
        assert distance(found[micro], whole) <= 3e-6


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The norm of the difference over that of ``wanted``."""
    there, here = (torch.cat([x.flatten().double() for x in xs]) for xs in (found, wanted))
    return ((there - here).norm() / here.norm()).item()
