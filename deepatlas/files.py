"""Files that are either whole or absent, and operating-system errors as one line."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.errors import WriteError

if TYPE_CHECKING:
    import h5py

_CURES = {
    errno.ENOSPC: ("the disk is full", "free space or write somewhere else"),
    errno.EDQUOT: ("the disk quota is used up", "free space or write somewhere else"),
    errno.EFBIG: ("the file is larger than this system allows", "raise the limit or write somewhere else"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to"),
    errno.EPERM: ("permission denied", "choose a folder that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a folder that you may write to"),
    errno.ENOENT: ("its folder is gone", "leave it where it is while it is written, and run again"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "choose another path"),
    errno.EISDIR: ("it is a folder", "give a file name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the device failed", "check the disk"),
}


def write_error(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """The one-line error for an :class:`OSError` met while writing ``path``."""
    number = error.errno
    if number not in _CURES:  # h5py raises a plain OSError that names the number in its text
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found.group(1)) if found else number
    reason, cure = _CURES.get(number or 0, (str(error), "check the path and the disk"))
    return WriteError(f"{path}: cannot write: {reason}; {cure}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffixes (``.nii.gz``), because writers choose the format by them. Missing
    parent folders are made. On any error the temporary file is removed and ``path`` is left as it was;
    an :class:`OSError` is raised again as a one-line :class:`~deepatlas.errors.WriteError`.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{os.getpid()}.{path.name}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    with suppress(OSError):  # the rename itself survives a power cut only once the folder is on disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_h5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Like :func:`atomic_path`, giving a new HDF5 file opened for writing.

    HDF5 does not survive a failed write: objects that cannot be flushed crash the process later. So the
    library writes through a Python file that keeps the first error to itself and drops what follows; the
    error is raised when the HDF5 file is closed.
    """
    import h5py

    with atomic_path(path) as temporary, _KeepsError(temporary) as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        except Exception:
            if raw.error is not None:  # what HDF5 says about missing bytes is a consequence
                raise raw.error from None
            raise
        if raw.error is not None:
            raise raw.error


class _KeepsError(io.FileIO):
    """A file for HDF5 to write to. ``error`` is the first failure, after which nothing is written."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        super().__init__(path, "w+")

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0  # a raw write may be short
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        view[count:] = bytes(len(view) - count)  # dropped bytes read as zeros
        return len(view)
