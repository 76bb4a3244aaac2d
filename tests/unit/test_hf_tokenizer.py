"""Text to tokens: templates, ends, and a padding token that may be the end itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from rlhf_kit_hf.tokenizer import ChatTokenizer
from toys import CONTEXT, toy_tokenizer, write_toy_model
from transformers import AutoTokenizer, LlamaConfig

from rlhf_kit.errors import RecipeError
from rlhf_kit.types import TextBatch


def tokenizer(folder: Path, **options: Any) -> ChatTokenizer:
    return PretrainedSource(PretrainedOptions(name=str(folder), **options)).tokenizer()


def test_prompt_is_the_template_up_to_the_answer(toy_model: Path) -> None:
    chat = tokenizer(toy_model)
    plain = toy_tokenizer()
    expected = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    assert plain.decode(chat.prompt({"prompt": "Hi there"})) == expected
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = plain.decode(chat.prompt({"messages": turns}))
    assert text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_of_the_template_are_tokens(toy_model: Path) -> None:
    ids = tokenizer(toy_model).prompt({"prompt": "x"})
    start, end = toy_tokenizer().convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids.count(start) == 2
    assert ids.count(end) == 1


def test_system_message(toy_model: Path) -> None:
    chat = tokenizer(toy_model, system="Be brief.")
    text = toy_tokenizer().decode(chat.prompt({"prompt": "x"}))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx")
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "x"}]
    text = toy_tokenizer().decode(chat.prompt({"messages": own}))
    assert "Be brief" not in text
    assert "Mine." in text


def test_template_from_a_file(toy_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("Q: {{ messages[0].content }} A:")
    chat = tokenizer(toy_model, chat_template=path)
    assert toy_tokenizer().decode(chat.prompt({"prompt": "x"})) == "Q: x A:"


def test_without_a_template_text_is_continued(toy_model: Path) -> None:
    plain = toy_tokenizer()
    plain.chat_template = None
    chat = ChatTokenizer(plain, PretrainedOptions(name="x"), CONTEXT)
    assert plain.decode(chat.prompt({"prompt": "Once"})) == "Once\n\n"


def test_response_ends_where_it_should(toy_model: Path) -> None:
    chat = tokenizer(toy_model)
    whole = chat.response("Fine.")
    assert whole[-1] == chat.eos_id
    assert chat.response("Fine.", finished=False) == whole[:-1]
    assert chat.decode(whole) == "Fine."
    assert chat.decode([chat.pad_id, *chat.text("  naïve ☕ "), chat.eos_id]) == "naïve ☕"


def test_context_length(toy_model: Path) -> None:
    assert tokenizer(toy_model).max_length == CONTEXT
    assert tokenizer(toy_model, max_length=99).max_length == 99


def test_no_end_token_is_refused(toy_model: Path) -> None:
    plain = toy_tokenizer()
    plain.eos_token = plain.chat_template = None
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        ChatTokenizer(plain, PretrainedOptions(name="x"), None)


def answered(pairs: list[tuple[Any, str, bool]], chat: ChatTokenizer) -> TextBatch:
    """Prompts with responses (row, text, finished), in one batch."""
    batches = importlib.import_module("rlhf_kit.stagekit.batches")
    prompts = importlib.import_module("rlhf_kit.stagekit.prompts").PromptSet
    rows = [row for row, _, _ in pairs]
    answers = [(text, finished) for _, text, finished in pairs]
    texts = batches.answered(prompts.of(rows, chat), answers, chat)
    found: TextBatch = texts.select(torch.arange(len(texts)))
    return found


def test_where_padding_is_the_end_the_end_is_still_learned(tmp_path: Path) -> None:
    """Labels that compare with the padding token lose every end; the model then never stops."""
    folder = write_toy_model("llama", tmp_path)
    plain = AutoTokenizer.from_pretrained(folder)
    plain.pad_token = plain.eos_token
    chat = ChatTokenizer(plain, PretrainedOptions(name=str(folder)), CONTEXT)
    assert chat.pad_id == chat.eos_id
    pairs = [({"prompt": "a"}, "Yes.", True), ({"prompt": "a longer one"}, "No, not ever.", True)]
    batch = answered(pairs, chat)
    for i, (row, text, _) in enumerate(pairs):
        learned = batch.tokens[i][1:][batch.predicted[i]].tolist()
        assert learned == [*chat.text(text), chat.eos_id]
        assert batch.mask[i].sum() == len(chat.prompt(row)) + len(learned)
    assert not batch.predicted[0].all()  # the first row is really padded


def test_unfinished_completions_do_not_teach_an_end(toy_model: Path) -> None:
    chat = tokenizer(toy_model)
    batch = answered([({"prompt": "a"}, "cut o", False)], chat)
    assert batch.tokens[0][1:][batch.predicted[0]].tolist() == chat.text("cut o")


@pytest.mark.parametrize("missing", ["config.json", "everything"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, missing: str) -> None:
    if missing == "config.json":
        toy_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"model\.name: cannot load .*; give a hub id"):
        tokenizer(tmp_path)


def test_reading_the_tokenizer_needs_no_weights(tmp_path: Path) -> None:
    toy_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(max_position_embeddings=77).save_pretrained(tmp_path)
    assert tokenizer(tmp_path).max_length == 77
    with pytest.raises(RecipeError, match="holds no weights"):
        PretrainedSource(PretrainedOptions(name=str(tmp_path))).load(torch.float32)
