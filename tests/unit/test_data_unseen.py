"""Parts of a folder that are held out are not trained on because others were not seen."""

from __future__ import annotations

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


def pairs(word: str, count: int = 40) -> list[dict[str, str]]:
    begin = "\n\nHuman: {} {}?\n\nAssistant: "
    return [
        {"chosen": begin.format(word, i) + "Yes.", "rejected": begin.format(word, i) + "No."}
        for i in range(count)
    ]


def asked(folder: Path, **options: Any) -> dict[str, set[str]]:
    """The first words of the questions of each split."""
    splits = by_split(HHRLHF(HHOptions(source=folder, **options)))
    return {
        name: {row["messages"][0]["content"].split()[0] for row in rows}
        for name, rows in splits.items()
    }


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    write_lines(tmp_path / "elsewhere/0.jsonl", pairs("Learn"))
    write_lines(tmp_path / "mine/test/0.jsonl", pairs("Hold"))
    (tmp_path / "mine/train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert asked(tmp_path / "mine") == {
        "train": {"Learn"},
        "validation": {"Learn"},
        "test": {"Hold"},
    }


def test_links_that_lead_back_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    write_lines(tmp_path / "train/0.jsonl", pairs("Learn"))
    write_lines(tmp_path / "test/0.jsonl", pairs("Hold"))
    (tmp_path / "train/back").symlink_to(tmp_path, target_is_directory=True)
    rows = by_split(HHRLHF(HHOptions(source=tmp_path)))
    assert {name: len(found) for name, found in rows.items() if name == "test"} == {"test": 40}
    assert len(rows["train"]) + len(rows["validation"]) == 40
    (tmp_path / "train/1.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"train/1\.jsonl: cannot be read: No such file"):
        asked(tmp_path)


@pytest.mark.parametrize("name", ["0.JSONL", "0.Jsonl.GZ", "0.PARQUET"])
def test_the_case_of_a_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train" / name
    write_lines(tmp_path / "test/0.jsonl", pairs("Hold"))
    if name == "0.PARQUET":
        import pyarrow
        import pyarrow.parquet

        path.parent.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs("Learn")), path)
    else:
        lower = write_lines(tmp_path / "train" / name.lower(), pairs("Learn"))
        lower.rename(path)
    assert asked(tmp_path) == {"train": {"Learn"}, "validation": {"Learn"}, "test": {"Hold"}}
    assert asked(path)["train"] == {"Learn"}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_held_out_part_alone(tmp_path: Path, split: str) -> None:
    (tmp_path / "train.json").write_text("[]")
    path = write_lines(tmp_path / f"{split}.jsonl", pairs("Hold"))
    says = f"{tmp_path}: all its data files are of split {split!r} ({split}.jsonl)"
    with pytest.raises(DataError) as caught:
        asked(tmp_path)
    assert str(caught.value).startswith(says)
    result = CliRunner().invoke(main, ["check", str(RECIPE), f"data.comparisons.source={tmp_path}"])
    assert result.exit_code == 3
    assert says in result.stderr
    # Who names it means it.
    assert asked(path)["train"] == {"Hold"}


def test_a_held_out_folder_that_is_named(tmp_path: Path) -> None:
    for i in range(5):
        write_lines(tmp_path / f"test/{i}.jsonl", pairs(f"Hold{i}"))
    with pytest.raises(DataError, match=r"\(test/0.jsonl, test/1.jsonl, test/2.jsonl and 2 more\)"):
        asked(tmp_path)
    assert len(asked(tmp_path / "test")["train"]) == 5
    assert len(asked(tmp_path, data_dir="test")["train"]) == 5


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "train/.0.jsonl",
        "train/__old__/0.jsonl",
        ".cache/train/0.parquet",
        "__MACOSX/train/0.jsonl",
    ],
)
def test_what_is_hidden_is_not_read(tmp_path: Path, name: str) -> None:
    """Also where the source itself is in a hidden folder."""
    source = tmp_path / ".data/__mine"
    write_lines(source / "train/0.jsonl", pairs("Learn"))
    before = HHRLHF(HHOptions(source=source)).fingerprint()
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not JSON")
    assert asked(source)["train"] == {"Learn"}
    assert HHRLHF(HHOptions(source=source)).fingerprint() == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("split=test/0.jsonl", "'split=test' may mean the test split"),
        ("tests/0.jsonl", "'tests' may mean the test split"),
        ("testset.jsonl", "'testset.jsonl' may mean the test split"),
        ("test(1).jsonl", "'test(1).jsonl' may mean the test split"),
        ("test@1/0.jsonl", "'test@1' may mean the test split"),
        ("myTest/0.jsonl", "'myTest' may mean the test split"),
        ("DevSet/0.jsonl", "'DevSet' may mean the validation split"),
        ("a/evals/0.jsonl", "'evals' may mean the test split"),
        ("train/split=validation/0.jsonl", "'split=validation' may mean the validation split"),
        ("[val]0.jsonl", "'[val]0.jsonl' may mean the validation split"),
    ],
)
def test_names_that_almost_say_a_split(tmp_path: Path, name: str, says: str) -> None:
    write_lines(tmp_path / "train/0.jsonl", pairs("Learn"))
    path = write_lines(tmp_path / name, pairs("Hold"))
    with pytest.raises(DataError) as caught:
        asked(tmp_path)
    assert str(caught.value).startswith(f"{path}: {says}, but is not a name of it; rename it to ")
    assert asked(path)["train"] == {"Hold"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("split=train/0.jsonl", "train"),
        ("test/testset-1.jsonl", "test"),
        ("contests/values.jsonl", "train"),
        ("device/evaluators/testimony.jsonl", "train"),
        ("latest/developers.jsonl", "train"),
        ("trains/invalid.jsonl", "train"),
    ],
)
def test_names_that_say_what_they_are(name: str, split: str) -> None:
    assert part_name(name, name) == split
