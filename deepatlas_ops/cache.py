"""Folders in which programs keep what they would otherwise make again, and locks between processes that use them."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORD = "build.json"
# How long a process waits for another one before it says so.
PATIENCE_SECONDS = 5.0


def user_cache(name: str, variable: str) -> Path:
    """The folder ``name`` in the cache directory of the user.

    The environment variable ``variable`` overrides it. Where the user has no home (an id without an entry in
    ``/etc/passwd``, as in containers) or may not write there, it is in a folder below the temporary directory that
    belongs to this user alone.
    """
    if override := os.environ.get(variable):
        # Without a home, a ~ stays as it is.
        return Path(os.path.expanduser(override))
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"))
    folder = Path(base) / name
    if os.path.isabs(base):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    return _private_temporary() / name


def _private_temporary() -> Path:
    """A folder that only this user can have made; code is loaded from it."""
    number = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"deepatlas-{number}"
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == number and not status.st_mode & 0o077:
            return folder
    # Somebody else has taken the name.
    return Path(tempfile.mkdtemp(prefix="deepatlas-"))


@contextlib.contextmanager
def file_lock(path: Path, waiting: str) -> Iterator[None]:
    """A lock between processes, which the operating system releases even if the process that holds it is killed.

    Args:
        path: the file of the lock, which stays.
        waiting: the line for stderr if another process holds the lock for some seconds.

    Not for Windows. Raises ``OSError`` where the file cannot be written or locked.
    """
    import fcntl

    with path.open("w", encoding="utf-8") as file:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    print(waiting, file=sys.stderr, flush=True)
                    fcntl.flock(file, fcntl.LOCK_EX)
                    break
                time.sleep(0.1)
        # Closing the file releases the lock.
        yield


def write_record(directory: Path, about: dict[str, Any]) -> None:
    """Describe what is kept in ``directory``."""
    (directory / RECORD).write_text(json.dumps(about, indent=1), encoding="utf-8")


def record(directory: Path) -> dict[str, Any]:
    """The description of what is kept in ``directory``; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def records(cache: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The folders of a cache that are described, and their descriptions, the latest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in cache.glob(f"*/{RECORD}"):
            found.append((path.stat().st_mtime, path.parent))
    return [(folder, record(folder)) for _, folder in sorted(found, reverse=True)]
