"""One run per folder: a file that names the process which writes there. Torch-free."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlhf_kit.errors import DataError
from rlhf_kit.file_system import file_error

LOCK = ".lock"
BEAT = 30.0  # seconds between two signs of life
SETTLE = 1.0  # seconds after which a lock that the kernel does not know counts
DEAD = 600.0  # seconds without one after which a process of another machine counts as dead


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made if need be, and leave no trace where nothing was written.

    The kernel's lock on the file ends with its process, however that ends. Where it does not reach
    (another machine over a network), the file tells who holds the folder, and its age whether that
    process lives: by the clock of the file system, since clocks differ.

    Raises:
        DataError: another process holds it, or it cannot be written to.
    """
    made = _make(folder)
    path = folder / LOCK
    try:
        file, granted = _opened(path)
        own = _claimed(path, file, granted)
    except (OSError, DataError) as error:
        _remove(made)
        if isinstance(error, DataError):
            raise
        raise _told(error, path) from error
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        # What the run says counts, and a lock that stays behind holds nobody back.
        with contextlib.suppress(OSError):
            if _read(path) == own:  # else it was taken for dead, and the folder is another's now
                path.unlink(missing_ok=True)
            file.close()
        _remove(made)


def _remove(folders: list[Path]) -> None:
    for empty in folders:
        with contextlib.suppress(OSError):
            empty.rmdir()


def _opened(path: Path) -> tuple[IO[str], bool]:
    """The file at ``path``, and whether the kernel has locked it: not every file system can."""
    while True:
        file, granted = path.open("a+"), True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise _refusal(path, _read(path) or {}) from None
        except OSError:
            granted = False
        # Who had it before may have removed the file between opening and locking.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file, granted
        file.close()


def _claimed(path: Path, file: IO[str], granted: bool) -> dict[str, Any]:
    """Write into the lock whose it is, unless it is of a process that lives."""
    holder = _read(path)
    # Under one kernel, in whatever container, who lives has its lock.
    gone = granted and holder is not None and holder.get("boot") == _boot()
    if holder and not gone and _lives(holder, path):
        file.close()
        raise _refusal(path, holder)
    pid = os.getpid()
    own = {"host": _host(), "pid": pid, "started": _started(pid)}
    own |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": secrets.token_hex(8)}
    own["boot"] = _boot()
    try:
        file.truncate(0)
        file.write(json.dumps(own))
        file.flush()
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
            file.close()
        raise
    if not granted:
        time.sleep(SETTLE)  # of several that came at once the last one to write has it
        found = _read(path)
        if found != own:
            file.close()
            raise _refusal(path, found or {})
    return own


def _refusal(path: Path, holder: dict[str, Any]) -> DataError:
    host = str(holder.get("host", "?")).partition(" ")[0]
    return DataError(
        f"{path.parent}: another run writes here: process {holder.get('pid', '?')} on {host}, "
        f"since {holder.get('since', '?')}; wait for it, stop it, or choose another --out. If it "
        f"is surely gone, remove {path}"
    )


def _make(folder: Path) -> list[Path]:
    """Make ``folder``; those that were not there, the innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _told(error, folder) from error
    return missing


def _told(error: OSError, path: Path) -> DataError:
    words = f"{path}: cannot be written to: {error.strerror}; choose another --out"
    return file_error(error, path) or DataError(words)


def _lives(holder: dict[str, Any], path: Path) -> bool:
    if holder.get("host") == _host():
        pid = holder.get("pid")
        return isinstance(pid, int) and _started(pid) == holder.get("started")
    now = path.with_name(f"{LOCK}.{os.getpid()}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime < DEAD
    finally:
        now.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None where nobody has said so: a process that was killed before."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _boot() -> str:
    """This start of this kernel; where it does not say, a word that nothing equals."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(8)


def _host() -> str:
    """This machine, and where there are several process tables on it, which one."""
    table = ""
    with contextlib.suppress(OSError):
        table = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {table}".strip()


def _started(pid: int) -> str:
    """When a process began, so that a number used again is not taken for it; "" if it is gone."""
    try:
        # The name of the command, in parentheses, may hold spaces.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if words[0] == "Z" else words[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists() or pid <= 0:
        return ""
    try:  # no such table here: all that can be asked is whether there is one
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "alive"
