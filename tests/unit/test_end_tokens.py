"""What ends a response: all that the model ends one with, or what the recipe names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from published_tokenizers import BY_NAME, FORMS, built, chat, controls, write_published
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from rlhf_kit_hf.tokenizer import ChatTokenizer, reading
from toy_runs import one_stage
from toys import (
    merged,
    prompts,
    respond,
    toy_tokenizer,
    write_data,
    write_toy_model,
    write_toy_recipe,
)
from transformers import AutoConfig

from rlhf_kit.cli.main import main
from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.ops.sequence import is_any, response_mask
from rlhf_kit.recipe import open_recipe

NAMES = [form.name for form in FORMS]


def opened(folder: Path, **options: Any) -> ChatTokenizer:
    return PretrainedSource(PretrainedOptions(name=str(folder), **options)).tokenizer()


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_all_that_the_published_files_name(name: str, tmp_path: Path) -> None:
    """generation_config, config, the tokenizer's own, and what the template writes."""
    tokenizer, form = opened(write_published(name, tmp_path)), BY_NAME[name]
    texts = built(name).convert_ids_to_tokens(list(tokenizer.end_ids))
    assert sorted(texts) == sorted(form.ends)
    assert len(set(tokenizer.end_ids)) == len(tokenizer.end_ids)
    # A demonstration ends as the template ends an answer.
    assert texts[0] == form.end
    assert tokenizer.response("Yes.")[-1] == tokenizer.eos_id == tokenizer.end_ids[0]
    assert tokenizer.separator_id == built(name).eos_token_id


def test_a_list_in_config_json_counts(tmp_path: Path) -> None:
    folder = write_published("neox", tmp_path)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    other = built("neox").convert_tokens_to_ids("<|padding|>")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [380, other]}))
    assert opened(folder).end_ids == (380, other)


def test_ordinary_text_in_a_config_is_left_out_and_said(tmp_path: Path) -> None:
    """Many home-made models carry the default of their class, which is a letter of theirs."""
    folder = write_published("neox", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    with pytest.warns(UserWarning, match=r"token 5, which is ordinary text .*'&'.*end_tokens"):
        assert opened(folder).end_ids == (380,)


def test_end_tokens_by_text_and_by_id() -> None:
    ids = built("phi3").convert_tokens_to_ids
    user, end = ids("<|user|>"), ids("<|end|>")
    assert chat("phi3", end_tokens=["<|user|>", end]).end_ids == (end, user)  # the template's first
    assert chat("phi3", end_tokens=[user]).end_ids == (user,)
    assert chat("phi3", end_tokens=["</s>", "<|user|>"]).eos_id == ids("</s>")
    with pytest.raises(RecipeError, match=r"model\.end_tokens: '<\|done\|>' is no single token"):
        chat("phi3", end_tokens=["<|done|>"])
    with pytest.raises(RecipeError, match=r"end_tokens: 4000 is no token; the ids are 0 to 423"):
        chat("phi3", end_tokens=[4000])
    with pytest.raises(ValueError, match="at least 1 item"):
        PretrainedOptions(name="x", end_tokens=[])


def test_an_end_that_is_ordinary_text_may_not_stand_inside_a_response() -> None:
    tokenizer = chat("neox", end_tokens=["."])
    assert tokenizer.response("Yes")[-1] == tokenizer.eos_id == tokenizer.text(".")[0]
    assert tokenizer.prompt({"prompt": "One. Two."})  # what is asked is not sampled
    with pytest.raises(DataError, match=r"response 'Yes\. No': says '\.', which ends a response"):
        tokenizer.response("Yes. No")
    assert tokenizer.decode(tokenizer.response("Yes")) == "Yes"


def test_the_mask_ends_with_the_first_of_any() -> None:
    tokens = torch.tensor([[5, 7, 9, 9], [9, 7, 5, 5], [5, 5, 5, 5]])
    assert response_mask(tokens, (9, 7)).tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
    ]
    assert response_mask(tokens, (9,))[0].tolist() == [True, True, True, False]
    assert is_any(tokens, (5, 7)).sum() == 9


def context_of(folder: Path, model: Path, **options: Any) -> StageContext:
    path = one_stage(folder / "project", model, "sft", memory="full")
    values = yaml.safe_load(path.read_text())
    values["model"] |= options
    path.write_text(yaml.safe_dump(values))
    return StageContext(RunContext(open_recipe(path)[0], folder / "run"), "sft")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sampling_stops_on_each(toy_model: Path, tmp_path: Path, count: int) -> None:
    """Against the same draws with the ends looked for by hand."""
    ends = ["<|im_end|>", "e", "a"][:count]
    one = context_of(tmp_path / "a", toy_model, end_tokens=["<|im_start|>"])
    context = context_of(tmp_path / "b", toy_model, end_tokens=ends)
    ids, (start,) = context.tokenizer.end_ids, one.tokenizer.end_ids
    assert len(ids) == count
    asked = prompts(context.tokenizer).repeat(64)

    def sampled(some: StageContext, length: int) -> Any:
        return respond(some.memory().policy(None), asked, length, key=4)

    samples, other = sampled(context, 24), sampled(one, 24)
    stopped, compared = set(), 0
    for i, (row, mask) in enumerate(zip(samples.response_tokens, samples.mask, strict=True)):
        answer = row[mask].tolist()
        places = [place for place, token in enumerate(answer) if token in ids]
        assert bool(samples.finished[i]) == bool(places)
        assert places in ([], [len(answer) - 1])  # exactly one end, and nothing after it
        assert (row[~mask] == context.tokenizer.pad_id).all()
        assert context.tokenizer.decode(answer) == samples.responses[i]
        # The rows of a batch share their draws, whichever of them have ended.
        if start not in answer:
            assert answer == other.response_tokens[i][: len(answer)].tolist()
            compared += 1
        stopped.update(answer[-1:] if places else [])
    assert stopped == set(ids)
    assert compared > 100


def test_one_end_among_several_is_enough_for_the_gate() -> None:
    """The one that is written behind demonstrations can be one that the model never chose yet."""
    from rlhf_kit_policy_gradient.gate import _end

    seen: list[int] = []

    class Policy:
        def evaluate(self, samples: Any) -> Any:
            token = int(samples.response_tokens[0][samples.response_mask[0]][-1])
            seen.append(token)
            chance = -1.0 if token == 7 else -99.0
            return type("Out", (), {"logprobs": torch.full((2, 3), chance)})

    from rlhf_kit.testing import made_up_samples

    samples = made_up_samples(["abc", "abd"], finished=[False, False])
    tokenizer = type("T", (), {"end_ids": (5, 7)})
    setup: Any = type("S", (), {"samples": samples, "tokenizer": tokenizer, "policy": Policy()})
    (finding,) = _end(setup)
    assert finding.holds
    assert set(seen) == {5, 7}
    tokenizer.end_ids = (5,)
    (finding,) = _end(setup)
    assert not finding.holds


def stage_recipe(folder: Path, model: Path, stage: str, length: int, end: str) -> Path:
    """One stage that samples from the pretrained toy, whose answers end with ``end``."""
    gold = {"use": "python", "path": "reward.py"}
    sampling = {"max_new_tokens": length, "batch_size": 16}
    blocks: dict[str, dict[str, Any]] = {
        "ppo": {"use": "ppo_ptx", "reward": gold, "steps": 2, "rollout_batch": 8, "minibatch": 8},
        "collect": {
            "use": "collect",
            "completions": 3,
            "labeler": {"use": "scripted"} | {"reward": gold},
        },
        "best_of_n": {
            "use": "best_of_n",
            "split": "train",
            "gold": gold,
            "proxies": {"p": gold},
            "samples_per_prompt": 8,
        },
        "sft": {"use": "sft", "epochs": 4, "select_by": gold, "select_prompts": 8},
        "evaluate": {"use": "evaluate", "gold": gold, "samples_per_prompt": 4},
    }
    write_data(_made(folder))
    values: dict[str, Any] = {
        "name": "ends",
        "seed": 1,
        "model": {"use": "pretrained", "name": str(model), "end_tokens": [end]},
        "memory": {"use": "full", "dtype": "float32", "device": "cpu"},
        "data": {"prompts": {"use": "prompts", "path": "prompts.jsonl"}},
        "stages": {},
    }
    needs_sft = stage in ("sft", "evaluate")
    if needs_sft:
        values["data"]["demonstrations"] = {"use": "demonstrations", "path": "demonstrations.jsonl"}
    if stage == "sft":
        values["data"].pop("prompts")
    if stage == "evaluate":
        values["stages"]["sft"] = {"use": "sft", "epochs": 1}
        blocks["evaluate"] |= {"baseline": "sft", "candidates": {"same": "sft"}}
    values["stages"][stage] = blocks[stage] | {"sampling": sampling}
    path = folder / "ends.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that hardly ever writes <|im_start|>."""
    from transformers import AutoModelForCausalLM

    folder = write_toy_model("llama", tmp_path_factory.mktemp("models") / "silent")
    model = AutoModelForCausalLM.from_pretrained(folder)
    start = toy_tokenizer().convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        model.get_output_embeddings().weight *= 4
        model.get_output_embeddings().weight[start] = 0.0  # a logit of 0, far below the best
    model.save_pretrained(folder)
    return folder


STAGES = ("ppo", "collect", "best_of_n", "sft", "evaluate")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_that_samples_says_once_that_no_answer_ends(
    silent: Path, tmp_path: Path, stage: str
) -> None:
    recipe = stage_recipe(tmp_path / "project", silent, stage, 1, "<|im_start|>")
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = [line for line in done.output.splitlines() if "none of the first" in line]
    assert len(said) == (2 if stage == "evaluate" else 1), done.output  # of either policy
    for line in said:
        assert f"[{stage}] warning: none of the first " in line
        assert "ended within 1 tokens" in line
        assert "sampling.max_new_tokens" in line
        assert "model.end_tokens" in line


@pytest.mark.parametrize("stage", STAGES)
def test_and_nothing_where_some_do(toy_model: Path, tmp_path: Path, stage: str) -> None:
    recipe = stage_recipe(tmp_path / "project", toy_model, stage, 40, "<|im_end|>")
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "none of the first" not in done.output


def test_sft_and_collect_with_two_ends(tmp_path: Path) -> None:
    """The form of Gemma, end to end: trained on the template's end, stopped by either."""
    model = write_published("gemma", tmp_path / "model")
    path = write_toy_recipe(tmp_path / "project", model, "full")
    values = yaml.safe_load(path.read_text())
    stages = {name: values["stages"][name] for name in ("sft", "collect")}
    stages = merged(stages, {"collect": {"sampling": {"max_new_tokens": 24}}})
    values["stages"], values["data"] = (
        stages,
        {name: values["data"][name] for name in ("demonstrations", "prompts")},
    )
    hostile = {"prompt": "A <end_of_turn>?", "response": "No <eos> here.", "split": "train"}
    with (tmp_path / "project" / "demonstrations.jsonl").open("a") as file:
        file.write(json.dumps(hostile) + "\n")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    arguments = ["run", str(path), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    resolved = open_recipe(path)[0]
    context = StageContext(RunContext(resolved, tmp_path / "run"), "collect")
    tokenizer: Any = context.tokenizer
    ends = built("gemma").convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert tokenizer.end_ids == tuple(ends)
    for line in (tmp_path / "project" / "demonstrations.jsonl").read_text().splitlines():
        ids = tokenizer.response(json.loads(line)["response"])
        assert [id for id in ids if id in controls("gemma")] == [ends[0]]
    rows = (tmp_path / "run" / "stages" / "collect" / "comparisons.jsonl").read_text().splitlines()
    finished = [end for row in map(json.loads, rows) for end in row["finished"]]
    assert True in finished
    for row in map(json.loads, rows):
        for text, ended in zip(row["completions"], row["finished"], strict=True):
            ids = tokenizer.response(text, finished=ended)
            assert sum(id in ends for id in ids) == ended
    policy = context.memory().policy(tmp_path / "run" / "stages" / "sft", trainable=False)
    samples = respond(policy, prompts(tokenizer).repeat(64), 24)
    last = set()
    for row, mask, ended in zip(
        samples.response_tokens, samples.mask, samples.finished, strict=True
    ):
        answer = row[mask].tolist()
        assert sum(token in ends for token in answer) == int(ended)
        last.update(answer[-1:] if ended else [])
    assert last == set(ends)


def test_tokenizers_that_differ_in_their_ends_alone_are_told_apart() -> None:
    assert reading(chat("neox")) != reading(chat("neox", end_tokens=["<|padding|>"]))
    assert reading(chat("neox")) == reading(chat("neox", end_tokens=["<|endoftext|>"]))


STRANGE: tuple[Any, ...] = (
    -1, [-1], 10**30, 99_999, True, [True], "380", ["x"], 1.5, [[380]], {"a": 1},
)  # fmt: skip


@pytest.mark.parametrize("value", STRANGE, ids=repr)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_is_no_token_in_a_config_is_left_out_and_said(
    tmp_path: Path, file: str, value: Any
) -> None:
    folder = write_published("neox", tmp_path)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {"eos_token_id": value}))
    try:
        AutoConfig.from_pretrained(folder)
    except Exception:
        with pytest.raises(RecipeError, match="model"):  # transformers refuses it, and that is said
            opened(folder)
        return
    with pytest.warns(UserWarning, match=r"ends responses with token .*not in its tokenizer"):
        assert opened(folder).end_ids == (380,)


@pytest.mark.parametrize("content", ["[]", "[1]", "3", "null", '"x"', "{", ""])
def test_a_generation_config_that_is_none_adds_nothing(tmp_path: Path, content: str) -> None:
    folder = write_published("neox", tmp_path)
    (folder / "generation_config.json").write_text(content)
    assert opened(folder).end_ids == (380,)
