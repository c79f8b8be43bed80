"""The stores that training keeps of data directories: where they are, who uses them, and how they are removed.

They hold the CTs of patients, so that nobody but their owner may read them (folders 0700, files 0600).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError, did_you_mean
from deepatlas.exams.build_store import ABOUT, building
from deepatlas.files import private_folder
from deepatlas.locks import held
from deepatlas.store.store import Store, StoreVersionError
from deepatlas_ops.cache import user_cache

_STORE = re.compile(r".+-([0-9a-f]{16})\.h5")
_PARTS = re.compile(r"\.(?:.+-[0-9a-f]{16}\.h5|[0-9a-f]{32})\.parts")
# What a build leaves if it is killed: files of atomic_path, and parts of exams.
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.\d+\.[A-Za-z0-9.]+")
_PART = re.compile(r"[0-9a-f]{32}\.h5")


@dataclass(frozen=True)
class Entry:
    """Something in the cache: ``kind`` is "store", or "unfinished" for what a build that was stopped goes on from.

    ``data`` is the data directory that it was made of, where it is known; ``days`` is its age.
    """

    path: Path
    kind: str
    bytes: int
    days: float
    data: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "days": round(self.days, 2)}


def cache_folder() -> Path:
    """The folder of the stores, which need not exist."""
    return user_cache("deepatlas", "DEEPATLAS_CACHE") / "stores"


def store_path(
    roots: Sequence[Path], crop: str | None, intensity: str = "hu", region: Mapping[str, Any] | None = None
) -> Path:
    """Where the store of data directories is kept: in the user's cache, because data are often read-only.

    The folder is made, for its owner alone. ``region`` are the region and the models that a store of crops is cut by.
    """
    # Stores of Hounsfield units keep the names that earlier versions gave them.
    options = f"{crop}" if intensity == "hu" else f"{crop} {intensity}"
    options += json.dumps(region, sort_keys=True) if region else ""
    places = " ".join(str(root.resolve()) for root in roots)
    name = hashlib.sha256(f"{places} {options}".encode(errors="surrogateescape")).hexdigest()[:16]
    # The hash identifies the data; the name of their folder is for people, and may be as long as names can be.
    shown = "+".join(root.resolve().name for root in roots)
    if len(os.fsencode(shown)) > 100:
        # Without half a letter at the end.
        shown = os.fsencode(shown)[:100].decode(errors="ignore")
    return private_folder(cache_folder()) / f"{shown}-{name}.h5"


def used(path: Path) -> AbstractContextManager[bool]:
    """Keep a store of the cache from being cleared within the block."""
    return held(_lock(path), None, shared=True)


def entries() -> list[Entry]:
    """What is in the cache, by name. Anything that this package did not make is left out."""
    found = []
    folder = cache_folder()
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for path in (folder / name for name in names):
        if path.is_symlink():
            continue
        if path.is_file() and _STORE.fullmatch(path.name):
            with suppress(DataError):
                found.append(_entry(path, "store", _root(path)))
        elif path.is_file() and _TEMPORARY.fullmatch(path.name):
            found.append(_entry(path, "unfinished", ""))
        elif path.is_dir() and _PARTS.fullmatch(path.name) and _holds_parts(path):
            found.append(_entry(path, "unfinished", _data_of(path)))
    return found


def clear(names: Sequence[str] = ()) -> tuple[list[Entry], dict[str, str]]:
    """Remove the entries with these names (of the file, with or without folder, or of the data), or all of them.

    Returns what was removed, and why the others were not, by path.

    Raises :class:`~deepatlas.errors.DataError` for a name that no entry has.
    """
    there = entries()
    chosen = there if not names else [e for name in names for e in _named(name, there)]
    removed: list[Entry] = []
    kept: dict[str, str] = {}
    for entry in dict.fromkeys(chosen):
        try:
            _remove(entry)
            removed.append(entry)
        except (DataError, OSError) as error:
            kept[str(entry.path)] = str(error)
    return removed, kept


def _root(path: Path) -> str:
    """The data directory of a store; empty for a store of another version. Raises for a file that is no store."""
    try:
        with Store(path) as store:
            return str(store.root)
    except StoreVersionError:
        return ""


def _remove(entry: Entry) -> None:
    """Remove an entry unless another process uses it or builds in its folder."""
    lockable = "its disk has no file locks, so that nobody can tell whether it is in use; remove it yourself"
    with building(
        entry.path, "another process prepares exams in this folder; wait until it has ended"
    ) as alone:
        if not alone:
            raise DataError(f"{entry.path}: {lockable}")
        if entry.kind == "store":
            busy = "a run uses this store; wait until it has ended"
            with held(_lock(entry.path), busy) as there:
                if not there:
                    raise DataError(f"{entry.path}: {lockable}")
                entry.path.unlink()
                # Afterwards whoever waits for the lock makes the store again.
            return
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()


def _named(name: str, there: list[Entry]) -> Iterator[Entry]:
    real = os.path.realpath(name)
    hits = [
        e
        for e in there
        if name == e.path.name or real in (os.path.realpath(e.path), os.path.realpath(e.data or os.devnull))
    ]
    if not hits:
        raise DataError(f"{name}: not in the cache; {did_you_mean(name, [e.path.name for e in there])}")
    yield from hits


def _lock(path: Path) -> Path:
    """The file of a store's lock, which stays; its name tells nothing of the data."""
    match = _STORE.fullmatch(path.name)
    return path.with_name(f".{match[1] if match else path.stem}.lock")


def _entry(path: Path, kind: str, data: str) -> Entry:
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    return Entry(path, kind, size, (time.time() - path.stat().st_mtime) / 86400, data)


def _holds_parts(folder: Path) -> bool:
    return all(n == ABOUT or _PART.fullmatch(n) or _TEMPORARY.fullmatch(n) for n in os.listdir(folder))


def _data_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
