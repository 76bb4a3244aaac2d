"""Whether a model folder can be whole, as far as its small files and headers tell. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_OTHERS = ("generation_config.json", "tokenizer_config.json")  # read where they are
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_LONGEST_HEADER = 100_000_000  # of the format itself
_READ = {".json", ".model", ".txt", ".jinja"}  # beside the weights


def model_damage(folder: Path) -> str | None:
    """What is wrong with a model in the form of transformers, in words; None: nothing that shows.

    Looked at are config.json, the headers of the weights against the lengths of their files, the
    index of weights in several files, and whether a file is only the pointer to one.
    """
    return next(_damages(folder), None)


def _damages(folder: Path) -> Iterator[str]:
    config = json_object(folder / CONFIG)
    if isinstance(config, str):
        yield config
        return
    others = [path for path in map(folder.joinpath, _OTHERS) if path.exists()]
    yield from (why for why in map(json_object, others) if isinstance(why, str))
    read = sorted(path for path in folder.iterdir() if path.suffix in _READ)
    yield from filter(None, map(_pointer, read))
    path = _weights(folder, config)
    if not path.is_file():
        yield f"{folder}: holds no weights ({_SINGLE} or {_INDEX})"
    elif path.suffix != ".json":
        yield from filter(None, [weights_damage(path)])
    else:
        yield from _shard_damages(path)


def _weights(folder: Path, config: dict[str, Any]) -> Path:
    """The file of the weights, or the index of those in several files."""
    path = folder / str(config.get("transformers_weights") or _SINGLE)
    return path if path.is_file() else folder / _INDEX


def _shard_damages(path: Path) -> Iterator[str]:
    index = json_object(path)
    places = index if isinstance(index, str) else index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(s, str) for s in places.values()):
        yield places if isinstance(places, str) else f"{path}: has no weight_map"
        return
    for shard in sorted(set(places.values())):
        found = _tensors(path.parent / shard)
        if isinstance(found, str):
            yield found
            continue
        lacking = sorted(n for n, place in places.items() if place == shard and n not in found)
        if lacking:
            yield f"{path.parent / shard}: lacks {listed(lacking)}, which {path.name} says it holds"


def numbers(folder: Path) -> int:
    """How many numbers the weights of a folder without damage hold."""
    config = json_object(folder / CONFIG)
    paths = [_weights(folder, config if isinstance(config, dict) else {})]
    if paths[0].suffix == ".json":
        index = json_object(paths[0])
        places = index["weight_map"] if isinstance(index, dict) else {}
        paths = [folder / shard for shard in sorted(set(places.values()))]
    headers = map(_tensors, paths)
    return sum(prod(entry["shape"]) for h in headers if isinstance(h, dict) for entry in h.values())


def weights_damage(path: Path) -> str | None:
    """What is wrong with a safetensors file, in words; None: nothing that its header tells."""
    found = _tensors(path)
    return found if isinstance(found, str) else None


def gguf_damage(path: Path) -> str | None:
    """What is wrong with a GGUF file, in words; None: nothing that its first bytes tell."""
    try:
        with path.open("rb") as file:
            begins = file.read(4) == b"GGUF"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None if begins else _pointer(path) or f"{path}: is no GGUF file"


def json_object(path: Path) -> dict[str, Any] | str:
    """What a JSON file holds, or why it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return _pointer(path) or f"{path}: is no JSON: {error}"
    return value if isinstance(value, dict) else f"{path}: is no JSON object"


def listed(names: list[str], shown: int = 3) -> str:
    """Some of ``names``, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _pointer(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            found = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return None  # a folder, say; who needs the file will say it
    what = f"{path}: is the pointer of a large-file store (git-lfs), not the file itself"
    return f"{what}; fetch that (git lfs pull)" if found else None


def _bits(dtype: str) -> int:
    """Of one number, as in F32, BF16 and F8_E4M3."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8  # BOOL


def _tensors(path: Path) -> dict[str, Any] | str:
    """The header of a safetensors file: name -> dtype, shape and place; or what is wrong."""
    if why := _pointer(path):
        return why
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= min(size, _LONGEST_HEADER) else b""
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if len(header) < length or not header:
        return f"{path}: is cut short or no safetensors: {size} bytes, without a whole header"
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        spans = sorted((*entry["data_offsets"], name) for name, entry in tensors.items())
        at = 0
        for begin, end, name in spans:
            bits = prod(tensors[name]["shape"]) * _bits(tensors[name]["dtype"])
            if begin != at or end - begin != bits // 8:
                return f"{path}: is damaged: the place of {name} is not as long as the tensor"
            at = end
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{path}: is damaged: its header is none of safetensors"
    if 8 + length + at != size:
        whole = 8 + length + at
        return f"{path}: is cut short or damaged: {size} bytes, and its header says {whole}"
    return tensors
