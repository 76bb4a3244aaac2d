"""Rows come out as they were written, and what cannot be is refused with its line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from data_files import by_split, comparisons, demonstrations, prompts, typed, write_lines
from rlhf_kit_data.options import CollectedOptions
from rlhf_kit_data.sources import Collected
from toys import write_toy_recipe

from rlhf_kit import StageRef
from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError

RANKED = {"completions": ["a", "b"], "ranks": [0, 1], "split": "train"}


def same(path: Path, rows: list[dict[str, Any]], make: Any = prompts) -> None:
    """The key `split` has a test of its own."""
    found = list(make(write_lines(path, rows)).split("train"))
    for row in (*found, *(rows := [dict(row) for row in rows])):
        row.pop("split", None)
    assert typed(found) == typed(rows)


def test_a_split_that_a_row_states_stays_in_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Who?", "split": "test"},
        {"prompt": "who?"},
        {"prompt": "Who?", "split": None},
    ]
    found = prompts(write_lines(tmp_path / "p.jsonl", rows)).split("test")
    assert list(found) == [
        {"prompt": "Who?", "split": "test"},
        {"prompt": "who?"},
        {"prompt": "Who?"},
    ]


def test_keys_that_the_first_row_does_not_have(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1 + 1?", "split": "train"},
        {"prompt": "2 + 2?", "split": "train", "answer": "4"},
        {"prompt": "3 + 3?", "split": "train", "answer": "6", "source": {"page": 3}},
    ]
    same(tmp_path / "p.jsonl", rows)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5],
        [1.0, 2],
        [True, 1, "1"],
        [None, 1],
        [{"a": 1}, {"b": None}, {"a": {"c": []}}],
        [[], [1], ["x", None], [[2.0]]],
        [2**70, -0.5, 1e300],
        ["", " spaced ", "é\u2028\u0000", "𝄞"],
    ],
    ids=str,
)
def test_values_of_other_keys_of_whatever_types(tmp_path: Path, values: list[Any]) -> None:
    rows = [{"prompt": f"Q{i}", "split": "train", "extra": v} for i, v in enumerate(values)]
    same(tmp_path / "p.jsonl", rows)


def test_prompts_beside_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "And you?", "name": None, "at": 1.0}]
    rows: list[dict[str, Any]] = [
        {"prompt": "Who?", "split": "train"},
        {"messages": messages, "split": "train"},
        {"messages": [{"role": "system", "content": "Hm"}, *messages], "split": "train", "x": None},
    ]
    same(tmp_path / "p.jsonl", rows)
    same(tmp_path / "d.jsonl", [{**row, "response": "I."} for row in rows], demonstrations)
    same(tmp_path / "c.jsonl", [{**row, **RANKED} for row in rows], comparisons)


def test_text_keeps_its_white_space(tmp_path: Path) -> None:
    rows = [{"prompt": " Say\n", "response": "\tthis \n", "split": "train"}]
    same(tmp_path / "d.jsonl", rows, demonstrations)


def test_scores_and_finished_of_comparisons(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "A?", **RANKED},
        {"prompt": "B?", **RANKED, "finished": [False, True], "scores": [1, 2.5]},
        {"prompt": "C?", **RANKED, "ranks": [1, 0], "finished": [True, False]},
    ]
    same(tmp_path / "c.jsonl", rows, comparisons)


def test_collected_comparisons_stay_cut_off(tmp_path: Path) -> None:
    """`finished: false` in the second row only: without it a cut-off text would teach an end."""
    rows = [{"prompt": "A?", **RANKED}, {"prompt": "B?", **RANKED, "finished": [True, False]}]
    write_lines(tmp_path / "comparisons.jsonl", rows)

    class Here:
        def artifact(self, ref: StageRef) -> Path:
            return tmp_path

    source = Collected(CollectedOptions(start=StageRef(folder=tmp_path)), Here())  # type: ignore[arg-type]
    assert [row.get("finished") for row in source.split("train")] == [None, [True, False]]


def test_null_in_an_optional_key_is_its_absence(tmp_path: Path) -> None:
    row = {"prompt": "A?", "messages": None, **RANKED, "scores": None, "finished": None, "id": None}
    found = comparisons(write_lines(tmp_path / "c.jsonl", [row])).split("train")
    assert list(found) == [{"prompt": "A?", **RANKED, "id": None}]


def test_a_reader_may_change_its_rows(tmp_path: Path) -> None:
    source = prompts(
        write_lines(tmp_path / "p.jsonl", [{"prompt": "A?", "x": [1], "split": "test"}])
    )
    first = source.split("test")[0]
    first["x"].append(2)
    del first["prompt"]
    assert list(source.split("test")) == [{"prompt": "A?", "x": [1], "split": "test"}]
    assert source.split("test")[-1]["x"] == [1]


def test_rows_are_a_sequence(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "split": "train"} for i in range(5)]
    found = prompts(write_lines(tmp_path / "p.jsonl", rows)).split("train")
    assert len(found) == 5
    assert list(found[1:3]) == rows[1:3]
    assert [found[-1], found[0]] == [rows[-1], rows[0]]
    assert list(reversed(found)) == rows[::-1]
    with pytest.raises(IndexError):
        found[5]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "prompt": "b"}', "not valid JSON: key 'prompt' is there twice"),
        ('{"prompt": "a", "x": {"y": 1, "y": 1}}', "key 'y' is there twice"),
        ('{"prompt": "a", "x": NaN}', "NaN is no number of JSON"),
        ('{"prompt": "a", "x": [-Infinity]}', "-Infinity is no number of JSON"),
        ('{"prompt": "a", "x": 1e999}', "1e999 is out of the range"),
        ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ('{"prompt": "a", "x": ' + "[" * 9**5 + "]" * 9**5 + "}", "nested too deeply"),
        ('{"prompt": "a\\ud83d"}', "half of a surrogate pair, '\\ud83d'"),
        ('{"prompt": "a", "\\udc00": 1}', "half of a surrogate pair"),
        ('{"prompt": "a"} {"prompt": "b"}', "not valid JSON: Extra data"),
    ],
    ids=lambda value: value[:30],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_json_that_readers_disagree_on(tmp_path: Path, name: str, line: str, says: str) -> None:
    path = tmp_path / name
    data = b'{"prompt": "first"}\n\n' + line.encode() + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    with pytest.raises(DataError) as caught:
        prompts(path).split("train")
    assert str(caught.value).startswith(f"{path}:3: ")
    assert says in str(caught.value)


def test_a_whole_surrogate_pair_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "\\ud83d\\ude00", "split": "test"}\r\n')
    assert list(prompts(path).split("test")) == [{"prompt": "😀", "split": "test"}]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("finished", ["false", "true"], "finished.0: Input should be a valid boolean"),
        ("finished", [1, 0], "finished.0: Input should be a valid boolean"),
        ("ranks", ["0", "1"], "ranks.0: Input should be a valid integer"),
        ("ranks", [True, False], "ranks.0: Input should be a valid integer"),
        ("ranks", [0.0, 1.0], "ranks.0: Input should be a valid integer"),
        ("scores", ["1", "2"], "scores.0: Input should be a valid number"),
        ("scores", [False, True], "scores.0: Input should be a valid number"),
    ],
)
def test_types_that_would_have_to_be_rewritten(
    tmp_path: Path, key: str, value: list[Any], says: str
) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"prompt": "A?", **RANKED, key: value}])
    with pytest.raises(DataError, match=re.escape(f"{path}:1: {says}")):
        comparisons(path).split("train")


def test_a_parquet_file_is_no_jsonl_file(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a JSONL file; a prompts file has one JSON object"):
        prompts(tmp_path / "p.parquet").split("train")


def test_a_mixed_file_passes_check_and_runs(toy_model: Path, tmp_path: Path) -> None:
    """Prompts beside messages, keys that the first row lacks, through every stage of a run."""
    path = write_toy_recipe(tmp_path, toy_model, "full")
    for name in ("prompts", "demonstrations"):
        file = tmp_path / f"{name}.jsonl"
        source = prompts(file) if name == "prompts" else demonstrations(file)
        rows = [row for found in by_split(source).values() for row in found]
        for i, row in enumerate(rows):
            if i % 2:
                row["messages"] = [{"role": "user", "content": row.pop("prompt")}]
                row["answer"] = {"text": "yes", "pages": [1, 2.5]}
        write_lines(file, rows)
    assert CliRunner().invoke(main, ["check", str(path)]).exit_code == 0
    result = CliRunner().invoke(main, ["run", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    collected = comparisons(tmp_path / "run/stages/collect/comparisons.jsonl").split("train")
    assert {typed(row.get("answer")) for row in collected} == {
        typed(None),
        typed({"text": "yes", "pages": [1, 2.5]}),
    }

    # What a folder holds is checked like a file.
    folder = tmp_path / "run/stages/collect"
    with (folder / "comparisons.jsonl").open("a") as file:
        file.write('{"prompt": "A?"}\n')
    override = f"data.comparisons={{use: collected, from: {folder}}}"
    result = CliRunner().invoke(main, ["check", str(path), override])
    assert result.exit_code == 3
    assert f"{folder}/comparisons.jsonl:" in result.stderr
    assert "completions: Field required" in result.stderr
