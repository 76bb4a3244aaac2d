"""What begins with one question is in one split, whatever form and file it has."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from data_files import Row, by_split, comparisons, demonstrations, prompts, write_lines
from rlhf_kit_data.options import HHOptions, TextOptions
from rlhf_kit_data.published import HHRLHF
from rlhf_kit_data.running_text import RunningText
from toys import write_toy_recipe

from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def first_question(row: Row) -> str:
    """By its own reading of a row, not by that of the code under test."""
    if "prompt" in row:
        return " ".join(row["prompt"].lower().split())
    return " ".join(
        next(m for m in row["messages"] if m["role"] == "user")["content"].lower().split()
    )


def splits_of(source: Any) -> dict[str, set[str]]:
    """The splits in which a question is."""
    found: dict[str, set[str]] = {}
    for name, rows in by_split(source).items():
        for row in rows:
            found.setdefault(first_question(row), set()).add(name)
    return found


def test_a_question_as_prompt_and_as_messages(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i in range(1000):
        rows += [{"prompt": f"What is {i}?"}, {"messages": [user(f"What is {i}?")]}]
    found = splits_of(prompts(write_lines(tmp_path / "p.jsonl", rows)))
    assert len(found) == 1000
    assert {name for names in found.values() for name in names} == {"train", "validation", "test"}
    assert [q for q, names in found.items() if len(names) > 1] == []


def test_a_conversation_and_what_continues_it(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i in range(1000):
        said = [{"role": "system", "content": f"Be {i % 3}"}] if i % 2 else []
        more = [user(f"Who is {i}?"), {"role": "assistant", "content": "She."}, user("Sure?")]
        rows += [{"messages": more[:1]}, {"messages": [*said, *more]}, {"prompt": f"who is  {i}? "}]
    found = splits_of(prompts(write_lines(tmp_path / "p.jsonl", rows)))
    assert len(found) == 1000
    assert [q for q, names in found.items() if len(names) > 1] == []


def test_about_a_tenth_is_held_out_each(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?"} for i in range(1000)]
    found = by_split(prompts(write_lines(tmp_path / "p.jsonl", rows)))
    assert 70 < len(found["validation"]) < 130
    assert 70 < len(found["test"]) < 130
    assert sum(map(len, found.values())) == 1000


def test_rows_that_do_not_say_follow_those_that_do(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i in range(60):  # before and after the row that says
        rows += [
            {"messages": [user(f"Q {i}"), {"role": "assistant", "content": "A"}, user("And?")]},
            {"prompt": f"Q {i}", "split": ("train", "validation", "test")[i % 3]},
            {"prompt": f"q  {i}"},
        ]
    found = by_split(prompts(write_lines(tmp_path / "p.jsonl", rows)))
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(found, 60)
    for i, name in enumerate(("train", "validation", "test")):
        assert {int(first_question(row).split()[1]) % 3 for row in found[name]} == {i}


@pytest.mark.parametrize(
    "second",
    [
        {"prompt": "what  IS it?"},
        {"messages": [user("What is it?")]},
        {"messages": [{"role": "system", "content": "Be kind"}, user("What is it?")]},
        {"messages": [user("What is it?"), {"role": "assistant", "content": "x"}, user("y")]},
    ],
    ids=["prompt", "messages", "system", "continued"],
)
def test_stated_splits_that_part_a_question(tmp_path: Path, toy_model: Path, second: Row) -> None:
    recipe = write_toy_recipe(tmp_path, toy_model, "full")
    path = tmp_path / "prompts.jsonl"
    lines = len(path.read_text().splitlines())
    rows = [{"prompt": "What is it?", "split": "train"}, {**second, "split": "test"}]
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    says = (
        f"{path}:{lines + 2}: split: is 'test', but {path}:{lines + 1} begins with the same "
        f"question and is in 'train'; give both rows the same split"
    )
    result = CliRunner().invoke(main, ["check", str(recipe)])
    assert (result.exit_code, result.stderr) == (3, f"error: {says}\n")
    with pytest.raises(DataError, match=re.escape(says)):
        prompts(path).split("train")


def test_stated_splits_that_part_many_questions_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i % 5}", "split": ("train", "validation")[i // 5]} for i in range(10)]
    path = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"p\.jsonl:6: .*p\.jsonl:1 .* \(and so in 4 more rows\)$"):
        prompts(path).split("train")


def test_files_without_splits_agree_and_agree_with_published_data(tmp_path: Path) -> None:
    """A question that is held out in one is trained on in none."""
    asked = [f"What is {i}?" for i in range(500)]
    ranked = {"completions": ["a", "b"], "ranks": [0, 1]}
    begin = "\n\nHuman: {}\n\nAssistant: "
    files = {
        "prompts": prompts(write_lines(tmp_path / "p.jsonl", [{"prompt": q} for q in asked])),
        "demonstrations": demonstrations(
            write_lines(
                tmp_path / "d.jsonl",
                [{"messages": [user(q.upper())], "response": "x"} for q in asked],
            )
        ),
        "comparisons": comparisons(
            write_lines(tmp_path / "c.jsonl", [{"prompt": q, **ranked} for q in asked])
        ),
        "published": HHRLHF(
            HHOptions(
                source=write_lines(
                    tmp_path / "hh.jsonl",
                    [
                        {"chosen": begin.format(q) + "Yes.", "rejected": begin.format(q) + "No."}
                        for q in asked
                    ],
                ),
                validation_fraction=0.1,
                test_fraction=0.1,
            )
        ),
    }
    found = [splits_of(source) for source in files.values()]
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [("train", "test"), ("test", "train"), ("train", "validation"), ("validation", "train")],
)
def test_one_file_trains_on_what_another_holds_out(
    tmp_path: Path, toy_model: Path, mine: str, theirs: str
) -> None:
    recipe = write_toy_recipe(tmp_path, toy_model, "full")
    lines = {}
    for name, row in (
        ("demonstrations", {"prompt": "The same?", "response": "Yes.", "split": mine}),
        ("prompts", {"messages": [user("the same?")], "split": theirs}),
    ):
        path = tmp_path / f"{name}.jsonl"
        lines[name] = f"{path}:{len(path.read_text().splitlines()) + 1}"
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    result = CliRunner().invoke(main, ["check", str(recipe)])
    assert result.exit_code == 3
    assert result.stderr == (
        f"error: {lines['prompts']}: split: is {theirs!r}, but {lines['demonstrations']} begins "
        f"with the same question and is in {mine!r}; write the same split into both rows, since "
        f"what is held out in one file must not be trained on in another\n"
    )


def test_one_file_says_what_another_leaves_to_the_hash(tmp_path: Path, toy_model: Path) -> None:
    recipe = write_toy_recipe(tmp_path, toy_model, "full")
    asked = [{"prompt": f"Same {i}?"} for i in range(30)]
    for name, more in (("demonstrations", {"response": "Yes."}), ("prompts", {"split": "test"})):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write("".join(json.dumps({**row, **more}) + "\n" for row in asked))
    result = CliRunner().invoke(main, ["check", str(recipe)])
    assert result.exit_code == 3
    assert "begins with the same question and is in 'train'" in result.stderr


def test_what_two_files_hold_out_or_share_is_no_fault(tmp_path: Path, toy_model: Path) -> None:
    recipe = write_toy_recipe(tmp_path, toy_model, "full")
    for name, splits in (("demonstrations", "train validation"), ("prompts", "train test")):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            for i, split in enumerate(splits.split()):
                row = {"prompt": f"Shared {i}?", "response": "Yes.", "split": split}
                file.write(json.dumps(row) + "\n")
    assert CliRunner().invoke(main, ["check", str(recipe)]).exit_code == 0


# Running text


def test_equal_documents_are_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Text number {i}. " * 3 for i in range(60)]
    again = random.Random(0).sample(texts, len(texts))
    documents = {f"a{i}": text for i, text in enumerate(texts)}
    documents |= {f"b{i}": text.upper() + "\n" for i, text in enumerate(again)}
    (tmp_path / "mine_twice.py").write_text(f"topics = {documents!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_split(RunningText(TextOptions(module="mine_twice")))
    assert sum(map(len, found.values())) == 120
    sets = [{row["text"].strip().lower() for row in rows} for rows in found.values()]
    assert all(sets)
    assert sum(map(len, sets)) == 60


def test_a_text_file_comes_out_whole_and_in_order(tmp_path: Path) -> None:
    """No paragraph is lost, added or moved."""
    gaps = ("\n", "\n\n", " \n", " \n\t\n")
    text = "".join(f"Paragraph {i}. {'word ' * 60}\n{gaps[i % 4]}" for i in range(200))
    (tmp_path / "t.txt").write_text(text)
    source = RunningText(TextOptions(path=tmp_path / "t.txt"))
    found = by_split(source)
    rows = [row["text"] for name in found for row in found[name]]
    assert all(rows)
    places = [[text.index(row["text"]) for row in found[name]] for name in found]
    assert all(one == sorted(one) for one in places)
    assert "".join(sorted(rows, key=text.index)) == text


def test_documents_of_a_module_stay_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version divided topics of these names, before it looked at their texts."""
    was = {
        "train": ["binary", "break", "if"],
        "validation": ["assignment", "booleans", "debugger"],
        "test": ["assert"],
    }
    documents = {name: f"All about {name}." for names in was.values() for name in names}
    (tmp_path / "mine_once.py").write_text(f"topics = {documents!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_split(RunningText(TextOptions(module="mine_once")))
    texts = {name: [f"All about {word}." for word in words] for name, words in was.items()}
    assert {name: [row["text"] for row in rows] for name, rows in found.items()} == texts


@pytest.mark.parametrize(
    ("content", "says"), [(b"caf\xe9", "not UTF-8 text"), (b" \n", "the file has no text")]
)
def test_a_text_file_that_cannot_be_read(
    tmp_path: Path, toy_model: Path, content: bytes, says: str
) -> None:
    recipe = write_toy_recipe(tmp_path, toy_model, "full")
    (tmp_path / "text.txt").write_bytes(content)
    result = CliRunner().invoke(main, ["check", str(recipe)])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {tmp_path}/text.txt: {says}")
