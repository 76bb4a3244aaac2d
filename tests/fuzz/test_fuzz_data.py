"""Rows that were changed at random: a line that says what is wrong, or tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from odd import WORDS, at, paths, values
from rlhf_kit_data.options import HHOptions, OasstOptions
from rlhf_kit_data.project import read_placed
from rlhf_kit_data.rankings import local_rankings
from rlhf_kit_hf.options import TextOptions
from rlhf_kit_hf.tokenizer import ChatTokenizer
from toys import toy_tokenizer

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.stagekit.batches import answered, read_comparisons
from rlhf_kit.stagekit.prompts import PromptSet

pytestmark = pytest.mark.fuzz
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts": [
        {"prompt": "Hi", "split": "train", "id": "a"},
        {"messages": MESSAGES},
        {"token_ids": [1, 2, 3]},
    ],
    "demonstrations": [{"prompt": "Hi", "response": "Hello"}],
    "comparisons": [
        {
            "prompt": "Hi",
            "completions": ["x", "y", "z"],
            "ranks": [0, 1, None],
            "scores": [0.5, 0.25, 0.0],
            "finished": [True, False, True],
        }
    ],
}
REPLIES = [{"text": t, "role": "assistant", "rank": r, "lang": "en"} for r, t in enumerate("xy")]
PUBLISHED: dict[str, tuple[type, dict[str, Any]]] = {
    "hh_rlhf": (HHOptions, {
        "chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c",
    }),
    "oasst": (OasstOptions, {"prompt": {"text": "a", "role": "prompter", "replies": REPLIES}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(toy_tokenizer(), TextOptions(), 256)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "rows.jsonl"


def changed(row: dict[str, Any], data: st.DataObject) -> bytes:
    row = json.loads(json.dumps(row))
    for _ in range(data.draw(st.integers(0, 2))):
        *above, key = data.draw(st.sampled_from(paths(row) or [("prompt",)]))
        owner = at(row, tuple(above))
        if data.draw(st.booleans()) or key not in owner:
            owner[key] = data.draw(values)
        elif isinstance(owner, dict) and data.draw(st.booleans()):
            owner[data.draw(st.sampled_from(WORDS))] = owner.pop(key)
        else:
            del owner[key]
    text = json.dumps(row, default=str, ensure_ascii=data.draw(st.booleans()))
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.sampled_from((0, 0, 0, 1, 2)))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("kind", sorted(ROWS))
@given(data=st.data())
def test_own_rows(kind: str, file: Path, tokenizer: ChatTokenizer, data: st.DataObject) -> None:
    rows = [changed(data.draw(st.sampled_from(ROWS[kind])), data) for _ in range(2)]
    file.write_bytes(b"\n".join(rows) + b"\n")
    try:
        found = [json.loads(text) for _, _, text in read_placed(file, kind).rows]
        # What is accepted becomes tensors, or is refused for its length or its control tokens.
        prompts = PromptSet.of(found, tokenizer)
        if kind == "demonstrations":
            answered(prompts, ((row["response"], True) for row in found), tokenizer)
        if kind == "comparisons":
            read = read_comparisons(found, tokenizer)
            assert read.gold is None or bool(read.gold.isfinite().all())
    except RlhfKitError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("form", sorted(PUBLISHED))
@given(data=st.data())
def test_published_rows(form: str, file: Path, data: st.DataObject) -> None:
    options, row = PUBLISHED[form]
    file.write_bytes(b"\n".join(changed(row, data) for _ in range(2)) + b"\n")
    try:
        assert local_rankings(form, options(source=file)).rows
    except RlhfKitError as error:
        assert len(str(error).splitlines()) == 1
