"""The splits of a source are named by its files and by the folders below it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from data_files import by_split, write_lines
from rlhf_kit_data.layout import part_name
from rlhf_kit_data.options import HHOptions
from rlhf_kit_data.published import HHRLHF

from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError

RECIPE = Path(__file__).parents[2] / "recipes/reward-model-hh.yaml"


def pairs(name: str, count: int = 3) -> list[dict[str, str]]:
    begin = "\n\nHuman: {} {}?\n\nAssistant: "
    return [
        {"chosen": begin.format(name, i) + "Yes.", "rejected": begin.format(name, i) + "No."}
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)


def asked(folder: Path, **options: Any) -> dict[str, set[str]]:
    """The first words of the questions of each split."""
    splits = by_split(HHRLHF(HHOptions(source=folder, **options)))
    return {
        name: {row["messages"][0]["content"].split()[0] for row in rows}
        for name, rows in splits.items()
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train/part-0.parquet", "validation/part-0.parquet", "test/part-0.parquet"),
        ("train/0.jsonl", "dev/0.jsonl", "eval/0.jsonl"),
        ("Training/a.jsonl.gz", "VAL/a.jsonl.gz", "Testing/a.jsonl.gz"),
        ("all/train/x/a.jsonl", "all/valid/x/a.jsonl", "all/evaluation/x/a.jsonl"),
        # The layouts of the hub.
        (
            "data/train-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
            "data/test-00000-of-00001.parquet",
        ),
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("a/train.jsonl.gz", "a/dev.jsonl.gz", "b/test.jsonl.gz"),
        ("train_prefs/0.jsonl", "my-validation 2/0.jsonl", "test_prefs/0.jsonl"),
        ("train/train-0.jsonl", "validation/val.jsonl", "test/eval_1.jsonl"),
    ],
    ids=lambda names: names[0],
)
def test_folders_and_files_name_the_split(tmp_path: Path, names: Sequence[str]) -> None:
    """In a folder that is itself below one called test."""
    source = tmp_path / "test" / "mine"
    for name, word in zip(names, ("Learn", "Tune", "Hold"), strict=True):
        write(source / name, pairs(word))
    assert asked(source) == {"train": {"Learn"}, "validation": {"Tune"}, "test": {"Hold"}}


def test_words_that_only_contain_a_split(tmp_path: Path) -> None:
    for name in ("latest", "developers", "contest/a", "retrained", "evaluator"):
        assert part_name(name, name) == "train"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("test/train-0.jsonl", "'test' (test) and 'train' (train)"),
        ("train/a/val.jsonl", "'train' (train) and 'val' (validation)"),
        ("x/train_test.jsonl", "'train' (train) and 'test' (test)"),
    ],
)
def test_a_path_that_says_two_splits(tmp_path: Path, name: str, says: str) -> None:
    write(tmp_path / "ok/train.jsonl", pairs("Learn"))
    write(tmp_path / name, pairs("Hold"))
    where = tmp_path / name
    with pytest.raises(DataError) as caught:
        asked(tmp_path)
    assert str(caught.value).startswith(f"{where}: its name says {says}; rename it")
    result = CliRunner().invoke(main, ["check", str(RECIPE), f"data.comparisons.source={tmp_path}"])
    assert result.exit_code == 3
    assert says in result.stderr


def test_the_splits_below_data_dir(tmp_path: Path) -> None:
    write(tmp_path / "helpful/train/0.jsonl", pairs("Learn"))
    write(tmp_path / "helpful/validation/0.jsonl", pairs("Tune"))
    write(tmp_path / "helpful/test/0.jsonl", pairs("Hold"))
    write(tmp_path / "other/train.jsonl", pairs("Other"))
    found = asked(tmp_path, data_dir="helpful")
    assert found == {"train": {"Learn"}, "validation": {"Tune"}, "test": {"Hold"}}


def test_held_out_parts_without_a_train_part_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "validation/0.jsonl", pairs("Tune"))
    write(tmp_path / "test/0.jsonl", pairs("Hold"))
    assert asked(tmp_path) == {"train": set(), "validation": {"Tune"}, "test": {"Hold"}}


def test_a_test_part_is_not_trained_on_because_all_train_rows_are_too_long(
    tmp_path: Path,
) -> None:
    write(tmp_path / "train/0.jsonl", pairs("Learn" + "x" * 500))
    write(tmp_path / "test/0.jsonl", pairs("Hold"))
    assert asked(tmp_path, max_characters=100) == {
        "train": set(),
        "validation": set(),
        "test": {"Hold"},
    }


def test_messages_of_the_hub_layout_name_the_row(tmp_path: Path) -> None:
    write(tmp_path / "train/0.jsonl", pairs("Learn"))
    bad = tmp_path / "test/0.jsonl"
    write(bad, pairs("Hold"))
    bad.write_text(bad.read_text() + json.dumps({"chosen": "x"}) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{bad}:4: rejected: Field required")):
        asked(tmp_path)
