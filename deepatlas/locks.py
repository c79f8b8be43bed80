"""A lock between processes, by which one of them at a time writes a dataset or a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.files import write_error

try:
    import fcntl
except ImportError:
    # On Windows.
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path, busy: str | None, *, shared: bool = False, anybody: bool = False) -> Iterator[bool]:
    """Hold a lock, which ends with the process, and yield whether there is one: some file systems have no locks.

    Args:
        path: the file of the lock, in the folder that it is for; it stays.
        busy: what the error says if another process holds the lock; None waits for it.
        shared: other processes may hold the lock too if they share it.
        anybody: the lock is for all users of its folder, as far as their umask lets them; otherwise for one user.

    Raises :class:`~deepatlas.errors.DataError` where the lock is taken, or its file cannot be written.
    """
    if fcntl is None:
        yield False
        return
    try:
        handle = _opened(path, 0o666 if anybody else 0o600)
    except OSError as error:
        raise write_error(path, error) from error
    there = True
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, kind | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise DataError(f"{path.parent}: {busy}") from None
        except OSError:
            there = False
        yield there
    finally:
        os.close(handle)


def _opened(path: Path, mode: int) -> int:
    """The file of a lock, which holds nothing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, mode)
    except PermissionError:
        # It is another user's, whose umask kept it from being written by others. To lock it, it need not be written.
        return os.open(path, os.O_RDONLY)
