"""Text depends on seed, stage, step, row and place: not on who else is decoded, or when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rlhf_kit_hf import decode
from rlhf_kit_hf.options import DecodeOptions
from rlhf_kit_hf.sampler import DecodeSampler
from toy_runs import interrupted, one_stage, ppo_options, run
from toys import PROMPTS, prompts, respond, write_toy_recipe
from watchers import write_watcher

from rlhf_kit.errors import RecipeError
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.testing import TabularPolicy
from rlhf_kit.types import Samples, Sampling

KINDS = ("llama", "qwen3", "neox", "gpt2")
CASES = [(memory, kind) for memory in ("full", "lora", "hydra") for kind in KINDS]
LENGTH, KEY = 12, 2**60 + 3


def said(samples: Samples) -> list[tuple[list[int], bool]]:
    """Each row's tokens, and whether it ended."""
    rows = zip(samples.response_tokens, samples.response_mask, samples.finished, strict=True)
    return [(tokens[mask].tolist(), bool(ended)) for tokens, mask, ended in rows]


class EndsOften:
    """A tokenizer with so many ends that rows of any model have very different lengths."""

    end_ids = tuple(range(0, 256, 6))

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize(("memory", "kind"), [c for c in CASES if c != ("hydra", "gpt2")])
def test_the_batch_has_no_say(
    context_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, memory: str, kind: str
) -> None:
    """Decoding batches of 1, 7 and 64, rows in another order, rows that are fed to the end."""
    context = context_of(memory, kind)
    policy = context.memory().policy(None)
    policy.tokenizer = EndsOften(policy.tokenizer)
    asked = prompts(context.tokenizer, PROMPTS * 2).repeat(3)  # 24 rows
    whole = respond(policy, asked, LENGTH, key=KEY)
    wanted = said(whole)
    assert 0 < sum(ended for _, ended in wanted) < len(wanted)
    assert len({tuple(tokens) for tokens, _ in wanted}) > 12
    for size in (1, 7, 64):
        options = ppo_options(sampling={"max_new_tokens": LENGTH, "batch_size": size}).sampling
        found = list(sample(DecodeSampler(DecodeOptions()), policy, asked, options, KEY))
        assert max(map(len, found)) <= size
        assert [each for part in found for each in said(part)] == wanted, size
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(1))
    mixed = respond(policy, asked.select(order), LENGTH, key=KEY)
    assert said(mixed) == [wanted[i] for i in order.tolist()]
    sizes: list[int] = []
    kept = decode._remaining

    def staying(rows: Any, *others: Any) -> Any:
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(decode, "_remaining", staying)
    together = respond(policy, asked, LENGTH, key=KEY)
    assert set(sizes) == {24}
    sizes.clear()
    monkeypatch.setattr(decode, "_remaining", lambda *a: staying(kept(*a)))
    respond(policy, asked, LENGTH, key=KEY)
    assert min(sizes) <= 12  # some rows did leave early before
    assert said(together) == wanted
    mask = whole.response_mask
    assert whole.sampled_logprobs is not None
    assert together.sampled_logprobs is not None
    torch.testing.assert_close(
        whole.sampled_logprobs[mask], together.sampled_logprobs[mask], rtol=1e-4, atol=1e-4
    )
    assert (whole.trunk is None) == (together.trunk is None) == (memory != "hydra")
    if whole.trunk is not None and together.trunk is not None:
        for a, b in zip(whole.trunk.rows, together.trunk.rows, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert said(respond(policy, asked, LENGTH, key=KEY + 1)) != wanted


def test_groups_stay_whole_where_they_fit(context_of: Callable[..., Any]) -> None:
    asked = prompts(context_of("full").tokenizer).repeat(3)
    assert [part.group.tolist() for part in asked.split(7)] == [
        [0] * 3 + [1] * 3,
        [2] * 3 + [3] * 3,
    ]
    assert [part.group.tolist() for part in asked.split(2)] == [
        each for group in range(4) for each in ([group] * 2, [group])
    ]
    assert torch.equal(torch.cat([part.stream for part in asked.split(2)]), torch.arange(12))


def test_a_strangers_policy_is_refused() -> None:
    one = torch.zeros((1, 1), dtype=torch.long)
    asked = TabularPolicy().all_samples().prompts.select(one[0])
    with pytest.raises(RecipeError, match=r"sampler: decode .*TabularPolicy; use the sampler"):
        DecodeSampler(DecodeOptions())(TabularPolicy(), asked, Sampling(3, 1.0, 0))


WRITING = """
def rollout_collected(self, stage, step, rollout):
    from pathlib import Path
    with (Path(__file__).parent / "seen.txt").open("a") as file:
        print(step, rollout.samples.responses, file=file)
"""


def test_ppo_samples_the_same_whatever_it_decodes_together(toy_model: Path, tmp_path: Path) -> None:
    """In its first rollout; afterwards the weights differ by rounding."""
    changes = {"steps": 2, "gate": {"check": False}, "samples_per_prompt": 2, "rollout_batch": 8}
    recipe = one_stage(tmp_path / "project", toy_model, **changes)
    seen = {}
    for size in (1, 64):
        plugin = tmp_path / f"of{size}" / "writing.py"
        plugin.parent.mkdir()
        chosen = write_watcher(plugin, WRITING), f"ppo.sampling.batch_size={size}"
        run(recipe, tmp_path / f"run{size}", *chosen, plugins=(plugin,))
        seen[size] = (plugin.parent / "seen.txt").read_text().splitlines()
    assert len(seen[1]) == 2
    assert seen[1][0] == seen[64][0]
    first, second = (line.partition(" ")[2] for line in seen[1])
    assert first != second


def collecting(folder: Path, model: Path, size: int) -> Path:
    """A recipe whose only stage is `collect`."""
    path = write_toy_recipe(folder, model, "full", collect={"sampling": {"batch_size": size}})
    values = yaml.safe_load(path.read_text())
    block = {key: value for key, value in values["stages"]["collect"].items() if key != "from"}
    values["stages"] = {"collect": block}
    values["data"] = {"prompts": values["data"]["prompts"]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_collect_goes_on_with_chunks_of_another_size(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(folder: Path) -> list[Any]:
        text = (folder / "comparisons.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    wanted = rows(run(collecting(tmp_path / "whole", toy_model, 64), tmp_path / "a"))
    assert len(wanted) > 5
    few = collecting(tmp_path / "few", toy_model, 7)  # two prompts of three completions
    interrupted(few, tmp_path / "b", 5, monkeypatch)
    found = rows(run(few, tmp_path / "b", "collect.sampling.batch_size=15"))
    assert [(r["prompt"], r["completions"], r["ranks"]) for r in found] == [
        (r["prompt"], r["completions"], r["ranks"]) for r in wanted
    ]
