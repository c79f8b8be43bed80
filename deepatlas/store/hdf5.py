"""One HDF5 file read by many processes: each opens it for itself, and what is wrong with it is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Hdf5Reader:
    """A file that is opened on first use, once in every process, and closed with :meth:`close`.

    Safe to hand to worker processes: pickling leaves the open file behind, and after a fork the child opens the file
    again instead of sharing the parent's handle.
    """

    kind = "HDF5 file"  # what messages call it
    absent = "check the path"  # cure where there is no file
    foreign = "not an HDF5 file; check the path"
    again = "copy it again"  # cure where it is damaged

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:  # a data-loading process opens the file for itself
        return {**self.__dict__, "_file": None}

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such {self.kind}; {self.absent}")
            try:
                # Some network disks know no locks; nobody writes to a file that has its name already.
                self._file = h5py.File(self.path, "r", locking="best-effort")
            except (OSError, RuntimeError) as error:
                raise DataError(f"{self.path}: {self._why(error)}") from error
            self._pid = os.getpid()
        return self._file

    def _why(self, error: Exception) -> str:
        text = str(error)
        if "signature not found" in text:
            return self.foreign
        if "truncated" in text:
            return f"truncated {self.kind}; {self.again}"
        if isinstance(error, PermissionError):
            return "permission denied; check who may read it"
        return f"damaged {self.kind} ({text.splitlines()[-1]}); {self.again}"


class FileArray:
    """One array of a file, read on indexing; a damaged block raises a one-line error."""

    def __init__(self, reader: Hdf5Reader, name: str) -> None:
        self._reader, self._name = reader, name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._reader._open()[self._name].shape)

    @property
    def dtype(self) -> np.dtype:
        return self._reader._open()[self._name].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray:
        try:
            return self._reader._open()[self._name][index]
        except (OSError, KeyError, RuntimeError) as error:
            reader = self._reader
            raise DataError(f"{reader.path}: {self._name} is damaged; {reader.again}") from error


def begins_like_hdf5(path: Path) -> bool:
    """True if ``path`` is a file that begins like an HDF5 file."""
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(len(SIGNATURE)) == SIGNATURE
