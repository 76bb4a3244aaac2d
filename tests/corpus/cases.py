"""Bad input as data: each case is the toy project with a change, and what is said to it.

A case has an ``id``, and what it changes:

* ``set``, ``drop``: values of the toy recipe by dotted key; ``replace`` [[old, new], ...],
  ``replace_all``, ``prepend``, ``append``: its text; ``text``, ``bytes``: another recipe;
* ``files``: name -> text, null (removed), or one of ``bytes``, ``append``, ``folder``, ``link``,
  ``pipe``; ``line`` [file, number, text]: one line of a file;
* ``comparisons``: lines of a file of comparisons, behind one that is right, or ``alone``;
  ``published`` [component, file, text, options]: a file in the form of that component;
* ``stage``, ``manifest``: folder -> changes of its record;
* ``plugin``: text of a plugin file; ``uses``: target and options of the reward in one, behind its
  ``source``; ``args`` behind the recipe, or a whole ``command``.

A text may be a list of its pieces, and a piece [text, times]. What is expected is the ``exit`` code
(2) and a piece of the first line, ``says``; HERE stands for the folder of the project.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.run_folder import FORMAT, sealed

HERE = Path(__file__).parent
GROUPS = ("yaml", "grammar", "options", "references", "data", "rewards", "command_line", "running")

USING = """\
import rlhf_kit

class Mine:
    def __init__(self, options):
        pass

{source}
@rlhf_kit.hookimpl
def rlhf_components():
    return [rlhf_kit.Component("reward", "mine", {uses})]
"""
RECORD = {
    "format": FORMAT,
    "stage": "sft",
    "produces": "policy",
    "finished": True,
    "fingerprint": "made",
}
MANIFEST = {"format": FORMAT, "run": "x", "fingerprints": {}, "produces": {}, "attempts": []}
PAIR = '{"prompt": "z", "completions": ["x", "y"], "ranks": [0, 1]}'


def cases(group: str) -> list[dict[str, Any]]:
    """The cases of one file, with ids that tell which."""
    found = yaml.safe_load((HERE / f"{group}.yaml").read_text())
    return [case | {"id": f"{group}/{case['id']}"} for case in found]


def text_of(pieces: Any) -> str:
    """A text that is written as a whole, as pieces, or as a piece and how often it comes."""
    if not isinstance(pieces, list):
        return str(pieces)
    if len(pieces) == 2 and isinstance(pieces[1], int):
        return str(pieces[0]) * pieces[1]
    return "".join(map(text_of, pieces))


def project(case: dict[str, Any], values: dict[str, Any], folder: Path) -> list[str]:
    """Change the toy project in ``folder``, whose recipe has ``values``; the command line."""
    values, files = copy.deepcopy(values), dict(case.get("files", {}))
    extra = _parts(case, values, files)
    for key in case.get("drop", ()):
        block, name = _owner(values, key)
        del block[name]
    for key, value in case.get("set", {}).items():
        block, name = _owner(values, key)
        block[name] = _value(value)
    (folder / "toy.yaml").write_bytes(_recipe(case, values))
    for name, record in (("stage", RECORD), ("manifest", MANIFEST)):
        for place, changes in case.get(name, {}).items():
            edited = {key: changes[key] for key in changes if "sha256" in changes}
            content = json.dumps(sealed(record | changes) | edited)
            files[f"{place}/{name}.json"] = content
    if "line" in case:
        name, number, *pieces = case["line"]
        lines = (folder / name).read_text().splitlines()
        lines[number - 1] = text_of(pieces)
        files[name] = "\n".join(lines) + "\n"
    for name, content in files.items():
        _write(folder / name, content)
    if "command" in case:
        return [_value(word) for word in case["command"]]
    return [case.get("verb", "check"), "toy.yaml", *extra, *map(text_of, case.get("args", ()))]


def _parts(case: dict[str, Any], values: dict[str, Any], files: dict[str, Any]) -> list[str]:
    """Comparisons and plugins, which take a file and a place in the recipe."""
    data = values["data"]
    if "comparisons" in case:
        data["comparisons"] = {"use": "comparisons", "path": "c.jsonl"}
        if case["comparisons"] is not None:
            before = [] if "alone" in case else [PAIR]
            files["c.jsonl"] = "\n".join([*before, *map(text_of, case["comparisons"])]) + "\n"
    if "published" in case:
        use, name, content, *options = case["published"]
        data["comparisons"] = {"use": use, "source": name} | (options[0] if options else {})
        if content is not None:
            files[name] = text_of(content) + "\n"
    if "plugin" in case:
        name = case.get("as", "mine.py")
        if case["plugin"] is not None:
            files[name] = case["plugin"]
        return ["--plugin", name]
    if "uses" in case:
        files["mine.py"] = USING.format(uses=case["uses"], source=case.get("source", ""))
        values["stages"]["collect"]["labeler"]["reward"] = {"use": "mine"}
        return ["--plugin", "mine.py"]
    return []


def _owner(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *above, name = key.split(".")
    for word in above:
        if not isinstance(values.get(word), dict):
            values[word] = {} if word not in values else {"use": values[word]}
        values = values[word]
    return values, name


def _value(value: Any) -> Any:
    """A value with each ``{repeat: [text, times]}`` in it written out."""
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        if "repeat" in value:
            return text_of(value["repeat"])
        return {key: _value(item) for key, item in value.items()}
    return value


def _recipe(case: dict[str, Any], values: dict[str, Any]) -> bytes:
    if "bytes" in case:
        return str(case["bytes"]).encode("latin-1")
    if "text" in case:
        return text_of(case["text"]).encode()
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    for old, new in case.get("replace", ()):
        assert old in text, (case["id"], old)
        text = text.replace(old, text_of(new), 1)
    if "replace_all" in case:
        text = text.replace(*case["replace_all"])
    return (text_of(case.get("prepend", "")) + text + text_of(case.get("append", ""))).encode()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict) and "append" in content:
        path.write_text(path.read_text() + text_of(content["append"]))
        return
    path.unlink(missing_ok=True)
    if not isinstance(content, dict):
        if content is not None:
            path.write_bytes(text_of(content).encode())
    elif "bytes" in content:
        path.write_bytes(content["bytes"].encode("latin-1"))
    elif "folder" in content:
        path.mkdir()
    elif "link" in content:
        path.symlink_to(content["link"])
    elif "pipe" in content:
        os.mkfifo(path)
