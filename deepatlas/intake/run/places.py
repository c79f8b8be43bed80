"""Checks of source and destination."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.outputs import check_name, check_out_folder, lies_in, refuse_overwriting, same_place
from deepatlas.files import write_error
from deepatlas.intake.privacy.identity import private_folder
from deepatlas.locks import held
from deepatlas.sqlite import INDEX_FILES, has_locks

# What the folder of a dataset contains. A folder with anything else is something that must not be overwritten. An
# index of the dataset stays as it is.
_OURS = {"dataset.json", "exams", "packed.h5", "manifest.sqlite", "manifest.sqlite-journal", "report.html"}
_OURS |= set(INDEX_FILES)
# What operating systems leave in any folder that is displayed.
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
# Temporary files of files.atomic_path, which a process that was killed leaves behind.
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.\d+\..+")


def check_places(src: Path, dst: Path, names: Path | None = None) -> None:
    """Raise :class:`~deepatlas.errors.DataError` unless ``src`` exists and ``dst`` is new, empty or a dataset.

    ``names`` is the file of the name map. Neither it nor ``src`` may be a part of what is written.
    """
    if not src.exists():
        raise DataError(f"{src}: no such file or folder; check the path")
    target = dst.resolve()
    private = private_folder(target)
    if same_place(src, dst):
        raise DataError(f"{dst}: is the source itself; choose another folder for the dataset")
    for place in (target, private):
        if src.is_dir() and lies_in(place, src):
            raise DataError(
                f"{dst}: lies in the source {src}, which it would become a part of; choose another folder"
            )
        if lies_in(src, place):
            raise DataError(
                f"{src}: lies in the dataset {dst}, which would be overwritten; choose another folder"
            )
        if names is not None and lies_in(names, place):
            raise DataError(
                f"{names}: lies in {place}, which `prepare` writes; keep the name map somewhere else"
            )
    check_out_folder(dst, "DST")
    check_name(dst, "a dataset")
    if not dst.exists():
        return
    try:
        there = {name for name in os.listdir(dst) if not (_TEMPORARY.fullmatch(name) or name in _JUNK)}
    except OSError as error:
        raise write_error(dst, error) from error
    if strange := sorted(there - _OURS):
        raise DataError(f"{dst}: holds other things ({strange[0][:40]}); choose a new or empty folder")
    refuse_overwriting([dst / name for name in there], [src, *([names] if names else [])], "DST")
    if there and not (private / "salt").exists():
        raise DataError(
            f"{private}: missing, and with it the salt of the ids in {dst}; put it back, or choose another folder"
        )


def may_write(dst: Path) -> None:
    """Create ``dst`` and try to write there, so that a read-only disk is noticed before hours of reading."""
    probe = dst / f".{secrets.token_hex(4)}.{os.getpid()}.probe"
    try:
        dst.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        locks = has_locks(probe)
        probe.unlink()
    except OSError as error:
        raise write_error(dst, error) from error
    if not locks:
        raise DataError(
            f"{dst}: its disk has no file locks, which the databases of `prepare` need; choose a folder on another "
            "disk, and copy the finished dataset: it is read without locks"
        )


@contextmanager
def leaving_nothing(dst: Path, keep: Callable[[], bool]) -> Iterator[None]:
    """Where the block fails, remove the folders that it made, if they are of no use to a later run.

    ``dst`` is removed if it is empty, and its private folder unless ``keep()``: it may hold what took hours to read.
    """
    private = private_folder(dst)
    missing = [p for p in (Path(os.path.abspath(dst)), *Path(os.path.abspath(dst)).parents) if not p.exists()]
    new = not private.exists()
    try:
        yield
    except DataError:
        if new and private.is_dir() and not keep():
            # Another process may have begun to work on the same dataset.
            with suppress(DataError), held(private / "lock", "in use"):
                shutil.rmtree(private, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def clear_leftovers(dst: Path) -> None:
    """Remove the temporary files of processes that were killed. No other process may be writing to ``dst``."""
    for pattern in (".*", "exams/*/.*"):
        for path in dst.glob(pattern):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()
