"""Of random files: what goes in comes out, and no question is in two splits."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_files import Row, by_split, comparisons, demonstrations, prompts, typed, write_lines
from rlhf_kit_data.options import HHOptions, OasstOptions
from rlhf_kit_data.published import HHRLHF, Oasst

MAKERS = {"prompts": prompts, "demonstrations": demonstrations, "comparisons": comparisons}
WORDS = (
    "why",
    "Straße",
    "ΣΊΣΥΦΟΣ",
    "日本語",
    "e\u0301",
    "I",
    "\u0130",
    "<|end|>",
    "a\u2028b",
    "0",
    "🙂",
)
SPACES = (" ", "  ", "\n", "\t", "\u00a0")
SPLIT = ("train", "validation", "test")


def some_text(rng: random.Random, words: int = 4) -> str:
    said = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, words)))
    return rng.choice(("", " ")) + said + rng.choice(("", "\n"))


def some_value(rng: random.Random, depth: int = 0) -> Any:
    """Anything JSON can say."""
    kinds = [
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, 1, -3, 2**53 + 1, 10**30)),
        lambda: rng.choice((0.0, -0.0, 1.0, 2.5, 1e-308, 0.1 + 0.2)),
        lambda: rng.choice(("", " ", "null", "1", some_text(rng))),
    ]
    if depth < 3:
        kinds += [
            lambda: [some_value(rng, depth + 1) for _ in range(rng.randint(0, 3))],
            lambda: {
                rng.choice(("a", "b", "", "prompt", "é")): some_value(rng, depth + 1)
                for _ in range(rng.randint(0, 3))
            },
        ]
    return rng.choice(kinds)()


def spelled(rng: random.Random, question: str) -> str:
    """The same question in another case and spacing."""
    words = [rng.choice((word, word.upper(), word.lower())) for word in question.split()]
    return rng.choice(("", " ")) + rng.choice(SPACES).join(words) + rng.choice(("", "\n "))


def some_row(rng: random.Random, kind: str, question: str) -> Row:
    """A row that begins with ``question``; its id is what it is found by."""
    row: Row = {}
    for _ in range(rng.randint(0, 3)):
        row[rng.choice(("answer", "meta", "text", "tags", "model_config"))] = some_value(rng)
    asked = spelled(rng, question)
    if rng.random() < 0.5:
        row["prompt"] = asked
    else:
        begin = [{"role": "system", "content": some_text(rng)}] if rng.random() < 0.3 else []
        more: list[Row] = []
        for _ in range(rng.choice((0, 0, 1, 2))):
            more += [
                {"role": "assistant", "content": some_text(rng)},
                {"role": "user", "content": some_text(rng), "meta": some_value(rng)},
            ]
        row["messages"] = [*begin, {"role": "user", "content": asked}, *more]
    if kind == "demonstrations":
        row["response"] = some_text(rng)
    if kind == "comparisons":
        count = rng.randint(2, 4)
        row["completions"] = [some_text(rng) for _ in range(count)]
        row["ranks"] = [0, 1, *(rng.choice((None, 0, 5)) for _ in range(count - 2))]
        if rng.random() < 0.5:
            row["scores"] = [rng.choice((1, 2.5, -3.0)) for _ in range(count)]
        if rng.random() < 0.5:
            row["finished"] = [rng.choice((True, False)) for _ in range(count)]
    keys = list(row)
    rng.shuffle(keys)
    return {key: row[key] for key in keys}


def some_rows(rng: random.Random, kind: str, questions: int, stated: float) -> list[Row]:
    """Several rows a question; some questions state a split, in one or more of their rows."""
    rows: list[Row] = []
    for q in range(questions):
        question = f"{some_text(rng, 2)} {q} ?"
        split = rng.choice(SPLIT) if rng.random() < stated else None
        for _ in range(rng.randint(1, 4)):
            row = some_row(rng, kind, question)
            if split is not None and rng.random() < 0.6:
                row["split"] = split
            rows.append(row | {"id": {"question": q, "row": len(rows)}})
    rng.shuffle(rows)
    return rows


def check_file(rows: list[Row], found: dict[str, list[Row]]) -> None:
    """Every row once, as it was, in its order; a question in one split, the one that it states."""
    place = {row["id"]["row"]: i for i, row in enumerate(rows)}
    out = sorted((place[row["id"]["row"]], row) for kept in found.values() for row in kept)
    assert [i for i, _ in out] == list(range(len(rows)))
    for (_, row), wanted in zip(out, rows, strict=True):
        assert typed(row) == typed(wanted)
        assert list(row) == list(wanted)
    for kept in found.values():
        places = [place[row["id"]["row"]] for row in kept]
        assert places == sorted(places)
    where: dict[int, set[str]] = {}
    for name, kept in found.items():
        for row in kept:
            where.setdefault(row["id"]["question"], set()).add(name)
            assert row.get("split", name) == name
    assert all(len(names) == 1 for names in where.values())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("kind", MAKERS)
def test_files_of_the_projects_own_form(tmp_path: Path, kind: str, name: str) -> None:
    for seed in range(60):
        rng = random.Random(f"{kind} {name} {seed}")
        rows = some_rows(rng, kind, rng.randint(1, 12), rng.choice((0.0, 0.5, 1.0)))
        check_file(rows, by_split(MAKERS[kind](write_lines(tmp_path / name, rows))))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_thousand_rows(tmp_path: Path, kind: str) -> None:
    rows = some_rows(random.Random(kind), kind, 400, 0.3)[:1000]
    assert len(rows) > 900
    found = by_split(MAKERS[kind](write_lines(tmp_path / "rows.jsonl", rows)))
    assert all(len(kept) > 50 for kept in found.values())
    check_file(rows, found)


# Published forms. Their rows are made, not kept: what a row says must come out, and in one split.


def written(path: Path, records: list[Row]) -> None:
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        write_lines(path, records)


def said(rng: random.Random, text: str) -> str:
    """Published texts lose the space around them, which their form has between turns."""
    return (spelled(rng, text) if text else some_text(rng)).strip()


Comparison = tuple[list[str], list[str], list[int | None]]  # turns, completions, ranks


def out_of(source: Any) -> tuple[list[Comparison], dict[int, set[str]]]:
    rows: list[Comparison] = []
    where: dict[int, set[str]] = {}
    for name, kept in by_split(source).items():
        for row in kept:
            turns = [m["content"] for m in row["messages"]]
            roles = [m["role"] for m in row["messages"]]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
            rows.append((turns, row["completions"], row["ranks"]))
            where.setdefault(int(turns[0].split()[0]), set()).add(name)
    return rows, where


LAYOUTS = (
    ("{}",),
    ("train/{}", "test/{}"),
    ("a/train-{}", "a/test-{}", "b/dev/{}"),
    ("x/{}", "y/{}"),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_pairs(tmp_path: Path, suffix: str) -> None:
    for seed in range(25):
        rng = random.Random(f"{suffix} {seed}")
        files: dict[str, list[Row]] = {}
        wanted: list[Comparison] = []
        for q in range(rng.randint(6, 20)):
            question, layout = f"{q} {some_text(rng, 2).strip()}", LAYOUTS[seed % len(LAYOUTS)]
            for _ in range(rng.randint(1, 3)):
                turns = [said(rng, question), *(said(rng, "") for _ in range(rng.choice((0, 2))))]
                answers = [f"good {said(rng, '')}!", f"bad {said(rng, '')}!"]
                begin = "".join(
                    f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)
                )
                chosen, rejected = (f"{begin}\n\nAssistant: {answer}" for answer in answers)
                file = rng.choice(layout).format(f"{rng.randint(0, 1)}{suffix}")
                # Train rows of a question that is held out are dropped, so it keeps to one file.
                file = next((f for f, rows in files.items() if rows[-1]["q"] == q), file)
                files.setdefault(file, []).append({"chosen": chosen, "rejected": rejected, "q": q})
                wanted.append((turns, answers, [0, 1]))
        folder = tmp_path / str(seed)
        for file, rows in files.items():
            written(folder / file, rows)
        found, where = out_of(HHRLHF(HHOptions(source=folder, test_fraction=0.2)))
        assert sorted(map(typed, found)) == sorted(map(typed, wanted))
        assert all(len(names) == 1 for names in where.values())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_pair_on_both_sides_is_trained_on_in_neither_form(tmp_path: Path, suffix: str) -> None:
    """Continuations and other spellings of held-out questions are dropped from what trains."""
    rng = random.Random(suffix)
    for part in ("train", "validation", "test"):
        rows = []
        for q in range(100):
            turns = [spelled(rng, f"{q} what is it ?").strip()]
            turns += ["Hm.", "And?"] if rng.random() < 0.5 else []
            begin = "".join(
                f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(turns)
            )
            if part == "train" or rng.random() < 0.4:
                rows += [{"chosen": f"{begin}\n\nAssistant: {a}", "rejected": begin} for a in "xy"]
        rows = [{**row, "rejected": f"{row['rejected']}\n\nAssistant: z"} for row in rows]
        written(tmp_path / part / f"0{suffix}", rows)
    source = HHRLHF(HHOptions(source=tmp_path))
    found, where = out_of(source)
    assert all(len(names) == 1 for names in where.values())
    assert len(where) == 100
    total = sum(len(_read(tmp_path / part / f"0{suffix}")) for part in SPLIT)
    assert len(found) + source.dropped["rows of a conversation held out elsewhere"] == total


def _read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def reply(messages: list[Row], parent: str | None, role: str, text: str, rank: int | None) -> str:
    id = f"m{len(messages)}"
    messages.append(
        {"message_id": id, "parent_id": parent, "role": role, "text": text, "rank": rank}
    )
    return id


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_trees(tmp_path: Path, suffix: str) -> None:
    """As messages, in any order: ranks and texts of all groups come out."""
    for seed in range(25):
        rng = random.Random(f"tree {suffix} {seed}")
        messages: list[Row] = []
        wanted: list[Comparison] = []
        for q in range(rng.randint(5, 12)):
            question = said(rng, f"{q} {some_text(rng, 2)}")
            root = reply(messages, None, "prompter", question, None)
            answers = [f"{i} {said(rng, '')}!" for i in range(rng.randint(2, 4))]
            ranks: list[int | None] = [*range(len(answers))]
            if len(answers) > 3:
                ranks[-1] = None
            ids = [
                reply(messages, root, "assistant", a, r)
                for a, r in zip(answers, ranks, strict=True)
            ]
            wanted.append(([question], answers, ranks))
            if rng.random() < 0.5:
                more = said(rng, "")
                second = reply(messages, ids[1], "prompter", more, None)
                for text, rank in (("yes", 1), ("no", 0)):
                    reply(messages, second, "assistant", text, rank)
                wanted.append(([question, answers[1], more], ["yes", "no"], [1, 0]))
        path = tmp_path / f"{seed}{suffix}"
        written(path, messages)
        found, where = out_of(Oasst(OasstOptions(source=path, validation_fraction=0.4)))
        assert sorted(map(typed, found)) == sorted(map(typed, wanted))
        assert all(len(names) == 1 for names in where.values())
