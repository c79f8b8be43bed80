"""A cache for what the tests compile, so that it is compiled once: for all runs, and for all workers of a run.

The cache is the folder ``deepatlas_tests`` in the cache directory of the user. An entry is a folder whose name is a
hash of everything that the result depends on. If several processes need an entry at the same time, one of them builds
it, and a file lock makes the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# Entries that nobody has used for so long belong to sources that have changed.
UNUSED_SECONDS = 30 * 24 * 3600.0
HEADERS = (".h", ".cuh")


def folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(base).expanduser() / "deepatlas_tests"


def version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, encoding="utf-8", check=True).stdout


def headers_in(*folders: Path) -> list[Path]:
    return sorted(path for one in folders for path in one.iterdir() if path.suffix in HEADERS)


def compiled(parts: Iterable[str], files: Iterable[Path], build: Callable[[Path], None]) -> Path:
    """The folder that ``build(folder)`` has filled, in this process or in an earlier one.

    ``parts`` (such as flags and versions) and the contents of ``files`` are everything that the result depends on. If
    ``build`` raises an error, nothing is kept.
    """
    digest = hashlib.sha256()
    for part in (*parts, *(f"{path.name}\0{path.read_text()}" for path in files)):
        digest.update(part.encode() + b"\0")
    entry = folder() / digest.hexdigest()[:24]
    entry.parent.mkdir(parents=True, exist_ok=True)
    if not entry.is_dir():
        with _locked(entry.with_suffix(".lock")):
            # Another process may have built the entry while this one waited.
            if not entry.is_dir():
                _build(entry, build)
    os.utime(entry)
    return entry


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    _remove_unused(entry.parent)
    building = entry.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        build(building)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    os.replace(building, entry)


def _remove_unused(cache: Path) -> None:
    for entry in cache.iterdir():
        with contextlib.suppress(OSError):
            if entry.is_dir() and time.time() - entry.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(entry)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Closing the file releases the lock.
        yield
