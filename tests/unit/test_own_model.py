"""A stage with a model of its own: the published reward model is larger than the policies."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from rlhf_kit_hf.trained_reward import TrainedReward
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys import ANSWERS, SPECIALS, TEMPLATE, prompts, respond, write_toy_model, write_toy_recipe
from transformers import PreTrainedTokenizerFast

from rlhf_kit.components import StageRef
from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import NumericsError, RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.types import Samples, TextBatch

RM = StageRef(stage="reward_model")


def write_other_model(folder: Path) -> Path:
    """A Qwen3 whose tokenizer has the toy one's bytes in reverse order, and no <|im_start|>."""
    write_toy_model("qwen3", folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([SPECIALS[0], SPECIALS[2]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIALS[0], eos_token=SPECIALS[2]
    )
    tokenizer.chat_template = TEMPLATE.replace("<|im_start|>", "#")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other_model(tmp_path_factory.mktemp("models") / "other")


def write_recipe(
    folder: Path, model: Path, memory: str, own: dict[str, Any], **overrides: Any
) -> Path:
    """The toy recipe, with ``own`` model and memory blocks in the reward model's stage."""
    path = write_toy_recipe(folder, model, memory, **overrides)
    values = yaml.safe_load(path.read_text())
    block = values["stages"]["reward_model"]
    if own:
        del block["from"]  # the weights of another backbone
    block |= own
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def run_context(recipe: Path, *overrides: str) -> RunContext:
    resolved, _, _ = open_recipe(recipe, overrides)
    return RunContext(resolved, recipe.parent / "run")


def own_blocks(model: Path, memory: str = "full") -> dict[str, Any]:
    return {
        "model": {"use": "pretrained", "name": str(model)},
        "memory": {"use": memory, "dtype": "float32", "device": "cpu"},
    }


def trained(run: RunContext) -> Path:
    """What a reward_model stage leaves, with weights moved off the pretrained ones."""
    context = StageContext(run, "reward_model")
    model = context.memory().scorer(None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = run.stage_folder("reward_model")
    model.save(folder)
    return folder


def sampled(memory: Any, tokenizer: Any, length: int = 8) -> Samples:
    policy = memory.policy(None, trainable=False)
    return respond(policy, prompts(tokenizer), length, key=3)


def reward_of(context: StageContext) -> TrainedReward:
    """The reward that the PPO stage of the toy recipe maximises."""
    options: Any = context._run.recipe.stages["ppo"].part.options
    reward: TrainedReward = context.build(options.reward)
    return reward


def test_a_stage_uses_its_own_blocks(toy_model: Path, other_model: Path, tmp_path: Path) -> None:
    run = run_context(write_recipe(tmp_path, toy_model, "hydra", own_blocks(other_model)))
    rm, ppo = StageContext(run, "reward_model"), StageContext(run, "ppo")
    row = {"prompt": "Hi"}
    assert rm.tokenizer.prompt(row) != ppo.tokenizer.prompt(row)
    assert rm.tokenizer.prompt(row) == ppo.tokenizer_of(RM).prompt(row)
    assert ppo.tokenizer_of(None) is ppo.tokenizer
    assert ppo.same_model(None) and ppo.same_model(StageRef(stage="sft"))
    assert not ppo.same_model(RM) and not rm.same_model(StageRef(stage="sft"))
    assert ppo.tokenizer_of(StageRef(stage="sft")) is ppo.tokenizer
    kinds = [type(m.load()).__name__ for m in (rm.memory(), ppo.memory(), ppo.memory(RM))]
    assert kinds == ["Qwen3ForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"]
    names = [type(m._inner).__name__ for m in (rm.memory(), ppo.memory(), ppo.memory(RM))]
    assert names == ["FullMemory", "HydraMemory", "FullMemory"]


@pytest.mark.parametrize("key", ["model", "memory"])
def test_one_block_of_its_own_is_enough(
    toy_model: Path, other_model: Path, tmp_path: Path, key: str
) -> None:
    own = {key: own_blocks(other_model, "lora")[key]}
    run = run_context(write_recipe(tmp_path, toy_model, "full", own))
    memory = StageContext(run, "reward_model").memory()
    names = (type(memory.load()).__name__, type(memory._inner).__name__)  # type: ignore[attr-defined]
    assert names == (
        ("Qwen3ForCausalLM", "FullMemory") if key == "model" else ("LlamaForCausalLM", "LoraMemory")
    )


def test_equal_blocks_are_one_source(toy_model: Path, other_model: Path, tmp_path: Path) -> None:
    own = own_blocks(toy_model, "lora")
    same = run_context(write_recipe(tmp_path / "a", toy_model, "lora", own))
    assert same.model_and_memory("reward_model").source is same.model_and_memory(None).source
    other = own_blocks(other_model)
    values = yaml.safe_load(write_recipe(tmp_path / "b", toy_model, "lora", other).read_text())
    values["stages"]["second"] = values["stages"]["reward_model"] | {"memory": None}
    path = tmp_path / "b/two.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run = run_context(path)
    sources = [run.model_and_memory(id).source for id in ("reward_model", "second", "sft", "ppo")]
    assert sources[0] is sources[1]
    assert sources[2] is sources[3]
    assert sources[0] is not sources[2]
    # The memory differs, so weights cannot be shared between the first two.
    assert run.model_and_memory("reward_model").key != run.model_and_memory("second").key


def lowest_layer(reward: TrainedReward) -> torch.nn.Module:
    """The lowest layer of the model that a loaded reward decodes with."""
    role: Any = reward._model._role  # type: ignore[union-attr]
    with role.decoding() as model:
        lowest: torch.nn.Module = model.base_model.layers[0]
    return lowest


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_on_the_policys_backbone_it_reads_the_policys_samples(
    toy_model: Path, tmp_path: Path, memory: str
) -> None:
    run = run_context(write_toy_recipe(tmp_path, toy_model, memory))
    trained(run)
    context = StageContext(run, "ppo")
    own = context.memory()
    reward = reward_of(context)
    reward.load(own)
    assert reward._memory is own
    samples = sampled(own, context.tokenizer)
    expected = own.scorer(run.stage_folder("reward_model"), trainable=False)(samples)
    torch.testing.assert_close(reward(samples), expected, rtol=0, atol=1e-5)
    calls: list[int] = []
    lowest = lowest_layer(reward)
    lowest.register_forward_hook(lambda *_: calls.append(1))
    reward(samples)
    if memory == "hydra":
        assert samples.trunk is not None
        assert not calls


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_on_another_backbone_it_scores_the_text(
    toy_model: Path, other_model: Path, tmp_path: Path, memory: str
) -> None:
    own = own_blocks(other_model, memory)
    if memory == "hydra":
        own["memory"]["trainable_layers"] = 2
    run = run_context(write_recipe(tmp_path, toy_model, "hydra", own))
    folder = trained(run)
    context = StageContext(run, "ppo")
    policy_memory = context.memory()
    reward = reward_of(context)
    assert reward.tokenizer is context.tokenizer_of(RM)
    with pytest.raises(RuntimeError, match="load"):
        reward(sampled(policy_memory, context.tokenizer))
    reward.load(policy_memory)
    samples = sampled(policy_memory, context.tokenizer)
    assert samples.trunk is not None
    assert 0 < samples.finished.sum() < len(samples)
    found = reward(samples)
    assert found.std() > 0.01

    # By hand: each text alone, in the other model's tokens, on a memory of its own.
    plain = StageContext(run, "reward_model")
    model = plain.memory().scorer(folder, trainable=False)
    for i, text in enumerate(samples.responses):
        begin = plain.tokenizer.prompt(samples.rows[i])
        end = plain.tokenizer.text(text)
        if samples.finished[i]:
            end = [*end, plain.tokenizer.eos_id]
        tokens = torch.tensor([begin + end])
        target = torch.arange(tokens.shape[1])[None] >= len(begin)
        with torch.no_grad():
            alone = model.score(TextBatch(tokens, torch.ones_like(target), target))
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=2e-5)

    # The policy's activations mean nothing to it.
    rows = tuple(row * math.nan for row in samples.trunk.rows)
    garbage = replace(samples, trunk=replace(samples.trunk, rows=rows))
    assert torch.equal(reward(garbage), found)


def test_a_text_too_long_for_the_reward_model(
    toy_model: Path, other_model: Path, tmp_path: Path
) -> None:
    own = own_blocks(other_model)
    own["model"]["max_length"] = 47
    run = run_context(write_recipe(tmp_path, toy_model, "full", own))
    trained(run)
    context = StageContext(run, "ppo")
    memory = context.memory()
    reward = reward_of(context)
    reward.load(memory)
    samples = sampled(memory, context.tokenizer, 1)  # the second prompt is the long one
    cause = r"response 1 of 4 \('.*'\) and its prompt have \d+ tokens, more than the 47 of"
    with pytest.raises(NumericsError, match=cause):
        reward(samples)


def test_rewards_on_one_foreign_backbone_share_it(
    toy_model: Path, other_model: Path, tmp_path: Path
) -> None:
    run = run_context(write_recipe(tmp_path, toy_model, "full", own_blocks(other_model, "lora")))
    trained(run)
    context = StageContext(run, "ppo")
    memory = context.memory()
    first, second = reward_of(context), reward_of(context)
    first.load(memory)
    second.load(memory)
    assert first._memory is second._memory is not memory
    samples = sampled(memory, context.tokenizer)
    assert torch.equal(first(samples), second(samples))
    # A later stage finds the weights gone.
    assert first._memory is not None
    loaded = weakref.ref(first._memory)
    assert context.memory(RM) is loaded()
    del first, second
    gc.collect()
    assert loaded() is None


def test_equal_blocks_are_one_memory_as_long_as_it_is_held(toy_model: Path, tmp_path: Path) -> None:
    context = StageContext(run_context(write_toy_recipe(tmp_path, toy_model, "lora")), "ppo")
    memory = context.memory()
    assert context.memory() is memory
    assert context.memory(RM) is context.memory(StageRef(stage="sft")) is memory
    gone = weakref.ref(memory)
    del memory
    gc.collect()
    assert gone() is None


def test_a_folder_of_another_run_is_on_the_recipes_model(
    toy_model: Path, other_model: Path, tmp_path: Path
) -> None:
    """And is refused, naming both backbones, when it is not."""
    run = run_context(write_recipe(tmp_path / "a", toy_model, "lora", own_blocks(other_model)))
    elsewhere = run_context(write_toy_recipe(tmp_path / "b", toy_model, "lora"))
    ref = StageRef(folder=trained(elsewhere))
    context = StageContext(run, "reward_model")
    memory = context.memory(ref)
    assert type(memory.load()).__name__ == "LlamaForCausalLM"  # type: ignore[attr-defined]
    memory.scorer(ref.folder, trainable=False)
    foreign = run_context(write_toy_recipe(tmp_path / "c", other_model, "lora"))
    with pytest.raises(RecipeError) as caught:
        StageContext(foreign, "ppo").memory(ref).scorer(ref.folder)
    ours, theirs = (
        json.loads((trained(r) / "memory.json").read_text())["backbone"]
        for r in (foreign, elsewhere)
    )
    assert f"was trained on the backbone {theirs!r}, and here is {ours!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", ["lora", "hydra"])
def test_other_weights_of_the_same_shape_are_another_backbone(
    context_of: Callable[..., Any], toy_model: Path, tmp_path: Path, memory: str
) -> None:
    context_of(memory).memory().policy(None).save(tmp_path / "saved")
    note = json.loads((tmp_path / "saved/memory.json").read_text())
    assert note["backbone"].startswith("llama 4 x 32 ")
    changed = shutil.copytree(toy_model, tmp_path / "changed")
    model = context_of("full").memory().load()
    with torch.no_grad():
        model.get_output_embeddings().weight += 0.1
    model.save_pretrained(changed)
    run = run_context(write_toy_recipe(tmp_path / "project", changed, memory))
    with pytest.raises(RecipeError, match=r"backbone 'llama 4 x 32 .*', and here is 'llama 4 x 32"):
        StageContext(run, "sft").memory().policy(tmp_path / "saved")
    # The same weights elsewhere are the same backbone.
    moved = shutil.copytree(toy_model, tmp_path / "moved")
    run = run_context(write_toy_recipe(tmp_path / "project", moved, memory))
    StageContext(run, "sft").memory().policy(tmp_path / "saved")


def test_from_and_model_of_another_kind(toy_model: Path, other_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, toy_model, "full", own_blocks(other_model))
    with pytest.raises(RecipeError, match=r"reward_model\.from: sft trains another model than"):
        open_recipe(path, ["reward_model.from=sft"])
    same = own_blocks(toy_model)["model"]
    open_recipe(path, ["reward_model.from=sft", f"reward_model.model={json.dumps(same)}"])


def fingerprints(recipe: Path) -> dict[str, str]:
    resolved, _, _ = open_recipe(recipe)
    records = RunContext(resolved, recipe.parent / "run").records()
    return {id: record.fingerprint for id, record in records.items()}


def test_fingerprints_follow_the_stages_own_weights(toy_model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(toy_model, tmp_path / "own")
    path = write_recipe(tmp_path / "project", toy_model, "full", own_blocks(own))
    before = fingerprints(path)
    (own / "generation_config.json").write_text('{"changed": true}')
    after = fingerprints(path)
    changed = {id for id in before if before[id] != after[id]}
    assert changed == {"reward_model", "ppo", "evaluate"}


def test_the_whole_pipeline_with_a_reward_model_of_another_kind(
    toy_model: Path, other_model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "project", toy_model, "hydra", own_blocks(other_model, "lora"), ppo={"steps": 1}
    )
    resolved, loaded, _ = open_recipe(recipe)
    summary = run_recipe(resolved, loaded, out=tmp_path / "run", plain=True)
    strategies = {
        stage: json.loads((tmp_path / f"run/stages/{stage}/memory.json").read_text())["strategy"]
        for stage in ("sft", "reward_model", "ppo")
    }
    assert strategies == {"sft": "hydra", "reward_model": "lora", "ppo": "hydra"}
    assert summary["reward_model_score"].keys() == {"baseline", "ppo"}
    # And what was saved about it makes the same run again.
    again, _, _ = open_recipe(tmp_path / "run/recipe.yaml")
    assert (
        again.model_and_memory("reward_model")[0].options
        == resolved.model_and_memory("reward_model")[0].options
    )


def test_the_two_tokenizers_disagree_about_every_text(toy_model: Path, other_model: Path) -> None:
    ours, theirs = (
        PretrainedSource(PretrainedOptions(name=str(m))).tokenizer()
        for m in (toy_model, other_model)
    )
    for answer in ANSWERS:
        assert ours.text(answer) != theirs.text(answer)
        assert theirs.decode(theirs.response(answer)) == answer
