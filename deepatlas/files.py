"""Writing files atomically, so that a reader sees a complete file or none, and reporting why a write failed."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.errors import DataError, WriteError

if TYPE_CHECKING:
    import h5py

# The reason and the cure for each error number of the operating system.
FREE_SPACE = "free space or write somewhere else"
_NOT_PERMITTED = ("permission denied", "choose a folder that you may write to")
_FILE_IN_PATH = ("a part of the path is a file, not a folder", "choose another path")
_CURES = {
    errno.ENOSPC: ("the disk is full", FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", FREE_SPACE),
    errno.EFBIG: ("the file is larger than this system allows", "raise the limit or write somewhere else"),
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.EROFS: ("the file system is read-only", _NOT_PERMITTED[1]),
    errno.ENOENT: (
        "its folder is gone",
        "leave the folder in place while the file is written, and run again",
    ),
    errno.ENOTDIR: _FILE_IN_PATH,
    errno.EEXIST: _FILE_IN_PATH,
    errno.EISDIR: ("it is a folder", "give a file name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the device failed", "check the disk"),
}
_POINTER = b"version https://git-lfs.github.com/spec/"
# The end of a name by which its format is known.
_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$", re.ASCII)


def refuse_pointer(path: str | os.PathLike[str]) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if a file holds the pointer of git-lfs in place of its content."""
    with suppress(OSError), open(path, "rb") as handle:
        if handle.read(len(_POINTER)) == _POINTER:
            raise DataError(
                f"{path}: a pointer of git-lfs, not the file itself; run `git lfs pull` where it was cloned, or "
                "download the file"
            )


def write_error(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """The one-line error for an :class:`OSError` that was raised while ``path`` was written."""
    number = error.errno
    if number not in _CURES:
        # h5py raises a plain OSError without a number, and gives the number in its text alone.
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found.group(1)) if found else number
    reason, cure = _CURES.get(number or 0, (str(error), "check the path and the disk"))
    return WriteError(f"{path}: cannot write: {reason}; {cure}")


def create_private(path: str | os.PathLike[str]) -> None:
    """Make an empty file that only its owner may read (mode 0600), unless it exists. Raises :class:`OSError`."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def private_folder(path: Path) -> Path:
    """``path``, a folder that only its owner may read (mode 0700), made if it is missing.

    Raises :class:`~deepatlas.errors.WriteError` if it cannot be made. On a disk without permissions (FAT), or in a
    folder of somebody else, it stays as it is.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which is renamed to ``path`` when the block ends without an error.

    The temporary name keeps the suffixes (such as ``.nii.gz``), because writers choose the format by them. The rest of
    it is plain and short, so that it can be given wherever the name of ``path`` itself can.
    Missing parent folders are created. If an error occurs, the temporary file is removed and ``path`` is left
    as it was; an :class:`OSError` is converted into a one-line :class:`~deepatlas.errors.WriteError`. With ``private``
    nobody but its owner may read the file (mode 0600), not even while it is written.
    """
    path = Path(path)
    suffix = _SUFFIXES.search(path.name)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{os.getpid()}{suffix[0] if suffix else '.part'}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            create_private(temporary)
        yield temporary
        # Windows flushes only what is open for writing.
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    # The rename survives a power failure only after the folder has been written to disk as well.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder whose files are moved into ``folder`` when the block ends without an error.

    So several files appear together, whatever stops the process while they are made: after an error there is none of
    them, nor an empty folder. Files of the same names are replaced. An :class:`OSError` is converted into a one-line
    :class:`~deepatlas.errors.WriteError`, and errors name the files as they are called in ``folder``.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    stage = folder / f".{secrets.token_hex(4)}.{os.getpid()}"
    done = False
    try:
        stage.mkdir(parents=True)
        yield stage
        for path in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = folder / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        done = True
    except WriteError as error:
        raise WriteError(str(error).replace(os.fspath(stage), os.fspath(folder))) from error
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in missing if not done else ():
            with suppress(OSError):
                path.rmdir()


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write ``text`` to a file as UTF-8, atomically (see :func:`atomic_path`).

    Bytes of a file name that are not UTF-8 are written as ``\\udcfc``.
    """
    with atomic_path(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_h5(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[h5py.File]:
    """Like :func:`atomic_path`, but yield a new HDF5 file that is open for writing.

    The HDF5 library does not survive a failed write: objects that it cannot flush crash the process later.
    It therefore writes through a Python file object that records the first error and discards all later data.
    That error is raised when the HDF5 file is closed.
    """
    import h5py

    with atomic_path(path, private=private) as temporary, _KeepsError(temporary) as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        except Exception:
            # If a write failed, the error that HDF5 raises about missing bytes is only a consequence.
            if raw.error is not None:
                raise raw.error from None
            raise
        if raw.error is not None:
            raise raw.error


class _KeepsError(io.FileIO):
    """The file object that HDF5 writes to. ``error`` is the first failure; nothing is written after it."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        super().__init__(path, "w+")

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                # An unbuffered write may write fewer bytes than it was given.
                done += super().write(view[done:]) or 0
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
        # Bytes that were discarded are read back as zeros.
        view[count:] = bytes(len(view) - count)
        return len(view)
