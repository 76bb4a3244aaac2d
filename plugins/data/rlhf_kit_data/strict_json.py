"""JSON that says one thing: no key twice, no number that JSON does not have. Torch-free."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rlhf_kit.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NONZERO = re.compile(r"[^eE]*[1-9]")  # before the exponent


def parse(line: bytes, where: str) -> Any:
    """The value of one line of UTF-8.

    Raises:
        DataError: the line is not UTF-8, not JSON, or JSON that readers take for different things:
            a key twice in one object, NaN, Infinity, a number out of range, half a surrogate pair.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason})") from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{where}: not valid JSON: nested too deeply") from error
    except ValueError as error:
        why = str(error).partition("; use sys.")[0]  # of an integer with thousands of digits
        raise DataError(f"{where}: not valid JSON: {why}") from error
    if _SURROGATE.search(text):
        _refuse_half_pairs(value, where)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is there twice; keep one")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON; write a finite number or null")


def _float(text: str) -> float:
    value = float(text)
    lost = value == 0 and _NONZERO.match(text) is not None
    if math.isinf(value) or lost:
        raise ValueError(f"{text} is out of the range of a float")
    return value


def _refuse_half_pairs(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half of a surrogate pair, {error.object[error.start]!r}, is no character; "
            f"write both halves"
        ) from error


# Made once: json.loads would make one for every line.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
