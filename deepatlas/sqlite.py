"""What all SQLite databases of the package share: opening, transactions, and what an error means."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

try:
    import fcntl
except ImportError:
    # On Windows.
    fcntl = None  # type: ignore[assignment]

# The index that `deepatlas index` keeps in a data directory or a dataset unless another place is given, and what it has
# beside it.
INDEX = "index.sqlite"
INDEX_FILES = (INDEX, f".{INDEX}.lock", f"{INDEX}-journal")

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


class Trouble(Enum):
    """What is wrong with a database, told from the code of an SQLite error."""

    # Another process writes to it.
    BUSY = auto()
    DISK_FULL = auto()
    # The device failed while reading or writing.
    DEVICE = auto()
    # It is damaged, or not an SQLite database.
    DAMAGED = auto()
    # It cannot be opened, or not for writing.
    ACCESS = auto()
    OTHER = auto()


_TROUBLES = {
    sqlite3.SQLITE_BUSY: Trouble.BUSY,
    sqlite3.SQLITE_LOCKED: Trouble.BUSY,
    sqlite3.SQLITE_FULL: Trouble.DISK_FULL,
    sqlite3.SQLITE_IOERR: Trouble.DEVICE,
    sqlite3.SQLITE_CORRUPT: Trouble.DAMAGED,
    sqlite3.SQLITE_NOTADB: Trouble.DAMAGED,
    sqlite3.SQLITE_READONLY: Trouble.ACCESS,
    sqlite3.SQLITE_CANTOPEN: Trouble.ACCESS,
    sqlite3.SQLITE_PERM: Trouble.ACCESS,
}


def trouble_of(error: sqlite3.Error) -> Trouble:
    """What an error means. Errors that Python's module itself raises carry no code and are ``OTHER``."""
    # The lowest byte of an extended result code is the primary one.
    return _TROUBLES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, Trouble.OTHER)


def has_locks(path: Path) -> bool:
    """Whether the file system of an existing file or folder has locks, without which databases cannot be written.

    Raises :class:`OSError` if ``path`` cannot be opened.
    """
    if fcntl is None:
        return True
    handle = os.open(path, os.O_RDONLY)
    try:
        # Not fcntl.lockf: closing the file would end the locks that a database of this process holds on it.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(handle)
    return True


def connect(
    path: Path | str, pragmas: Iterable[str] = (), *, uri: bool = False, any_thread: bool = False
) -> sqlite3.Connection:
    """Open a database in autocommit mode and apply ``pragmas`` ("synchronous = OFF").

    Args:
        uri: ``path`` is an SQLite URI.
        any_thread: several threads may use the connection, one at a time.
    """
    db = sqlite3.connect(path, uri=uri, isolation_level=None, timeout=60, check_same_thread=not any_thread)
    try:
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
    """Changes that are made completely or, if the block raises, not at all."""
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # Some errors, such as a full disk, have rolled the transaction back already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
