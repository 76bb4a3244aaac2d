"""What of one run folder is not as in another, in words; of what was owed to a run that was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from rlhf_kit.stage_options import CheckpointOptions

# What tells of a machine, an hour or an attempt, in each record.
_VARIES = {
    "stage.json": {"attempts", "seconds", "peak_rss_mib", "sha256"},
    "manifest.json": {"run", "attempts", "sha256"},
    "summary.json": {"seconds", "peak_rss_mib"},
}
_OF_A_ROW = {"time", "run", "attempt"}


def differences(found: Path, wanted: Path) -> list[str]:
    """What is not as it would be without a death: files, tensors, rows, records; a line each."""
    here, there = _files(found), _files(wanted)
    said = [f"{name}: an orphan" for name in sorted(here - there)]
    said += [f"{name}: missing" for name in sorted(there - here)]
    for name in sorted(here & there):
        one, other = found / name, wanted / name
        if one.is_file() and one.read_bytes() != other.read_bytes():
            said += [f"{name}: {text}" for text in _unlike(one, other)]
    return said


def _files(folder: Path) -> set[str]:
    """Of every file and folder in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _unlike(found: Path, wanted: Path) -> list[str]:
    match found.suffix:
        case ".safetensors":
            return _tensors(found, wanted)
        case ".jsonl":
            return _rows(rows(found), rows(wanted))
        case ".json":
            varies = _VARIES.get(found.name, set())
            one, other = (json.loads(path.read_text()) for path in (found, wanted))
            if varies:
                one, other = ({k: v for k, v in x.items() if k not in varies} for x in (one, other))
            return _values(one, other)
        case ".yaml":
            one, other = (yaml.safe_load(path.read_text()) for path in (found, wanted))
            for values in (one, other):
                values.pop("checkpoint", None)  # when it is saved changes nothing
            return _values(one, other)
    return ["other content"]


def _tensors(found: Path, wanted: Path) -> list[str]:
    said = []
    with safe_open(found, "pt") as one, safe_open(wanted, "pt") as other:
        if (one.metadata(), set(one.keys())) != (other.metadata(), set(other.keys())):
            return ["other tensors or metadata"]
        for name in one.keys():  # noqa: SIM118
            a, b = one.get_tensor(name), other.get_tensor(name)
            if a.shape != b.shape or a.dtype != b.dtype:
                said.append(f"{name}: {tuple(a.shape)} {a.dtype}, not {tuple(b.shape)} {b.dtype}")
            elif not torch.equal(a, b):
                gap, some = (a.double() - b.double()).abs().max(), int((a != b).sum())
                said.append(f"{name}: {some} of {a.numel()} numbers differ, by up to {gap:.3g}")
    return said or ["the same tensors in other bytes"]


def rows(path: Path) -> list[dict[str, Any] | str]:
    """Of a file of JSON lines; what is none stays text."""
    found: list[dict[str, Any] | str] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(line)
    return found


def _rows(found: list[Any], wanted: list[Any]) -> list[str]:
    one, other = ([_lasting(row) for row in some] for some in (found, wanted))
    if one == other:
        return []
    keys = [json.dumps(row, sort_keys=True) for row in one]
    said = [f"{len(one)} rows, not {len(other)}"] if len(one) != len(other) else []
    said += [f"twice: {key[:200]}" for key in sorted({k for k in keys if keys.count(k) > 1})]
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if a != b:
            said += [f"row {number}: {text}" for text in _values(a, b)]
            break
    return said or ["the same rows, and more"]


def _lasting(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {k: v for k, v in row.items() if k not in _OF_A_ROW and not k.startswith("seconds/")}


def _values(found: Any, wanted: Any, place: str = "") -> list[str]:
    """The places where two trees differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        said = []
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{place}.{key}" if place else str(key)
            if key not in found or key not in wanted:
                said.append(f"{inner}: {'only here' if key in found else 'missing'}")
            else:
                said += _values(found[key], wanted[key], inner)
        return said
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [text for i, (a, b) in pairs for text in _values(a, b, f"{place}[{i}]")]
    if found == wanted or (found != found and wanted != wanted):
        return []
    return [f"{place}: {str(found)[:120]!r}, not {str(wanted)[:120]!r}"]


def finished(out: Path, stage: str) -> bool:
    """Whether the record of a stage says so."""
    try:
        found = json.loads((out / "stages" / stage / "stage.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(found["finished"])


def owed(out: Path, stage: str, options: CheckpointOptions) -> int:
    """How many steps of ``stage`` an attempt at ``out`` may not do again.

    As many as the newest checkpoint that has its record says; and where rows tell of later steps,
    as many as `checkpoint` promises: before the last row was written, everything due was saved.
    """
    folder = out / "stages" / stage / "checkpoints"
    newest = max(
        (int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()), default=0
    )
    path = out / "metrics.jsonl"
    some = [row for row in rows(path) if isinstance(row, dict)] if path.is_file() else []
    mine = [row for row in some if row["stage"] == stage]
    if not mine:
        return newest
    before = mine[-1]["step"]  # steps that were over, their saving included
    by_steps = 0 if options.steps is None else before // options.steps * options.steps
    return max(newest, by_steps, _by_minutes(mine, options.minutes))


def _by_minutes(mine: list[dict[str, Any]], minutes: float | None) -> int:
    """The least step that may have been the last one saved, of rows of one step each."""
    last = mine[-1]
    steps = {row["step"]: row["time"] for row in mine if row["attempt"] == last["attempt"]}
    before = last["step"] - 1  # the last step whose end was followed by a look at the clock
    if minutes is None or before not in steps:
        return 0
    # After the step `saved` no other was: that many minutes had not passed when the clock was read.
    late = [saved for saved in steps if steps[before] - steps[saved] > 60 * minutes + 0.005]
    return max(late) + 1 if late else 0
