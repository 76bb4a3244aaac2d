"""Published comparisons: Anthropic's pairs and Open-Assistant's trees, and partial rankings."""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError
from rlhf_kit_data.options import HHOptions, JsonlOptions, OasstOptions
from rlhf_kit_data.published import HHRLHF, Oasst, Published
from rlhf_kit_data.rankings import characters
from rlhf_kit_data.sources import Comparisons
from rlhf_kit_data.splits import SPLITS, opening
from toys import environment

from rlhf_kit.cli.main import main
from rlhf_kit.errors import DataError

RECIPES = Path(__file__).parents[2] / "recipes"


def dialogue(*turns: str) -> str:
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(turns))


def pair(*shared: str, good: str = "Yes, gladly.", bad: str = "No.") -> dict[str, str]:
    return {"chosen": dialogue(*shared, good), "rejected": dialogue(*shared, bad)}


def write(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    text = "".join(json.dumps(record) + "\n" for record in records)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return path


def many(count: int, prefix: str = "Question") -> list[dict[str, str]]:
    return [pair(f"{prefix} {i}?") for i in range(count)]


def everything(source: Published) -> dict[str, list[dict[str, Any]]]:
    """Rows by split; splits without rows are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in SPLITS:
        try:
            found[name] = list(source.split(name))
        except DataError as error:
            assert f"no rows of split '{name}'" in str(error)
    return found


def rows_of(source: Published) -> list[dict[str, Any]]:
    return [row for rows in everything(source).values() for row in rows]


def hh(path: Path, **options: Any) -> HHRLHF:
    source = HHRLHF(HHOptions(source=path, **options))
    assert source.dropped is not None  # reads the files, and raises what is wrong with them
    return source


def oasst(path: Path, **options: Any) -> Oasst:
    source = Oasst(OasstOptions(source=path, **options))
    assert source.dropped is not None
    return source


def separate(splits: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether no opening is in two splits."""
    seen = [{opening(row) for row in rows} for rows in splits.values()]
    return sum(map(len, seen)) == len(set().union(*seen))


# Anthropic's pairs


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet"])
def test_hh_pairs_become_comparisons(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [pair(" Hi ", "Hello.", "Help?", good="Sure", bad=" Non\n\nno ")])
    assert rows_of(hh(path)) == [
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "Help?"},
            ],
            "completions": ["Sure", "Non\n\nno"],
            "ranks": [0, 1],
        }
    ]


def test_hh_drops_what_is_no_comparison_and_counts_it(tmp_path: Path) -> None:
    good = pair("Hi", "Hello.", "Help?")
    records = [
        *many(10),
        pair("Same?", good="Yes.", bad="Yes. "),
        {"chosen": good["chosen"], "rejected": dialogue("Hi", "Go.", "Help?", "No.")},
        {"chosen": good["chosen"], "rejected": dialogue("Hi", "Hello.")},
        pair("Empty?", bad=" "),
        pair("Empty?", "", "again"),
        {"chosen": dialogue("Hi", "Hello.", "Bye"), "rejected": dialogue("Hi", "Hello.", "Bye")},
        {"chosen": "Human: Hi", "rejected": "Human: Hi"},
        {"chosen": "Note" + good["chosen"], "rejected": "Note" + good["rejected"]},
    ]
    source = hh(write(tmp_path / "pairs.jsonl", records))
    assert len(rows_of(source)) == 10
    assert source.dropped == {
        "pairs of identical dialogues": 1,
        "pairs that differ before the last answer": 2,
        "pairs with an empty turn": 2,
        "pairs that do not alternate between Human and Assistant": 3,
    }


def test_hh_refuses_a_file_of_which_most_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [*many(2), *[{"chosen": "a", "rejected": "b"}] * 3])
    with pytest.raises(DataError, match="3 of 5 pairs are no use: 3 pairs that do not alternate"):
        hh(path)
    write(path, [*many(3), *[{"chosen": "a", "rejected": "b"}] * 3])  # half is not most
    assert len(rows_of(hh(path))) == 3


# Open-Assistant's trees


def message(
    id: str, text: str, role: str = "assistant", *replies: dict[str, Any], **more: Any
) -> dict[str, Any]:
    fields = {"message_id": id, "text": text, "role": role, "lang": "en", "deleted": False}
    return {**fields, "review_result": True, **more, "replies": list(replies)}


def a_tree() -> dict[str, Any]:
    """Three groups: three replies, then two of which one is unranked and one deleted, then one."""
    second = message(
        "p2",
        "And then?",
        "prompter",
        message("a4", "Then tea.", rank=1),
        message("a5", "Nobody judged this."),
        message("a6", "Then cake.", rank=0),
        message("a7", "Gone.", rank=2, deleted=True),
        message("a8", "Spam.", rank=3, review_result=False),
    )
    third = message("p3", "Why?", "prompter", message("a9", "So.", rank=0))
    root = message(
        "p1",
        "What now? ",
        "prompter",
        message("a1", "Rest.", "assistant", second, third, rank=0),
        message("a2", "Run.", rank=2),
        message("a3", "Walk.", rank=1),
    )
    return {"message_tree_id": "p1", "tree_state": "ready_for_export", "prompt": root}


EXPECTED = [
    {
        "id": "p1",
        "messages": [{"role": "user", "content": "What now?"}],
        "completions": ["Rest.", "Run.", "Walk."],
        "ranks": [0, 2, 1],
    },
    {
        "id": "p2",
        "messages": [
            {"role": "user", "content": "What now?"},
            {"role": "assistant", "content": "Rest."},
            {"role": "user", "content": "And then?"},
        ],
        "completions": ["Then tea.", "Nobody judged this.", "Then cake."],
        "ranks": [1, None, 0],
    },
]


def flat(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The hub's form: one message a row, each with all columns."""
    found: list[dict[str, Any]] = []

    def walk(node: dict[str, Any], parent: str | None) -> None:
        own = {k: v for k, v in node.items() if k != "replies"}
        found.append({"rank": None, "parent_id": parent, "message_tree_id": "p1", **own})
        for reply in node["replies"]:
            walk(reply, node["message_id"])

    walk(tree["prompt"], None)
    return found


@pytest.mark.parametrize("name", ["trees.jsonl", "trees.jsonl.gz"])
def test_oasst_trees(tmp_path: Path, name: str) -> None:
    source = oasst(write(tmp_path / name, [a_tree()]))
    assert rows_of(source) == EXPECTED
    assert source.dropped == {"messages that were deleted or found to be spam": 2}


@pytest.mark.parametrize("name", ["messages.jsonl", "messages.jsonl.gz", "messages.parquet"])
def test_oasst_messages(tmp_path: Path, name: str) -> None:
    source = oasst(write(tmp_path / name, flat(a_tree())))
    assert rows_of(source) == EXPECTED
    # Whatever comes first in the file: a reply may stand before what it replies to.
    backwards = oasst(write(tmp_path / f"back-{name}", flat(a_tree())[::-1]))
    assert [row["id"] for row in rows_of(backwards)] == ["p1", "p2"]
    assert Counter(rows_of(backwards)[0]["completions"]) == Counter(EXPECTED[0]["completions"])


def test_oasst_both_forms_give_the_same_rows(tmp_path: Path) -> None:
    trees = oasst(write(tmp_path / "trees.jsonl", [a_tree()]))
    messages = oasst(write(tmp_path / "messages.parquet", flat(a_tree())))
    assert everything(trees) == everything(messages)


def test_oasst_keeps_ties_and_needs_two_ranked_replies(tmp_path: Path) -> None:
    def two(id: str, *ranks: int | None) -> dict[str, Any]:
        replies = [message(f"{id}-{i}", f"Reply {i}", rank=r) for i, r in enumerate(ranks)]
        return {"prompt": message(id, f"Prompt {id}", "prompter", *replies)}

    trees = [two("tied", 0, 1, 1), two("all-tied", 0, 0), two("one", 0, None), two("none", None)]
    trees += [two(f"clear-{i}", 0, 1) for i in range(9)]
    source = oasst(write(tmp_path / "trees.jsonl", trees))
    assert {row["id"]: row["ranks"] for row in rows_of(source)} == {
        "tied": [0, 1, 1],
        "all-tied": [0, 0],
        **{f"clear-{i}": [0, 1] for i in range(9)},
    }
    assert source.dropped == {"groups of replies of which fewer than two are ranked": 1}
    with pytest.raises(DataError, match="no comparison with a better and a worse answer is left"):
        oasst(write(tmp_path / "trees.jsonl", [two("all-tied", 3, 3)]))


def test_oasst_languages(tmp_path: Path) -> None:
    other = copy.deepcopy(a_tree())
    other["prompt"]["lang"] = "de"
    other["prompt"]["text"] = "Was nun?"
    mixed = copy.deepcopy(a_tree())
    mixed["prompt"]["text"] = "What next?"
    mixed["prompt"]["replies"][0]["lang"] = "fr"  # its replies go with it
    path = write(tmp_path / "trees.jsonl", [a_tree(), other, mixed])
    source = oasst(path)
    assert [len(row["completions"]) for row in rows_of(source)].count(2) == 1
    assert len(rows_of(source)) == 3
    assert source.dropped["messages in another language"] == 2
    assert len(rows_of(oasst(path, languages=None))) == 6
    with pytest.raises(DataError, match="is left; dropped were 5 messages in another"):
        oasst(path, languages=["de"])  # the prompt alone is German


def test_oasst_orphans_are_counted(tmp_path: Path) -> None:
    lost = {**flat(a_tree())[1], "message_id": "x", "parent_id": "nowhere"}
    source = oasst(write(tmp_path / "messages.jsonl", [*flat(a_tree()), lost]))
    assert rows_of(source) == EXPECTED
    assert source.dropped["messages whose parent is not in the file"] == 1


# Splits


def test_splits_hold_every_row_once_and_never_move(tmp_path: Path) -> None:
    records = [pair(f"Topic {i % 150}", "Fine.", f"More {i}?") for i in range(300)]
    path = write(tmp_path / "pairs.jsonl", records)
    splits = everything(hh(path))
    assert set(splits) == {"train", "validation"}  # no test split unless asked for
    assert separate(splits)
    said = Counter(row["messages"][-1]["content"] for rows in splits.values() for row in rows)
    assert said == Counter(f"More {i}?" for i in range(300))
    assert 0.1 < len(splits["validation"]) / 300 < 0.3
    assert everything(hh(path)) == splits
    assert hh(path).fingerprint() == hh(path).fingerprint()
    # The order of the file and what else is in it move no row.
    shuffled = hh(write(tmp_path / "more.jsonl", [*many(20), *records[::-1]]))
    openings = {name: {opening(row) for row in rows} for name, rows in splits.items()}
    for name, rows in everything(shuffled).items():
        assert openings[name] <= {opening(row) for row in rows}


def test_a_test_split_is_cut_from_the_train_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", many(200))
    two, three = everything(hh(path)), everything(hh(path, test_fraction=0.2))
    assert three["validation"] == two["validation"]
    assert separate(three)
    assert sum(map(len, three.values())) == 200
    assert 0.1 < len(three["test"]) / 200 < 0.3


def test_case_and_spacing_do_not_make_another_conversation(tmp_path: Path) -> None:
    openings = [f"{ask} {i}" for i in range(40) for ask in ("Tell me", "tell  ME")]
    splits = everything(hh(write(tmp_path / "p.jsonl", [pair(text) for text in openings])))
    assert separate(splits)
    assert all(len(rows) % 2 == 0 for rows in splits.values())


def test_a_folder_with_splits_of_its_own_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "hh"
    write(folder / "helpful/train.jsonl.gz", [*many(50), pair("Leaky?", "Yes.", "Go on")])
    write(folder / "helpful/test.jsonl.gz", [*many(8, "Test"), pair(" leaky? ")])
    write(folder / "harmless/train.jsonl.gz", many(40, "Other"))
    source = hh(folder)
    splits = everything(source)
    assert {name: len(rows) for name, rows in splits.items() if name == "test"} == {"test": 9}
    assert len(splits["train"]) + len(splits["validation"]) == 90
    assert separate(splits)
    assert source.dropped == {"rows of a conversation held out elsewhere": 1}
    assert len(rows_of(hh(folder, data_dir="helpful"))) == 59

    write(folder / "harmless/validation.jsonl", many(7, "Held"))
    own = everything(hh(folder))
    assert [len(own[name]) for name in SPLITS] == [90, 7, 9]
    # A file that is itself the source is cut, whatever its name.
    alone = everything(hh(write(tmp_path / "one/test.jsonl", many(60))))
    assert set(alone) == {"train", "validation"}


# Limits


def test_max_characters(tmp_path: Path) -> None:
    records = [pair("ab", "cd", "efg", good="x" * n, bad="y") for n in (1, 3, 4)]
    path = write(tmp_path / "pairs.jsonl", records)
    source = hh(path, max_characters=10)
    assert sorted(map(characters, rows_of(source))) == [8, 10]
    assert source.dropped == {"rows longer than 10 characters": 1}
    with pytest.raises(DataError, match="is left; dropped were 3 rows longer than 2 characters"):
        hh(path, max_characters=2)


def test_limit_takes_whole_conversations_and_grows(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [pair("Hi", "Oh", f"{i}") for i in range(5)] + many(100))
    ten, twenty = rows_of(hh(path, limit=10)), rows_of(hh(path, limit=20))
    assert (len(ten), len(twenty)) == (10, 20)
    assert all(row in twenty for row in ten)
    assert len(rows_of(hh(path, limit=1000))) == 105
    assert hh(path, limit=10).fingerprint() != hh(path, limit=20).fingerprint()
    # Not the first of the file, which may be sorted by where its rows come from.
    assert ten != rows_of(hh(path))[:10]
    whole = everything(hh(path))
    for name, rows in everything(hh(path, limit=20)).items():
        assert all(row in whole[name] for row in rows)


# Errors


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"chosen": "a"}', r'rejected: Field required; a pair is \{"chosen": dialogue'),
        ('{"chosen": "a", "rejected": 3}', "rejected: Input should be a valid string; a pair is"),
        ('{"prompt": "a", "messages": []}', "chosen: Field required"),
        ("[1]", "Input should be a valid dictionary; a pair is"),
        ('{"chosen": ', "not valid JSON: .* at column"),
    ],
)
def test_hh_names_the_line(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "pairs.jsonl", many(3))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:4: {says}"):
        hh(path)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (pair("a"), "prompt: Field required; a line is a tree"),
        ({"prompt": {"text": "a"}}, "prompt.role: Field required"),
        ({"message_id": "a", "role": "prompter"}, "text: Field required"),
        ({"message_id": "a", "role": "user", "text": "b"}, "role: Input should be 'prompter' or"),
        ({"prompt": message("a", "b")}, "a conversation must begin with a prompter's message"),
        (
            {"prompt": message("a", "b", "prompter", message("c", "d", "prompter"))},
            "prompt: a reply of the same role as its message, prompter",
        ),
        ({"prompt": message("a", "b", "prompter", message("c", "d", rank=-1))}, "rank: .* 0"),
        ({**flat(a_tree())[0]}, "message_id: p1 must be there once"),
        ({**flat(a_tree())[1], "message_id": "z", "parent_id": "a1"}, "the same as its parent's"),
    ],
)
def test_oasst_names_the_line(tmp_path: Path, record: dict[str, Any], says: str) -> None:
    records = flat(a_tree())
    path = write(tmp_path / "messages.jsonl", [*records, record])
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:{len(records) + 1}: .*{says}"):
        oasst(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        hh(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: the file has no rows"):
        hh(tmp_path / "empty.jsonl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: not one of \.jsonl, \.jsonl\.gz, \.parquet"):
        hh(tmp_path / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="the folder has no file of"):
        hh(tmp_path / "folder")
    (tmp_path / "bad.jsonl.gz").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.jsonl\.gz: a damaged gzip file"):
        hh(tmp_path / "bad.jsonl.gz")
    whole = write(tmp_path / "cut.jsonl.gz", many(50)).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: a damaged gzip file"):
        hh(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bad.parquet").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.parquet: not a Parquet file"):
        hh(tmp_path / "bad.parquet")
    (tmp_path / "latin.jsonl").write_bytes(b'{"chosen": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not UTF-8 text"):
        hh(tmp_path / "latin.jsonl")
    write(tmp_path / "wrong.parquet", [{"prompt": "a"}])
    with pytest.raises(DataError, match=r"wrong\.parquet: row 1: chosen: Field required"):
        hh(tmp_path / "wrong.parquet")


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        HHOptions(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValidationError, match="revision is for the hub"):
        HHOptions(source=tmp_path, revision="main")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("Anthropic/hh-rlhf", None),
        ("squad", None),
        ("./data", "./data"),
        ("data/pairs.jsonl.gz", "data/pairs.jsonl.gz"),
        ("/data/pairs", "/data/pairs"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_what_is_a_path_and_what_is_on_the_hub(source: str, path: str | None) -> None:
    assert HHOptions(source=source).path == (None if path is None else Path(path))


def test_the_hub_out_of_reach_is_a_data_error() -> None:
    """The tests run offline, and no cache has this."""
    with pytest.raises(DataError, match="nobody/nothing: cannot be loaded from the Hugging Face"):
        HHRLHF(HHOptions(source="nobody/nothing")).fingerprint()


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's answer, without the network."""
    import datasets

    read: list[str] = []

    class Builder:
        hash = "5f1c"

        def download_and_prepare(self) -> None:
            read.append("prepared")

        def as_dataset(self) -> Any:
            train = datasets.Dataset.from_list([{**record, "more": 1} for record in many(30)])
            test = datasets.Dataset.from_list(many(6, "Test"))
            dev = datasets.Dataset.from_list(many(3, "Dev"))
            return datasets.DatasetDict({"train_prefs": train, "evaluation": test, "dev": dev})

    def load_dataset_builder(name: str, **options: Any) -> Any:
        assert (name, options) == ("some/pairs", {"data_dir": "helpful", "revision": None})
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    source = HHRLHF(HHOptions(source="some/pairs", data_dir="helpful"))
    first = source.fingerprint()
    assert not read  # the commit alone
    splits = everything(source)
    assert read == ["prepared"]
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 30,
        "validation": 3,
        "test": 6,
    }
    monkeypatch.setattr(Builder, "hash", "77aa")
    again = HHRLHF(HHOptions(source="some/pairs", data_dir="helpful"))
    assert again.fingerprint() != first


# Checks of recipes


def recipe_with(folder: Path, **block: Any) -> Path:
    """A shipped recipe, with other comparisons."""
    values = yaml.safe_load((RECIPES / "reward-model-hh.yaml").read_text())
    del values["model"]["chat_template"]
    values["data"]["comparisons"] = block
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def checked(path: Path, *overrides: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", str(path), *overrides])
    return result.exit_code, result.stderr


def test_check_of_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe_with(tmp_path, use="hh_rlhf", source="data/pairs.jsonl.gz")
    code, said = checked(path)
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "data:" in text) + 1
    assert code == 3
    assert said == (
        f"error: {tmp_path}/data/pairs.jsonl.gz: no such file "
        f"(mine.yaml:{line}: data.comparisons.source)\n"
    )
    write(tmp_path / "data/pairs.jsonl.gz", many(4))
    assert checked(path)[0] == 0


def test_check_of_a_bad_line_of_a_file_from_the_command_line(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, use="oasst")
    data = write(tmp_path / "trees.jsonl", [a_tree(), {"tree": 1}])
    code, said = checked(path, "data.comparisons.source=trees.jsonl")
    assert code == 3
    assert said.startswith(f"error: {data}:2: prompt: Field required")


@pytest.mark.parametrize("name", ["reward-model-hh.yaml", "reward-model-oasst.yaml"])
def test_check_leaves_the_hub_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    assert checked(RECIPES / name) == (0, "")


def test_check_reads_local_files_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "data/pairs.jsonl.gz", many(4))
    write(tmp_path / "data/pairs.parquet", many(4))
    path = recipe_with(tmp_path, use="hh_rlhf", source="data")
    code = (
        "import sys; from pathlib import Path; from rlhf_kit.recipe import open_recipe\n"
        f"open_recipe(Path({str(path)!r}))\n"
        "print(sorted({'torch', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "['pyarrow']\n"


# Partial rankings in files of the project's own form


def comparisons(path: Path, *ranks: list[int | None]) -> Comparisons:
    rows = [
        {"prompt": f"P{i}", "completions": list("abcd")[: len(r)], "ranks": r, "split": "train"}
        for i, r in enumerate(ranks)
    ]
    return Comparisons(JsonlOptions(path=write(path, rows)))


def test_ranks_may_be_partial(tmp_path: Path) -> None:
    ranks = [[0, None, 1], [None, 0, 0], [1, 0], [2, None, 0, None]]
    source = comparisons(tmp_path / "c.jsonl", *ranks)  # type: ignore[arg-type]
    assert [row["ranks"] for row in source.split("train")] == ranks


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ([0, None], ":1: ranks has 1 that are not null; a comparison takes two"),
        ([None, None], ":1: ranks has 0 that are not null"),
        ([0, -1], r":1: ranks\.1: .*greater than or equal to 0"),
        ([0, 0], ": no row ranks one completion above another; all are ties"),
    ],
)
def test_ranks_that_are_refused(tmp_path: Path, ranks: list[int | None], says: str) -> None:
    path = tmp_path / "c.jsonl"
    with pytest.raises(DataError, match=re.escape(str(path)) + says):
        comparisons(path, ranks).split("train")


# The real files, where they are


def real(folder: str) -> Path:
    root = os.environ.get("RLHF_KIT_DATA")
    if not root:
        pytest.skip("RLHF_KIT_DATA names no folder with hh-rlhf/ and oasst/")
    path = Path(root) / folder
    assert path.is_dir(), f"RLHF_KIT_DATA: no folder {path}"
    return path


def test_the_real_helpful_pairs() -> None:
    source = hh(real("hh-rlhf") / "helpful-base-test.jsonl.gz")
    splits = everything(source)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1861, "validation": 472}
    assert sum(source.dropped.values()) == 2354 - 1861 - 472
    assert separate(splits)
    for row in rows_of(source):
        assert row["messages"][-1]["role"] == "user"
        assert len(set(row["completions"])) == 2


def test_the_real_trees(tmp_path: Path) -> None:
    path = real("oasst") / "trees_60.jsonl"
    source = oasst(path)
    splits = everything(source)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 91, "validation": 31}
    assert separate(splits)
    sizes = Counter(len(row["completions"]) for row in rows_of(source))
    assert sizes == {2: 30, 3: 72, 4: 14, 5: 1, 6: 3, 8: 1, 9: 1}
    # The same trees as the hub's table of messages.
    trees = [json.loads(line) for line in path.read_text().splitlines()]
    table = [row for tree in trees for row in flat(_with_replies(tree))]
    again = oasst(write(tmp_path / "messages.jsonl", table))
    assert everything(again) == splits


def _with_replies(tree: dict[str, Any]) -> dict[str, Any]:
    def full(node: dict[str, Any]) -> dict[str, Any]:
        return {**node, "replies": [full(reply) for reply in node.get("replies", [])]}

    return {"prompt": full(tree["prompt"])}
