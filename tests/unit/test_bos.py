"""The beginning of a sequence: where the model's own tokenizer puts one, never twice."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from published_tokenizers import BY_NAME, CONTEXT, FORMS, built, chat, write_published
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.tokenizer import ChatTokenizer, reading
from rlhf_kit_hf.trained_reward import TrainedReward
from tokenizers import processors
from toys import prompts, respond, toy_tokenizer
from transformers import AutoModelForCausalLM

from rlhf_kit.stagekit.left_out import LeftOut

batches: Any = importlib.import_module("rlhf_kit.stagekit.batches")
WITH = [form.name for form in FORMS if form.begin is not None]
WITHOUT = [form.name for form in FORMS if form.begin is None]
ROWS: list[dict[str, Any]] = [
    {"prompt": "Tell me of tea."},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Why?"},
        ]
    },
]


@pytest.mark.parametrize("name", WITH)
def test_prompts_begin_as_the_model_was_trained(name: str) -> None:
    """OPT, Llama base and Zephyr have no template that writes it, the others one that does."""
    begin = built(name).convert_tokens_to_ids(BY_NAME[name].begin)
    for row in ROWS:
        ids = chat(name).prompt(row)
        assert ids[0] == begin
        assert ids[1] != begin
    assert chat(name).begin_ids == (begin,)
    assert begin not in chat(name).text("Tea.")
    assert chat(name).response("Tea.")[0] != begin


@pytest.mark.parametrize("name", WITHOUT)
def test_models_without_one_get_none(name: str) -> None:
    """The second half has a token called so, which its models never saw there."""
    hf = built(name)
    assert chat(name).begin_ids == ()
    for row in ROWS:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        if hf.chat_template is None:
            whole = "\n\n".join(m["content"] for m in messages) + "\n\n"
        else:
            whole = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat(name).prompt(row) == hf(whole, add_special_tokens=False)["input_ids"]


def test_a_beginning_of_two_tokens() -> None:
    hf = toy_tokenizer()
    pair = ["<|pad|>", "<|im_start|>"]
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*pair, "$A"]),
        special_tokens=[(token, hf.convert_tokens_to_ids(token)) for token in pair],
    )
    tokenizer = ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)
    assert tokenizer.begin_ids == tuple(hf.convert_tokens_to_ids(pair))
    assert tokenizer.prompt({"prompt": "x"})[:3] == [*tokenizer.begin_ids, tokenizer.begin_ids[1]]


@pytest.mark.parametrize("name", [form.name for form in FORMS])
def test_every_block_of_running_text_begins_so(name: str) -> None:
    tokenizer, hf = chat(name), built(name)
    rows = [{"text": "tell me of tea, of rain, of the moon. " * 3}, {"text": "end and begin " * 9}]
    blocks = batches.text_blocks(rows, tokenizer, 16, LeftOut(), "train")
    begin = list(tokenizer.begin_ids)
    inner: list[int] = []
    batch = blocks.select(torch.arange(len(blocks)))
    for block in batch.tokens.tolist():
        assert len(block) == 16
        assert block[: len(begin)] == begin
        # Where the separator begins sequences, too, it may be the one or the other.
        assert begin == [] or begin != block[len(begin) : 2 * len(begin)]
        inner += block[len(begin) :]
    assert batch.target.sum() == len(blocks) * 15
    separator = hf.eos_token_id
    said = [hf(row["text"], add_special_tokens=False)["input_ids"] for row in rows]
    stream = [*said[0], separator, *said[1], separator]
    if begin != [separator]:
        assert inner == stream[: len(inner)]
        assert len(stream) - len(inner) < 16
    else:
        assert [t for t in inner if t != separator] == [t for t in stream if t != separator][
            : len(inner) - inner.count(separator)
        ]


def test_a_block_that_starts_at_a_separator_does_not_write_it_twice() -> None:
    tokenizer = SimpleNamespace(
        text=lambda text: [int(c) for c in text],
        separator_id=2,
        begin_ids=(2,),
        max_length=99,
        pad_id=0,
    )
    blocks = batches.text_blocks(
        [{"text": "3456"}, {"text": "378"}], tokenizer, 5, LeftOut(), "train"
    )
    assert [blocks.tokens[i] for i in range(2)] == [[2, 3, 4, 5, 6], [2, 3, 7, 8, 2]]


def test_perplexity_is_of_blocks_with_the_beginning(tmp_path: Path) -> None:
    from rlhf_kit.context import RunContext, StageContext
    from rlhf_kit.stagekit.perplexity import perplexity

    folder = write_published("gemma", tmp_path / "model")
    context = StageContext(RunContext(_recipe(tmp_path, folder), tmp_path / "run"), "sft")
    tokenizer = context.tokenizer
    text = "tell me of tea, of rain, of the moon and of the hill " * 2
    blocks = batches.text_blocks([{"text": text}], tokenizer, 16, LeftOut(), "train")
    found = perplexity(context.memory().policy(None), blocks)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = built("gemma")(text, add_special_tokens=False)["input_ids"]
    total = count = 0.0
    for i in range(len(blocks)):
        block = torch.tensor([[2, *ids[15 * i : 15 * (i + 1)]]])  # 2 is <bos>
        with torch.no_grad():
            logprobs = model(block).logits[0, :-1].double().log_softmax(-1)
        total -= logprobs.gather(1, block[0, 1:, None]).sum().item()
        count += 15
    assert found == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_reward_model_reads_it_too(tmp_path: Path) -> None:
    """On another backbone it reads text, in tokens of its own, which begin as its own do."""
    folder = write_published("gemma", tmp_path / "model")
    from rlhf_kit.context import RunContext, StageContext

    context = StageContext(RunContext(_recipe(tmp_path, folder), tmp_path / "run"), "sft")
    asked = prompts(context.tokenizer)
    samples = respond(context.memory().policy(None), asked, 5)
    reward: Any = TrainedReward.__new__(TrainedReward)
    reward._start, reward._context = None, context
    texts = reward._texts(samples)
    assert (texts.tokens[:, 0] == 2).all()
    assert (texts.tokens[:, 1] != 2).all()


def _recipe(folder: Path, model: Path) -> Any:
    from toy_runs import one_stage

    from rlhf_kit.recipe import open_recipe

    path = one_stage(folder / "project", model, "sft", memory="full")
    return open_recipe(path)[0]


def test_tokenizers_that_differ_in_it_alone_are_told_apart() -> None:
    hf = toy_tokenizer()
    plain = reading(ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT))
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", hf.convert_tokens_to_ids("<|pad|>"))]
    )
    assert reading(ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)) != plain


TURNS = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@pytest.mark.parametrize("before", ["\n", "  ", "\n\n  \n", ""])
def test_a_template_that_writes_it_behind_a_line_break(before: str, tmp_path: Path) -> None:
    """Also one that is read from a file that begins with a byte order mark."""
    begin = built("mistral").convert_tokens_to_ids("<s>")
    for mark in ("", "\ufeff"):
        path = tmp_path / "own.jinja"
        path.write_text(mark + before + "{{ bos_token }}" + TURNS, encoding="utf-8")
        tokenizer = chat("mistral", chat_template=path)
        assert tokenizer.prompt({"prompt": "Hi"}).count(begin) == 1
        # Content that says it is no beginning.
        path.write_text(mark + before + TURNS.replace("[INST] ", ""), encoding="utf-8")
        for said in ("Hi", "<s>Hi", " <s>"):
            ids = chat("mistral", chat_template=path).prompt({"prompt": said})
            assert ids[0] == begin
            assert ids.count(begin) == 1


def test_a_template_that_writes_the_first_of_two() -> None:
    hf = toy_tokenizer()
    pair = ["<|pad|>", "<|im_start|>"]
    ids = hf.convert_tokens_to_ids(pair)
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*pair, "$A"]), special_tokens=list(zip(pair, ids, strict=True))
    )
    hf.chat_template = "<|pad|>" + TURNS
    tokenizer = ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)
    assert tokenizer.begin_ids == tuple(ids)
    assert [t for t in tokenizer.prompt({"prompt": "x"}) if t in ids] == ids[:1]


def test_the_end_of_a_system_message_is_no_beginning() -> None:
    """OPT begins sequences with what ends them."""
    hf = BY_NAME["opt"].build()
    hf.chat_template = "Be kind.{{ eos_token }}" + TURNS
    tokenizer = ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)
    ids = tokenizer.prompt({"prompt": "Hi"})
    assert ids[0] == hf.eos_token_id
    assert ids.count(hf.eos_token_id) == 2
