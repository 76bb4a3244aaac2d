"""Whether what is read is what was written: hashes of the files of a stage. Torch-free."""

from __future__ import annotations

from pathlib import Path

from rlhf_kit.content import file_digest
from rlhf_kit.errors import DataError
from rlhf_kit.run_folder import CHECKPOINTS, RECORD, read_record


def file_digests(folder: Path) -> dict[str, str]:
    """The hash of every file of a stage's result, by its path in ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): file_digest(path)
        for name, path in names.items()
        if name.parts[0] not in (RECORD, CHECKPOINTS) and not _hidden(name)
    }


def _hidden(name: Path) -> bool:
    """Of a file browser, or of a network file system that keeps what is open: not the stage's."""
    return any(part.startswith(".") for part in name.parts)


def check_artifact(folder: Path) -> bool:
    """Compare the files of a finished stage, or of a folder in its folder, with its record.

    Returns whether there was something to compare with: a stage that is not finished has nothing.

    Raises:
        DataError: a file is missing, or is not as the stage left it.
    """
    stage, prefix = folder, ""
    record = read_record(folder / RECORD)
    if not record:
        stage, prefix = folder.parent, f"{folder.name}/"
        record = read_record(stage / RECORD)
    files = {k: v for k, v in record.get("files", {}).items() if k.startswith(prefix)}
    for name, digest in files.items():
        _check_file(stage / name, digest, record["stage"])
    return bool(files)


def _check_file(path: Path, digest: str, stage: str) -> None:
    if not path.is_file():
        wrong = "is missing"
    elif file_digest(path) != digest:
        wrong = "is damaged, or was edited: it is not what the stage wrote"
    else:
        return
    raise DataError(
        f"{path}: {wrong}; put it back, or remove the folder of stage {stage!r} and the stage "
        "runs again"
    )
