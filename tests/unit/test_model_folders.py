"""A model folder is what it says, or the run ends in one line before any training."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from published_tokenizers import FORMS, write_published
from rlhf_kit_hf.loading import load_exactly, refuse_not_finite
from rlhf_kit_hf.model_folder import gguf_damage, model_damage, numbers, weights_damage
from rlhf_kit_hf.options import GGUFOptions, LoraOptions, PretrainedOptions
from rlhf_kit_hf.sources import GGUFSource, PretrainedSource
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_runs import one_stage
from toys import VOCABULARY, toy_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError, RecipeError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(toy_model: Path, tmp_path: Path) -> Path:
    """A model of one's own, to be damaged."""
    return shutil.copytree(toy_model, tmp_path / "model")


def rlhf_kit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def line(result: Result, code: int) -> str:
    """The one line of a refusal."""
    assert result.exit_code == code, (result.stderr, result.exception)
    (found,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert found == result.stderr.splitlines()[-1]
    return found.removeprefix("error: ")


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The same file with other tensors in it."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def sharded(folder: Path) -> dict[str, str]:
    """Weights in two files, with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        own = {name: t for name, t in tensors.items() if places[name] == shard}
        save_file(own, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def cut(folder: Path, name: str, kept: int) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:kept])


def header_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[20] ^= 0x80
    (folder / WEIGHTS).write_bytes(data)


def without_shard(folder: Path) -> None:
    (folder / sharded(folder)["model.norm.weight"]).unlink()


def moved_in_index(folder: Path) -> None:
    places = sharded(folder)
    name = "model.norm.weight"
    others = set(places.values()) - {places[name]}
    index = {"weight_map": places | {name: others.pop()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


OUTSIDE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: is missing"),
    "config cut short": (lambda f: cut(f, "config.json", 40), r"config\.json: is no JSON: "),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "is no JSON object"),
    "config a pointer": (
        lambda f: (f / "config.json").write_text(POINTER),
        r"config\.json: is the pointer of a large-file store .*\(git lfs pull\)",
    ),
    "generation config cut short": (
        lambda f: cut(f, "generation_config.json", 20),
        r"generation_config\.json: is no JSON: ",
    ),
    "tokenizer config a list": (
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        r"tokenizer_config\.json: is no JSON object",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "holds no weights",
    ),
    "a pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), "safetensors: is the pointer of"),
    "a tokenizer that is a pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"tokenizer\.json: is the pointer of",
    ),
    "empty": (lambda f: cut(f, WEIGHTS, 0), "0 bytes, without a whole header"),
    "cut in the header": (lambda f: cut(f, WEIGHTS, 100), "100 bytes, without a whole header"),
    "cut in the data": (
        lambda f: cut(f, WEIGHTS, 90000),
        r"cut short or damaged: 90000 bytes, and its header says \d{6}",
    ),
    "too long": (
        lambda f: (f / WEIGHTS).open("ab").write(b"xx"),
        r"damaged: \d+ bytes, and its header says",
    ),
    "no safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04" * 9), "no safetensors"),
    "a bit of the header": (header_bit, "its header is none of safetensors"),
    "a shard is gone": (without_shard, r"model-0000\d-of-00002\.safetensors: is missing"),
    "a tensor is elsewhere": (
        moved_in_index,
        r"0000\d-of-00002\.safetensors: lacks model\.norm\.weight, which model\.safetens",
    ),
    "no map": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text("{}")),
        "has no weight_map",
    ),
}


@pytest.mark.parametrize("damage", OUTSIDE)
def test_what_shows_from_outside_is_said_by_check(model: Path, tmp_path: Path, damage: str) -> None:
    change, says = OUTSIDE[damage]
    recipe = one_stage(tmp_path / "project", model, "sft")
    assert rlhf_kit("check", recipe).exit_code == 0
    change(model)
    said = line(rlhf_kit("check", recipe), 2)
    assert re.search(r"toy\.yaml:\d+: model\.name: ", said)
    assert re.search(says, said)
    assert said == line(rlhf_kit("run", recipe, "--out", tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


CONFIGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no layers": (lambda f: settings(f, num_hidden_layers=0), "its config says 0 layers"),
    "no heads": (lambda f: settings(f, num_attention_heads=0), "cannot load .*: ZeroDivisionError"),
    "no such type": (lambda f: settings(f, model_type="lama"), "has model type `lama`"),
    "no such activation": (lambda f: settings(f, hidden_act="nope"), "KeyError: 'nope'"),
    "sizes lost": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
        r"is of a model of 6,738,415,616 weights, and its files hold 53,728; fetch both again",
    ),
    "another family": (
        lambda f: settings(f, model_type="gpt2"),
        r"lack 52 of 53 weights: .* and 49 more, and hold model\.embed_tokens\.weight, ",
    ),
    "a tokenizer of nothing": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "cannot load .*: KeyError: 'added_tokens'",
    ),
    "a tokenizer cut short": (lambda f: cut(f, "tokenizer.json", 500), "cannot load .*: Untermin"),
}


@pytest.mark.filterwarnings("ignore:model. its configuration ends")
@pytest.mark.parametrize("damage", CONFIGS)
def test_what_the_small_files_say(model: Path, tmp_path: Path, damage: str) -> None:
    change, says = CONFIGS[damage]
    change(model)
    recipe = one_stage(tmp_path / "project", model, "sft")
    said = line(rlhf_kit("run", recipe, "--out", tmp_path / "out"), 2)
    assert re.search(says, said)
    assert str(model) in said
    assert not (tmp_path / "out").exists()


def test_several_files_are_one_model(model: Path) -> None:
    sharded(model)
    assert model_damage(model) is None
    source = PretrainedSource(PretrainedOptions(name=model))
    assert source.load(torch.float32).config.num_hidden_layers == 4


def test_the_files_of_the_index_are_counted(model: Path) -> None:
    """They may lie in a sub-folder; others beside them are none of the model's."""
    places = sharded(model)
    (model / "parts").mkdir()
    for shard in set(places.values()):
        (model / shard).rename(model / "parts" / shard)
    places = {name: f"parts/{shard}" for name, shard in places.items()}
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"other": torch.zeros(1000)}, model / "other.safetensors")
    weights = [t for path in (model / "parts").iterdir() for t in load_file(path).values()]
    assert numbers(model) == sum(t.numel() for t in weights)
    source = PretrainedSource(PretrainedOptions(name=model))
    assert source.load(torch.float32).config.num_hidden_layers == 4


def nan(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def infinite(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"][0] = float("-inf")


def renamed(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("model.", "transformer.")] = tensors.pop(name)


def lacking(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.2.self_attn.o_proj.weight"]


def shallow(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if ".layers.3." in n]:
        del tensors[name]


def deep(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if ".layers.3." in n]:
        tensors[name.replace(".3.", ".4.")] = tensors[name].clone()


def wide(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(48)


INSIDE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "nan": (nan, r"NaN or inf in 1 of its weights: model\.layers\.1\.mlp\.up_proj\.weight; "),
    "inf": (infinite, r"NaN or inf in 1 of its weights: model\.norm\.weight; "),
    "renamed": (renamed, r"lack 38 of 39 weights: .* and 35 more, and hold transformer\.embed_tok"),
    "lacking": (lacking, r"lack 1 of 39 weights: model\.layers\.2\.self_attn\.o_proj\.weight; "),
    "too few layers": (shallow, r"lack 9 of 39 weights: model\.layers\.3\..* and 6 more; "),
    "too many layers": (deep, r"hold model\.layers\.4\..*, and by its config it has no such layer"),
    "another shape": (
        wide,
        r"model\.norm\.weight is \[48\] in its files, and by its config \[32\]",
    ),
}


@pytest.mark.parametrize("memory", ["full", "hydra", "lora"])
@pytest.mark.parametrize("damage", INSIDE)
def test_what_shows_on_loading_is_said_before_training(
    model: Path, tmp_path: Path, damage: str, memory: str
) -> None:
    change, says = INSIDE[damage]
    rewritten(model / WEIGHTS, change)
    recipe = one_stage(tmp_path / "project", model, "sft", memory)
    result = rlhf_kit("run", recipe, "--out", tmp_path / "out")
    assert len(result.stderr.splitlines()) == 1
    said = line(result, 2)
    assert said.startswith("stage 'sft': model")
    assert str(model) in said
    assert re.search(says, said)
    assert not (tmp_path / "out").exists()


KINDS = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "stablelm", "olmo", "olmo2"),
    *("granite", "cohere", "smollm3", "starcoder2", "qwen3_moe", "mixtral", "gpt_bigcode"),
)


def small(kind: str) -> Any:
    """A model of a family, with all of its defaults but the size."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    size |= {"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 300}
    size |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "d_model": 32, "n_layers": 2, "n_heads": 2}
    size |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "rotary_dim": 8, "pad_token_id": 0}
    size |= {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 32}
    if kind == "falcon":
        del size["head_dim"]  # it computes that
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size, **ends)).float()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_family_leaves_out_on_purpose_is_not_missed(kind: str, tmp_path: Path) -> None:
    made = small(kind)
    made.save_pretrained(tmp_path)
    assert model_damage(tmp_path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PretrainedSource(PretrainedOptions(name=tmp_path)).load(torch.float32)
    refuse_not_finite(loaded)
    for name, weight in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "neox", "gpt2", "opt"])
def test_toys_are_whole(toy_models: Callable[[str], Path], kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = PretrainedSource(PretrainedOptions(name=toy_models(kind)))
        assert source.tokenizer().beyond(VOCABULARY) == {}
        refuse_not_finite(source.load(torch.float32))


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_published_forms_are_whole(form: str, tmp_path: Path) -> None:
    write_published(form, tmp_path)
    assert model_damage(tmp_path) is None
    source = PretrainedSource(PretrainedOptions(name=tmp_path, template_date=None))
    refuse_not_finite(source.load(torch.float32))
    source.tokenizer()


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("qwen3", "lm_head.weight"),  # tied, and saved a second time
    ],
)
def test_what_older_files_hold_besides(kind: str, extra: str, tmp_path: Path) -> None:
    made = small(kind)
    if extra == "lm_head.weight":
        made.config.tie_word_embeddings = True
        made.tie_weights()
    made.save_pretrained(tmp_path)

    def more(tensors: dict[str, Tensor]) -> None:
        tensors[extra] = made.get_input_embeddings().weight.detach().clone()

    rewritten(tmp_path / WEIGHTS, more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PretrainedSource(PretrainedOptions(name=tmp_path)).load(torch.float32)


def test_weights_that_nobody_reads_are_mentioned(model: Path) -> None:
    """A head of another task, say."""
    rewritten(model / WEIGHTS, lambda tensors: tensors.update(score=torch.ones(2, 32)))
    with pytest.warns(UserWarning, match="1 weights in its files are not read: score$"):
        PretrainedSource(PretrainedOptions(name=model)).load(torch.float32)


@pytest.mark.parametrize(
    ("added", "special", "refused"),
    [
        (["<another>"], False, True),
        (["<|never_written|>"], True, False),
        (["<|new_pad|>"], True, True),
    ],
)
def test_a_tokenizer_larger_than_the_embedding(
    model: Path, tmp_path: Path, added: list[str], special: bool, refused: bool
) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(added, special_tokens=special)
    if "pad" in added[0]:
        tokenizer.pad_token = added[0]
    tokenizer.save_pretrained(model)
    recipe = one_stage(tmp_path / "project", model, "sft")
    result = rlhf_kit("run", recipe, "--out", tmp_path / "out")
    if not refused:
        assert result.exit_code == 0, result.stderr
        return
    assert f"its embedding of 259 rows has not: '{added[0]}' (259); use" in line(result, 2)
    assert not (tmp_path / "out").exists()


def test_more_context_than_the_model_has(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft")
    result = rlhf_kit("run", recipe, "model.max_length=257", "--out", tmp_path / "out")
    said = "model.max_length: 257, but the model was made for 256 tokens; lower it"
    assert said in line(result, 2)
    assert not (tmp_path / "out").exists()
    PretrainedSource(PretrainedOptions(name=toy_model, max_length=256)).tokenizer()


def test_one_word_is_no_list_of_modules(toy_recipe: Callable[..., Path]) -> None:
    said = line(rlhf_kit("check", toy_recipe("lora"), "memory.target_modules=q_proj"), 2)
    assert said.endswith(
        "memory.target_modules: is 'q_proj'; should be \"all-linear\" or a list of names, such "
        "as [q_proj]"
    )
    assert LoraOptions(target_modules=["v", "q", "v"]).target_modules == ["q", "v"]
    wanted = "memory.target_modules='.*(q|v_proj'"
    said = line(rlhf_kit("check", toy_recipe("lora"), wanted), 2)
    assert "memory.target_modules: is '.*(q|v_proj'; is no regular expression: " in said


def test_modules_that_are_not_there(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, "sft", "lora")
    wanted = "memory.target_modules=[q_prj]"
    said = line(rlhf_kit("run", recipe, wanted, "--out", tmp_path / "out"), 2)
    assert (
        "memory.target_modules: the model has no module 'q_prj'; did you mean 'q_proj'?; it has "
        "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj; "
    ) in said
    assert not (tmp_path / "out").exists()


def elsewhere(path: Path, model: Path, memory: str) -> Path:
    """The finished SFT stage of another run."""
    recipe = one_stage(path / "project", model, "sft", memory)
    result = rlhf_kit("run", recipe, "--out", path / "out")
    assert result.exit_code == 0, result.stderr
    return path / "out/stages/sft"


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_a_folder_of_another_model_is_refused_when_the_stage_is_built(
    model: Path, toy_model: Path, tmp_path: Path, memory: str
) -> None:
    """In the second stage of a run: the first has not begun."""
    if memory == "full":  # its weights come with the folder, what they read does not
        tokenizer = toy_tokenizer()
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "answer")
        tokenizer.save_pretrained(model)
    else:
        rewritten(model / WEIGHTS, lambda tensors: tensors["model.norm.weight"].mul_(2))
    folder = elsewhere(tmp_path / "elsewhere", model, memory)
    recipe = one_stage(tmp_path / "project", toy_model, "sft", memory)
    values = yaml.safe_load(recipe.read_text())
    values["stages"]["second"] = values["stages"]["sft"] | {"from": str(folder)}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    out = tmp_path / "out"
    said = line(rlhf_kit("run", recipe, "--out", out), 2)
    what = "tokenizer" if memory == "full" else "was trained on the backbone 'llama 4 x 32 "
    assert str(folder) in said and what in said
    assert not out.exists()
    values["model"]["name"] = str(model)
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    assert rlhf_kit("run", recipe, "--out", out).exit_code == 0


MEMORIES = {"full": "model", "hydra": "branch", "lora": "adapter_model"}


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_a_stage_has_left_is_whole(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    context = context_of(memory)
    context.memory().policy(None).save(tmp_path)
    path = tmp_path / f"{MEMORIES[memory]}.safetensors"
    whole = path.read_bytes()

    def says(words: str, error: type[Exception] = DataError) -> None:
        with pytest.raises(error, match=words) as caught:
            context.memory().policy(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    path.write_bytes(whole[:-4])
    says("cut short or damaged: .*; train that stage again")
    path.write_bytes(whole)
    rewritten(path, lambda tensors: tensors.popitem())
    says("lack 1 of .*", RecipeError) if memory == "full" else says("is not what it was saved as")
    path.unlink()
    says("holds no weights.*train" if memory == "full" else "is missing; train that stage again")
    path.write_bytes(whole)
    context.memory().policy(tmp_path)
    (tmp_path / "memory.json").write_text("{")
    says(r"memory\.json: is no JSON: .*; train that stage again", RecipeError)


def test_check_looks_into_folders_of_other_runs(toy_model: Path, tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "elsewhere", toy_model, "hydra")
    recipe = one_stage(tmp_path / "project", toy_model, "sft", **{"from": str(folder)})
    assert rlhf_kit("check", recipe).exit_code == 0
    cut(folder, "branch.safetensors", 99)
    said = line(rlhf_kit("check", recipe), 2)
    assert "stages.sft.from: " in said
    assert f"{folder}/branch.safetensors: is cut short" in said


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("which", ["reward", "critic"])
def test_a_head_is_never_made_up(
    context_of: Callable[..., Any], tmp_path: Path, memory: str, which: str
) -> None:
    context = context_of(memory)
    context.memory().scorer(None).save(tmp_path)

    def load() -> None:
        strategy = context.memory()
        if which == "critic":
            strategy.critic(tmp_path)
        else:
            strategy.scorer(tmp_path, trainable=False)

    load()
    head, config = tmp_path / "reward_head.safetensors", tmp_path / "reward_head.json"
    config.write_text('{"pooling": "median"}')
    with pytest.raises(DataError, match="pooling is 'median', and may be last or mean"):
        load()
    config.write_text('{"pooling": ')
    with pytest.raises(DataError, match=r"reward_head\.json: is no JSON"):
        load()
    head.unlink()
    with pytest.raises(DataError, match=r"reward_head\.safetensors: is missing; train that stage"):
        load()
    # Trained further it would have a fresh one, but only where a policy is.
    with pytest.raises(DataError, match=r"reward_head\.safetensors: is missing"):
        context.memory().scorer(tmp_path)
    config.unlink()
    with pytest.raises(DataError, match=r"reward_head\.safetensors: is missing"):
        load()


def test_a_damaged_proof(context_of: Callable[..., Any], tmp_path: Path) -> None:
    context = context_of("full")
    context.memory().scorer(None).save(tmp_path)
    for text in ("{", "[]", "{}", '{"tokens": [["a"]]}', '{"tokens": [[1], [1, 2]]}'):
        (tmp_path / "reward_proof.json").write_text(text)
        with pytest.raises(DataError, match=r"reward_proof\.json: is "):
            context.memory().scorer(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no GGUF file"),
        (POINTER.encode(), "is the pointer of a large-file store"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, None),
    ],
)
def test_a_gguf_file_that_is_none(tmp_path: Path, content: bytes, says: str | None) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(content)
    recipe = one_stage(tmp_path, tmp_path, "sft")
    values = yaml.safe_load(recipe.read_text()) | {"model": {"use": "gguf", "file": path.name}}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    if says is not None:
        assert says in (gguf_damage(path) or "")
        assert says in line(rlhf_kit("check", recipe), 2)
        return
    pytest.importorskip("gguf")
    with pytest.raises(RecipeError, match=r"model\.file: .*small\.gguf: cannot be read as GGUF: "):
        GGUFSource(GGUFOptions(file=path)).tokenizer()


def test_a_tensor_of_another_length_than_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    tensors |= {"c": torch.ones(2, dtype=torch.bool), "d": torch.ones(0), "e": torch.arange(3)}
    tensors |= {"f": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(tensors, path)
    assert weights_damage(path) is None
    path.write_bytes(path.read_bytes().replace(b'"shape":[3]', b'"shape":[4]', 1))
    assert "is not as long as the tensor" in (weights_damage(path) or "")


def test_loading_says_what_it_was_given() -> None:
    """Whatever loads: the report of transformers is read, and its reader is no other's name."""
    model = small("llama")
    report = {"missing_keys": {"a"}, "mismatched_keys": set(), "unexpected_keys": {"b"}}
    with pytest.raises(RecipeError, match=r"here: its files lack 1 of \d+ weights: a, and hold b"):
        load_exactly(lambda **_: (model, report), "here")


def write_gguf(path: Path) -> None:
    """A Llama of one layer, filled at random, with a vocabulary of bytes."""
    gguf = pytest.importorskip("gguf")
    words = [*bytes_to_unicode().values(), "th", "<s>", "</s>"]
    size, rows = 32, len(words)
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(64)
    file.add_embedding_length(size)
    file.add_block_count(1)
    file.add_feed_forward_length(2 * size)
    file.add_head_count(4)
    file.add_head_count_kv(4)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(rows)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(words)
    file.add_token_types([1] * (rows - 2) + [3, 3])
    file.add_token_merges(["t h"])
    file.add_bos_token_id(rows - 2)
    file.add_eos_token_id(rows - 1)
    shapes = {"token_embd": [rows, size], "output": [rows, size], "output_norm": [size]}
    layer = {name: [size, size] for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    layer |= {"attn_norm": [size], "ffn_norm": [size], "ffn_down": [size, 2 * size]}
    layer |= {"ffn_gate": [2 * size, size], "ffn_up": [2 * size, size]}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_damaged_conversion_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("RLHF_KIT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf")
    source = GGUFSource(GGUFOptions(file=tmp_path / "small.gguf"))
    ids = source.tokenizer().response("that")
    # Copies, since what is loaded is the file itself, mapped.
    loaded = source.load(torch.float32).state_dict()
    weights = {key: weight.clone() for key, weight in loaded.items()}
    (folder,) = (tmp_path / "cache/models").iterdir()
    before = (folder / name).stat()
    source.load(torch.float32)
    assert (folder / name).stat() == before
    data = bytearray((folder / name).read_bytes())
    data[-10] ^= 0x40
    (folder / name).write_bytes(data)
    assert source.tokenizer().response("that") == ids
    again = source.load(torch.float32).state_dict()
    assert all(torch.equal(again[key], weight) for key, weight in weights.items())
    assert [*(tmp_path / "cache/models").iterdir()] == [folder]
