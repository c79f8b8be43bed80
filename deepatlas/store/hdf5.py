"""Reading one HDF5 file in many processes, with one-line errors for a file that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.files import refuse_pointer

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What h5py, and the code that interprets what it returns, may raise for a damaged file.
_DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)


class Hdf5Reader:
    """A file that is opened on first use, once in every process, and closed by :meth:`close`.

    It can be passed to worker processes: pickling omits the open file, and after a fork the child opens the file again
    instead of sharing the parent's handle.

    A subclass sets ``format``, which the file's attribute of that name must be, and the parts of messages: ``kind`` is
    what they call the file, ``absent`` the cure for a missing file, ``foreign`` the problem and the cure for a file of
    another kind, and ``again`` the cure for a damaged file.
    """

    format: str
    kind: str
    absent: str
    foreign: str
    again: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the file in this process; it is opened again when it is needed."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # The process that unpickles the reader opens the file itself.
        return {**self.__dict__, "_file": None}

    def open(self) -> h5py.File:
        """The file, opened in this process; :class:`~deepatlas.errors.DataError` if it cannot be opened."""
        if self._file is None or self._pid != os.getpid():
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such {self.kind}; {self.absent}")
            try:
                # No lock is needed, because nobody writes to a file that has its final name, and some file systems
                # have no locks.
                self._file = h5py.File(self.path, "r", locking=False)
            except (OSError, RuntimeError) as error:
                raise self._cannot_open(error) from error
            self._pid = os.getpid()
        return self._file

    def damaged(self, problem: object) -> DataError:
        """The error for a damaged file."""
        return DataError(f"{self.path}: damaged {self.kind} ({problem}); {self.again}")

    @contextmanager
    def reading(self) -> Iterator[h5py.File]:
        """Yield the open file; an error that damage causes in the block becomes a one-line error."""
        try:
            yield self.open()
        except DataError:
            raise
        except _DAMAGE as error:
            raise self.damaged(error) from error

    @contextmanager
    def reading_tables(self) -> Iterator[h5py.File]:
        """Like :meth:`reading`, after a check of the format; the file is closed at the end of the block.

        For the small tables that a reader loads when it is created. The file is opened again, and then kept open, when
        an array is indexed.
        """
        try:
            with self.reading() as file:
                if file.attrs.get("format") != self.format:
                    raise DataError(f"{self.path}: {self.foreign}")
                yield file
        finally:
            self.close()

    def _cannot_open(self, error: Exception) -> DataError:
        if isinstance(error, PermissionError):
            return DataError(f"{self.path}: permission denied; check who may read it")
        refuse_pointer(self.path)
        if not h5py.is_hdf5(self.path):
            return DataError(f"{self.path}: {self.foreign}")
        text = str(error)
        # HDF5 distinguishes a truncated file from a damaged one in the text of its error alone.
        if "truncated" in text:
            return DataError(f"{self.path}: truncated {self.kind}; {self.again}")
        return self.damaged(text.splitlines()[-1])


class FileArray:
    """One array of a file, read when it is indexed; a damaged block raises a one-line error."""

    def __init__(self, reader: Hdf5Reader, name: str) -> None:
        self._reader, self._name = reader, name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._reader.open()[self._name].shape)

    @property
    def dtype(self) -> np.dtype:
        return self._reader.open()[self._name].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray:
        try:
            return self._reader.open()[self._name][index]
        except (OSError, KeyError, RuntimeError) as error:
            reader = self._reader
            raise DataError(f"{reader.path}: {self._name} is damaged; {reader.again}") from error


def begins_like_hdf5(path: Path) -> bool:
    """Whether ``path`` is a file that begins with the signature of HDF5."""
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(len(SIGNATURE)) == SIGNATURE
