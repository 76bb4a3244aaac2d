"""The model option `layers`: a smaller model of the same family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from toys import ANSWERS, plain_model, texts, train, write_toy_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import open_recipe

FAMILIES = ("llama", "qwen3", "neox", "gpt2", "opt")


def source(folder: Path, layers: int | None) -> PretrainedSource:
    return PretrainedSource(PretrainedOptions(name=str(folder), layers=layers))


def witness(folder: Path, layers: int) -> Any:
    """Transformers' own model of that depth, with what fits of the weights of the whole."""
    values = json.loads((folder / "config.json").read_text())
    values["n_layer" if "n_layer" in values else "num_hidden_layers"] = layers
    values.pop("layer_types", None)
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).float().eval()
    missing = small.load_state_dict(plain_model(folder).state_dict(), strict=False).missing_keys
    assert not missing
    return small


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_lowest_layers_are_a_model(
    toy_models: Callable[[str], Path], kind: str, layers: int
) -> None:
    folder = toy_models(kind)
    model = source(folder, layers).load(torch.float32)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        found, expected = (m(input_ids=tokens).logits for m in (model, witness(folder, layers)))
        whole = plain_model(folder)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected)
    assert (found - whole).abs().max() > 0.1
    assert model.config.num_hidden_layers == layers
    kinds = getattr(model.config, "layer_types", None)
    assert kinds is None or len(kinds) == layers


def test_all_layers_change_nothing(toy_model: Path) -> None:
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        cut, whole = (source(toy_model, n).load(torch.float32)(tokens).logits for n in (4, None))
    assert torch.equal(cut, whole)


@pytest.mark.parametrize("kind", FAMILIES)
def test_more_layers_than_there_are(toy_models: Callable[[str], Path], kind: str) -> None:
    """Said before any weights are loaded, too."""
    too_many = source(toy_models(kind), 5)
    for ask in (too_many.tokenizer, lambda: too_many.load(torch.float32)):
        with pytest.raises(RecipeError, match=r"^model\.layers: 5, but the model has 4 layers"):
            ask()


def test_no_layers_is_refused_in_the_recipe(toy_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"model\.layers: is 0; should be greater than or eq"):
        open_recipe(toy_recipe("full"), ["model.layers=0"])


def test_the_depth_is_part_of_what_identifies_the_weights(toy_model: Path) -> None:
    prints = [source(toy_model, layers).fingerprint() for layers in (None, 2, 3)]
    assert prints[0] != prints[1] != prints[2] != prints[0]
    assert "layers" not in prints[0]


def context(folder: Path, model: Path, memory: str, layers: int) -> Any:
    recipe = write_toy_recipe(folder, model, memory)
    overrides = [f"model.layers={layers}"]
    overrides += ["memory.trainable_layers=1"] if memory == "hydra" else []
    resolved, _, _ = open_recipe(recipe, overrides)
    return StageContext(RunContext(resolved, folder / "run"), "ppo")


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_under_every_strategy(toy_model: Path, tmp_path: Path, memory: str) -> None:
    """The cut model is what is trained, saved and loaded."""
    small = context(tmp_path / "project", toy_model, memory, 2)
    policy = small.memory().policy(None)
    batch = texts(small.tokenizer, *ANSWERS)
    tokens, mask = batch.tokens, batch.mask
    with torch.no_grad():
        logits = witness(toy_model, 2)(input_ids=tokens, attention_mask=mask.long()).logits
        expected = torch.log_softmax(logits[:, :-1], -1).gather(2, tokens[:, 1:, None])[..., 0]
        found = policy.next_token_logprobs(batch)
    predicted = batch.predicted
    torch.testing.assert_close(found[predicted], expected[predicted], rtol=1e-4, atol=1e-4)
    train(policy, batch)
    train(policy, batch)
    with torch.no_grad():
        trained = policy.next_token_logprobs(batch)
    assert (trained - found).abs().max() > 0.01
    policy.save(tmp_path / "saved")
    with torch.no_grad():
        loaded = small.memory().policy(tmp_path / "saved", trainable=False)
        assert torch.equal(loaded.next_token_logprobs(batch), trained)
    if memory == "full":
        assert plain_model(tmp_path / "saved").config.num_hidden_layers == 2
        return
    deeper = context(tmp_path / "project", toy_model, memory, 3)
    with pytest.raises(RecipeError, match=r"backbone 'llama 2 x 32 .* is 'llama 3 x 32 "):
        deeper.memory().policy(tmp_path / "saved")
