"""Checks of source and destination, and the locks by which one run at a time uses them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.files import write_error
from deepatlas.intake.privacy.identity import private_folder

try:
    import fcntl
except ImportError:
    # On Windows.
    fcntl = None  # type: ignore[assignment]

# What the folder of a dataset contains. A folder with anything else is something that must not be overwritten.
_OURS = {"dataset.json", "exams", "packed.h5", "manifest.sqlite", "manifest.sqlite-journal", "report.html"}
# What operating systems leave in any folder that is displayed.
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
# Temporary files of files.atomic_path, which a process that was killed leaves behind.
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.\d+\..+")


def check_places(src: Path, dst: Path) -> None:
    """Raise :class:`~deepatlas.errors.DataError` unless ``src`` exists and ``dst`` is new, empty or a dataset."""
    if not src.exists():
        raise DataError(f"{src}: no such file or folder; check the path")
    source, target = src.resolve(), dst.resolve()
    private = private_folder(target)
    if target == source:
        raise DataError(f"{dst}: is the source itself; choose another folder for the dataset")
    for place in (target, private):
        if source.is_dir() and place.is_relative_to(source):
            raise DataError(
                f"{dst}: lies in the source {src}, which it would become a part of; choose another folder"
            )
        if source.is_relative_to(place):
            raise DataError(
                f"{src}: lies in the dataset {dst}, which would be overwritten; choose another folder"
            )
    if not dst.exists():
        return
    if not dst.is_dir():
        raise DataError(f"{dst}: is a file; `prepare` makes a folder, so choose another name")
    try:
        names = {name for name in os.listdir(dst) if not (_TEMPORARY.fullmatch(name) or name in _JUNK)}
    except OSError as error:
        raise write_error(dst, error) from error
    if strange := sorted(names - _OURS):
        raise DataError(f"{dst}: holds other things ({strange[0][:40]}); choose a new or empty folder")
    if names and not (private / "salt").exists():
        raise DataError(
            f"{private}: missing, and with it the salt of the ids in {dst}; put it back, or choose another folder"
        )


def may_write(dst: Path) -> None:
    """Create ``dst`` and try to write there, so that a read-only disk is noticed before hours of reading."""
    probe = dst / f".{secrets.token_hex(4)}.{os.getpid()}.probe"
    try:
        dst.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise write_error(dst, error) from error


def clear_leftovers(dst: Path) -> None:
    """Remove the temporary files of processes that were killed. No other process may be writing to ``dst``."""
    for pattern in (".*", "exams/*/.*"):
        for path in dst.glob(pattern):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()


@contextmanager
def held(path: Path, busy: str | None, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock, which ends with the process. If it is taken, raise ``busy``, or wait if that is None."""
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, kind | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise DataError(f"{path.parent}: {busy}") from None
        except OSError:
            # Some file systems have no locks.
            pass
        yield
    finally:
        os.close(handle)
