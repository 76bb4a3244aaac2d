"""The toys of the testing kit are what they say: exact, enumerable, and a whole Policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rlhf_kit.testing
from rlhf_kit.interfaces import Policy
from rlhf_kit.testing import TabularPolicy, TabularSampler, enumerate_responses, made_up_samples
from rlhf_kit.types import Prompts, Sampling, TextBatch


def prompts(rows: int) -> Prompts:
    one = torch.zeros((rows, 1), dtype=torch.long)
    return Prompts(one, one.bool(), [{"prompt": ""}] * rows, torch.arange(rows), torch.arange(rows))


def test_every_public_name_can_be_imported() -> None:
    for name in rlhf_kit.testing.__all__:
        assert getattr(rlhf_kit.testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'chek_loss'"):
        rlhf_kit.testing.chek_loss  # noqa: B018


@pytest.mark.parametrize(("vocabulary", "length", "count"), [(3, 3, 15), (2, 4, 5), (4, 2, 13)])
def test_enumeration(vocabulary: int, length: int, count: int) -> None:
    tokens, mask = enumerate_responses(vocabulary, length, vocabulary - 1)
    rows = [tuple(t[m].tolist()) for t, m in zip(tokens, mask, strict=True)]
    assert len(rows) == len(set(rows)) == count
    assert all(vocabulary - 1 not in row[:-1] for row in rows)
    assert all(len(row) == length or row[-1] == vocabulary - 1 for row in rows)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_come_with_their_probabilities(temperature: float) -> None:
    policy: Policy = TabularPolicy(dtype=torch.float64)
    assert isinstance(policy, TabularPolicy)
    everything = policy.all_samples(temperature)
    probability = policy.evaluate(everything).logprobs.sum(1).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-14)
    count = 20_000
    samples = TabularSampler()(policy, prompts(count), Sampling(3, temperature, key=0))
    assert samples.finished.sum() < count
    found = {
        tuple(row[mask].tolist()): p.item()
        for row, mask, p in zip(
            everything.response_tokens, everything.response_mask, probability, strict=True
        )
    }
    drawn = [
        tuple(row[mask].tolist())
        for row, mask in zip(samples.response_tokens, samples.response_mask, strict=True)
    ]
    for response, p in found.items():
        # Four standard deviations of a frequency.
        spread = 4 * (p * (1 - p) / count) ** 0.5
        assert drawn.count(response) / count == pytest.approx(p, abs=spread + 1e-9)


def test_states_are_one_hot_and_aligned() -> None:
    policy = TabularPolicy(dtype=torch.float64)
    samples = policy.all_samples()
    out = policy.evaluate(samples)
    assert out.states.shape == (15, 3, policy.hidden_size) == (15, 3, 13)
    wanted = (out.states @ policy.table).log_softmax(-1)
    wanted = wanted.gather(2, samples.response_tokens[:, :, None]).squeeze(2)
    torch.testing.assert_close(out.logprobs, torch.where(samples.mask, wanted, 0.0))
    assert (out.states[:, 0, 0] == 1).all()  # the empty prefix


def test_texts_are_scored_like_responses() -> None:
    policy = TabularPolicy(dtype=torch.float64)
    samples = policy.all_samples()
    tokens, mask = samples.response_tokens, samples.response_mask
    found = policy.next_token_logprobs(TextBatch(tokens, mask, mask))
    assert torch.equal(found, policy.evaluate(samples).logprobs[:, 1:])


def test_the_reference_stays() -> None:
    policy = TabularPolicy()
    samples = policy.all_samples()
    before = policy.evaluate(samples).logprobs.detach()
    with torch.no_grad():
        policy.table.mul_(2.0)
    reference = policy.reference()
    assert torch.equal(reference.evaluate(samples).logprobs, before)
    assert not reference.evaluate(samples).logprobs.requires_grad
    assert list(reference.parameters()) == []
    assert not torch.equal(policy.evaluate(samples).logprobs, before)


def test_state_and_file(tmp_path: Path) -> None:
    policy, other = TabularPolicy(seed=1), TabularPolicy(seed=2)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(policy.table, other.table)
    policy.save(tmp_path)
    assert torch.equal(load_file(tmp_path / "policy.safetensors")["table"], policy.table)


def test_made_up_samples_in_groups() -> None:
    samples = made_up_samples(["a", "b", "", "d"], samples_per_prompt=2, finished=[True] * 4)
    assert samples.group.tolist() == [0, 0, 1, 1]
    assert samples.rows[1]["prompt"] == samples.rows[0]["prompt"] != samples.rows[2]["prompt"]
    assert samples.mask.sum(1).tolist() == [2, 2, 1, 2]
    assert samples.responses == ["a", "b", "", "d"]
