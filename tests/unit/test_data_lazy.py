"""Building a source reads nothing, and a fingerprint reads no rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import comparisons, demonstrations, prompts, write_lines
from rlhf_kit_data.options import CollectedOptions, HHOptions, OasstOptions, TextOptions
from rlhf_kit_data.published import HHRLHF, Oasst
from rlhf_kit_data.running_text import RunningText
from rlhf_kit_data.sources import Collected

from rlhf_kit import StageRef
from rlhf_kit.errors import DataError, RecipeError


class Artifacts:
    """The part of a context that a source asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def artifact(self, ref: StageRef) -> Path:
        return self._folder


def collected(path: Path, **ref: Any) -> Collected:
    options = CollectedOptions(start=StageRef(**ref))
    return Collected(options, Artifacts(path.parent))  # type: ignore[arg-type]


def text(path: Path) -> RunningText:
    return RunningText(TextOptions(path=path))


MAKERS: dict[str, Callable[[Path], Any]] = {
    "prompts": prompts,
    "demonstrations": demonstrations,
    "comparisons": comparisons,
    "collected": lambda path: collected(path, folder=path.parent),
    "text": text,
    "hh_rlhf": lambda path: HHRLHF(HHOptions(source=path)),
    "oasst": lambda path: Oasst(OasstOptions(source=path)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_building_and_fingerprint_read_no_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "comparisons.jsonl"
    source = MAKERS[kind](path)
    assert source.ready
    with pytest.raises(DataError, match=r"comparisons\.jsonl: "):
        source.fingerprint()
    path.write_bytes(b"neither JSON nor \xff text\n")
    first = source.fingerprint()
    assert MAKERS[kind](path).fingerprint() == first
    with pytest.raises(DataError, match=r"comparisons\.jsonl"):
        source.split("train")
    path.write_bytes(b"neither JSON nor \xfe text\n")
    assert MAKERS[kind](path).fingerprint() != first


def test_a_file_is_read_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "split": ("train", "test")[i % 2]} for i in range(4)]
    path = write_lines(tmp_path / "p.jsonl", rows)
    source = prompts(path)
    train = source.split("train")
    path.unlink()
    assert list(source.split("test")) == rows[1::2]
    assert source.split("train") is train


def test_what_a_stage_will_write_is_neither_read_nor_hashed(tmp_path: Path) -> None:
    source = collected(tmp_path / "comparisons.jsonl", stage="collect")
    assert not source.ready
    before = source.fingerprint()
    row = {"prompt": "A?", "completions": ["a", "b"], "ranks": [0, 1], "split": "train"}
    write_lines(tmp_path / "comparisons.jsonl", [row])
    assert source.fingerprint() == before
    assert list(source.split("train")) == [row]
    again = row | {"prompt": "B?"}
    write_lines(tmp_path / "comparisons.jsonl", [again])
    assert list(source.split("train")) == [again]


def pairs(word: str) -> list[dict[str, str]]:
    begin = f"\n\nHuman: {word}\n\nAssistant: "
    return [{"chosen": begin + "Yes.", "rejected": begin + "No."}]


def test_the_fingerprint_of_a_folder(tmp_path: Path) -> None:
    """Every file counts, with its path below the folder; the folder's own place does not."""

    def now(place: str = "one", **options: Any) -> str:
        return HHRLHF(HHOptions(source=tmp_path / place, **options)).fingerprint()

    write_lines(tmp_path / "one/a/train.jsonl", pairs("A?"))
    write_lines(tmp_path / "one/b/train.jsonl", pairs("B?"))
    first = now()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert now("two") == first
    (tmp_path / "one/notes.md").write_text("not read")
    assert now() == first
    seen = {first, now(validation_fraction=0.3), now(limit=1), now(data_dir="a")}
    write_lines(tmp_path / "one/b/train.jsonl", pairs("C?"))
    seen.add(now())
    (tmp_path / "one/b/train.jsonl").rename(tmp_path / "one/b/test.jsonl")
    seen.add(now())
    (tmp_path / "one/a/train.jsonl").unlink()
    seen.add(now())
    assert len(seen) == 7


def test_the_fingerprint_of_a_module_is_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set()
    for i, body in enumerate(
        (
            "topics = {'a': 'xy', 'b': 'z'}",
            "topics = {'a': 'x', 'b': 'yz'}",
            "topics = {'ab': 'xy', '': 'z'}",
            "topics = dict(a='xy', b='z')  # the same",
        )
    ):
        (tmp_path / f"some_topics_{i}.py").write_text(body + "\n")
        found.add(RunningText(TextOptions(module=f"some_topics_{i}")).fingerprint())
    assert len(found) == 3
    with pytest.raises(RecipeError, match="module 'nowhere_topics' with a dict `topics`"):
        RunningText(TextOptions(module="nowhere_topics")).fingerprint()
