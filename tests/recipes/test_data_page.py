"""The page about data tells the truth: its rows are read, its messages are said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rlhf_kit_data.layout import part_name
from rlhf_kit_data.options import JsonlOptions
from rlhf_kit_data.sources import Comparisons, Demonstrations, Jsonl, Prompts

from rlhf_kit.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()


def block(name: str) -> str:
    found = re.findall(rf"```{name}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1, name
    return str(found[0])


@pytest.mark.parametrize("source", [Prompts, Demonstrations, Comparisons])
def test_the_rows_of_the_page(tmp_path: Path, source: type[Jsonl]) -> None:
    text = block(f"jsonl {source.kind}")
    rows = [json.loads(line) for line in text.splitlines()]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "split": "test"}) + "\n" for row in rows)
    )
    found = source(JsonlOptions(path=tmp_path / "rows.jsonl")).split("test")
    assert list(found) == [{**row, "split": "test"} for row in rows]
    (tmp_path / "rows.jsonl").write_text(text)
    kept = source(JsonlOptions(path=tmp_path / "rows.jsonl"))
    total = 0
    for name in ("train", "validation", "test"):
        try:
            total += len(kept.split(name))
        except DataError as error:
            assert "no rows of split" in str(error)
    assert total == len(rows)


def test_the_message_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Q{i}"} for i in range(1, 10)]
    rows[1] = {"prompt": "Who?", "split": "train"}
    rows[8] = {"prompt": "who? ", "split": "test"}
    Path("data").mkdir()
    Path("data/p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        Prompts(JsonlOptions(path=Path("data/p.jsonl"))).split("train")
    assert str(caught.value) == block("text").strip()


def test_the_layout_of_the_page() -> None:
    lines = [line.split() for line in block("text layout").splitlines()]
    assert {path: part_name(path, path) for path, _ in lines} == {p: split for p, split in lines}
    with pytest.raises(DataError, match="rename it"):
        part_name("test/train-0.parquet", "somewhere")
