"""Values that would fail or be lost later are refused with their line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from data_files import by_split, comparisons, prompts, write_lines
from rlhf_kit_data.options import HHOptions, OasstOptions, TextOptions
from rlhf_kit_data.published import HHRLHF, Oasst
from rlhf_kit_data.running_text import RunningText
from toys import write_toy_recipe

from rlhf_kit.cli.main import main
from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import DataError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.stagekit.batches import read_comparisons

ROOT = Path(__file__).parents[2]
BOM = b"\xef\xbb\xbf"


def ranked(number: int, split: str, ranks: list[int], **more: Any) -> dict[str, Any]:
    answers = {"completions": ["a b", "c d"], "ranks": ranks}
    return {"prompt": f"Q{number}", **answers, "split": split, **more}


@pytest.mark.parametrize(("split", "other"), [("train", "validation"), ("validation", "train")])
def test_a_split_of_ties(tmp_path: Path, split: str, other: str) -> None:
    rows = [ranked(i, split, [0, 0]) for i in range(4)]
    rows += [ranked(9 + i, other, [0, 1]) for i in range(4)]
    path = write_lines(tmp_path / "c.jsonl", rows)
    with pytest.raises(DataError) as caught:
        comparisons(path).split(other)
    assert str(caught.value).startswith(f"{path}: no row of split {split!r} ranks one completion")
    write_lines(path, [*rows, ranked(20, split, [1, 0])])
    assert len(comparisons(path).split(split)) == 5


def test_a_test_split_of_ties_is_read(tmp_path: Path) -> None:
    rows = [ranked(0, "train", [0, 1]), ranked(1, "test", [2, 2])]
    assert len(comparisons(write_lines(tmp_path / "c.jsonl", rows)).split("test")) == 1


def message(name: str, parent: str | None, rank: int | None = None) -> dict[str, Any]:
    role = "prompter" if parent is None else "assistant"
    return {"message_id": name, "parent_id": parent, "text": name, "role": role, "rank": rank}


def trees(count: int, ranks: tuple[int, int]) -> list[dict[str, Any]]:
    return [
        one
        for i in range(count)
        for one in (
            message(f"q{i}{ranks}", None),
            *(message(f"q{i}{ranks}{j}", f"q{i}{ranks}", rank) for j, rank in enumerate(ranks)),
        )
    ]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_published_trees_of_which_a_split_is_ties(tmp_path: Path, split: str) -> None:
    for name in ("train", "validation"):
        ranks = (3, 3) if name == split else (0, 1)
        write_lines(tmp_path / f"{name}.jsonl", trees(4, ranks))
    with pytest.raises(DataError, match=f"no row of split '{split}' ranks one completion above"):
        by_split(Oasst(OasstOptions(source=tmp_path)))
    recipe = ROOT / "recipes/reward-model-oasst.yaml"
    result = CliRunner().invoke(main, ["check", str(recipe), f"data.comparisons.source={tmp_path}"])
    assert result.exit_code == 3
    assert f"no row of split '{split}' ranks" in result.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ranks": [0, 2**31]}, "ranks.1: Input should be less than 2147483648"),
        ({"ranks": [0, 10**20]}, "ranks.1: Input should be"),
        (
            {"scores": [10**300, 1]},
            "scores.0: Input should be less than or equal to 34028234663852",
        ),
        (
            {"scores": [1, -1e39]},
            "scores.1: Input should be greater than or equal to -34028234663852",
        ),
        ({"scores": [10**400, 1]}, "scores.0: Input should be"),
    ],
)
def test_numbers_that_a_tensor_does_not_hold(
    tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{**ranked(0, "train", [0, 1]), **more}])
    with pytest.raises(DataError) as caught:
        comparisons(path).split("train")
    assert str(caught.value).startswith(f"{path}:1: {says}")


def test_the_largest_numbers_that_a_tensor_holds(tmp_path: Path, toy_model: Path) -> None:
    """Whole numbers too, which a tensor of integers would not hold."""
    largest = torch.finfo(torch.float32).max
    rows = [
        ranked(0, "train", [0, 2**31 - 1], scores=[largest, -largest]),
        ranked(1, "train", [1, 0], scores=[10**38, 1]),
    ]
    found = comparisons(write_lines(tmp_path / "c.jsonl", rows)).split("train")
    assert list(found) == rows
    resolved, _, _ = open_recipe(write_toy_recipe(tmp_path / "project", toy_model, "full"))
    tokenizer = StageContext(RunContext(resolved, tmp_path / "run"), "reward_model").tokenizer
    batch = read_comparisons(found, tokenizer).select(torch.arange(2))
    assert batch.ranks.tolist() == [[0, 2**31 - 1], [1, 0]]
    assert batch.gold is not None
    assert torch.equal(batch.gold, torch.tensor([[largest, -largest], [1e38, 1.0]]))


def test_a_rank_of_a_tree_that_a_tensor_does_not_hold(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", trees(1, (0, 10**20)))
    with pytest.raises(DataError, match=r"o\.jsonl:3: rank: Input should be"):
        by_split(Oasst(OasstOptions(source=path)))


def test_trees_without_a_root(tmp_path: Path) -> None:
    circle = [message("a", "b"), {**message("b", "a"), "role": "prompter"}]
    below = message("c", "b", 0)
    path = write_lines(tmp_path / "o.jsonl", [*trees(9, (0, 1)), below, *circle])
    with pytest.raises(DataError) as caught:
        by_split(Oasst(OasstOptions(source=path)))
    assert str(caught.value) == f"{path}:30: parent_id: b is a reply to its own replies"


# Text and JSON


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(BOM + b"Hello.\r\n")
    rows = [
        row for found in by_split(RunningText(TextOptions(path=path))).values() for row in found
    ]
    assert rows == [{"text": "Hello.\n"}]


def test_an_empty_line_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(BOM + b'\r\n{"prompt": "b", "split": "train"}\r\n')
    assert list(prompts(path).split("train")) == [{"prompt": "b", "split": "train"}]
    path.write_bytes(BOM)
    with pytest.raises(DataError, match=r"p\.jsonl: the file has no rows"):
        prompts(path).split("train")


@pytest.mark.parametrize("number", ["1e-400", "-0.001E-9999", "12.5e-500"])
def test_numbers_that_would_become_zero(tmp_path: Path, number: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "b", "x": {number}}}\n')
    with pytest.raises(DataError) as caught:
        prompts(path).split("train")
    assert f"{path}:1: not valid JSON: {number} is out of the range" in str(caught.value)


def test_zeros_and_the_smallest_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "b", "split": "train", "x": [0.0, -0.0, 0e5, 0.00E-12, 5e-324]}\n')
    found = prompts(path).split("train")[0]["x"]
    assert found == [0.0, 0.0, 0.0, 0.0, 5e-324]
    assert math.copysign(1, found[1]) == -1


@pytest.mark.parametrize(
    "other",
    [
        "cafe\u0301 fi?",
        "caf\u00e9\u200b fi?",
        "\ufeffcaf\u00e9 fi?",
        "ca\u00adf\u00e9 \u2060fi?",
        "caf\u00e9 \ufb01?",
        "CAFE\u0301\u00a0FI\uff1f",
        "\uff43\uff41f\u00e9\u3000fi?",
        "cafe\u200b\u0301 fi?",
    ],
)
def test_forms_of_letters_and_what_is_not_seen(tmp_path: Path, other: str) -> None:
    rows = [{"prompt": "caf\u00e9 fi?", "split": "train"}, {"prompt": other, "split": "test"}]
    path = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="begins with the same question and is in 'train'"):
        prompts(path).split("train")
    rows[1].pop("split")
    assert list(prompts(write_lines(path, rows)).split("train")) == rows


@pytest.mark.parametrize(
    "other", ["cafe fi?", "caf\u00e8 fi?", "caf\u00e9 fi!", "c\u0430f\u00e9 fi?"]
)
def test_other_letters_are_other_questions(tmp_path: Path, other: str) -> None:
    rows = [{"prompt": "caf\u00e9 fi?", "split": "train"}, {"prompt": other, "split": "test"}]
    assert len(prompts(write_lines(tmp_path / "p.jsonl", rows)).split("test")) == 1


# Files that are there and cannot be read


def test_a_file_that_the_system_does_not_read(tmp_path: Path) -> None:
    """Nobody may read the beginning of a process's memory, whoever runs the tests."""
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("no /proc")
    for name in ("p.jsonl", "p.jsonl.gz", "p.txt"):
        (tmp_path / name).symlink_to(memory)
    reads: dict[str, Any] = {
        "p.jsonl": lambda path: prompts(path).split("train"),
        "p.jsonl.gz": lambda path: by_split(HHRLHF(HHOptions(source=path))),
        "p.txt": lambda path: RunningText(TextOptions(path=path)).split("train"),
    }
    for name, read in reads.items():
        path = tmp_path / name
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: cannot be read: Input/output error"


def test_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 100 + ".jsonl")
    for read in (prompts, lambda path: HHRLHF(HHOptions(source=path))):
        with pytest.raises(DataError) as caught:
            by_split(read(path))
        assert str(caught.value) == f"{path}: cannot be read: File name too long"
    recipe = ROOT / "recipes/reward-model-oasst.yaml"
    result = CliRunner().invoke(main, ["check", str(recipe), f"data.comparisons.source={path}"])
    assert (result.exit_code, result.stderr.count("it is too long")) == (2, 1)


def test_the_recipes_data_state_their_splits() -> None:
    """So that no rule for equal questions moves them."""
    folder = ROOT / "recipes/data"
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows
        assert all(row["split"] in ("train", "validation", "test") for row in rows), path
