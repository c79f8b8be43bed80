"""The arrays of a store that every batch of training reads: rows of equal size, written plain, read without HDF5.

HDF5 reads and decompresses under one lock for the whole process, and h5py holds Python's own lock meanwhile: an exam
takes 3 ms, in which the training thread stands still. So ``hu`` and ``mask`` are contiguous datasets without a filter,
whose place in the file is known. An operating-system read and a checksum take a tenth of the time, and any number of
threads do it side by side while Python goes on.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.constants import MODEL_SIZE

VOXELS = MODEL_SIZE**3
ROWS: dict[str, tuple[np.dtype, int]] = {  # name: dtype as it lies in the file, values of an exam
    "hu": (np.dtype("<i2"), VOXELS),
    "mask": (np.dtype("u1"), VOXELS // 8),  # a bit a voxel
}
CHECKSUMS = "crc32"  # uint32 [N, 2]: of the bytes of each row, in the order of ROWS
AGAIN = "delete it and prepare it again"


class PackedWriter:
    """Creates ``hu``, ``mask`` and their checksums for ``count`` exams in a new HDF5 file."""

    def __init__(self, file: h5py.File, count: int) -> None:
        self._hu = file.create_dataset("hu", (count, MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), dtype=ROWS["hu"][0])
        self._mask = file.create_dataset("mask", (count, ROWS["mask"][1]), dtype=ROWS["mask"][0])
        self._sums = file.create_dataset(CHECKSUMS, (count, len(ROWS)), dtype=np.uint32)

    def write(self, row: int, hu: NDArray, mask: NDArray) -> None:
        """An exam: Hounsfield units int16 ``[64, 64, 64]`` and its foreground, anything but 0, of the same shape."""
        hu = np.ascontiguousarray(hu, dtype=ROWS["hu"][0])
        bits = np.packbits(np.asarray(mask, dtype=bool).reshape(-1))
        self._hu[row], self._mask[row] = hu, bits
        self._sums[row] = zlib.crc32(hu), zlib.crc32(bits)


class PackedReader:
    """Reads rows of ``hu`` and ``mask``; every method may be called by several threads at once.

    Args:
        path: the store, which is kept open until :meth:`close`.
        ids: exam ids, for messages.

    Raises :class:`~deepatlas.errors.DataError` where the file cannot be read or holds other datasets.
    """

    def __init__(self, path: Path, ids: Sequence[str]) -> None:
        self.path, self.ids = Path(path), ids
        self._offsets: dict[str, int] = {}
        try:
            with h5py.File(path, "r") as file:
                self._sums: NDArray[np.uint32] = file[CHECKSUMS][:]
                for name, (dtype, values) in ROWS.items():
                    dataset = file[name]
                    offset = (
                        dataset.id.get_offset()
                    )  # None where it is chunked, as another program may leave it
                    if offset is None or dataset.dtype != dtype or dataset.size != len(ids) * values:
                        raise DataError(f"{path}: damaged store ({name} is not laid out as written); {AGAIN}")
                    self._offsets[name] = offset
            if self._sums.shape != (len(ids), len(ROWS)):
                raise DataError(f"{path}: damaged store ({len(self._sums)} checksums); {AGAIN}")
            self._file = open(path, "rb", buffering=0)
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: damaged store ({error}); {AGAIN}") from error
        self._lock = threading.Lock()  # where a read cannot be given a position

    def read_into(self, name: str, row: int, out: NDArray) -> None:
        """Fill ``out``, contiguous, of the row's dtype and size; :class:`DataError` if the bytes have changed."""
        dtype, values = ROWS[name]
        view = memoryview(out.reshape(-1)).cast("B")
        if out.dtype != dtype or len(view) != dtype.itemsize * values:
            raise ValueError(
                f"PackedReader: {name} needs {values} values of {dtype}, got {out.size} of {out.dtype}"
            )
        if not 0 <= row < len(self.ids):
            raise IndexError(f"PackedReader: row {row} of {len(self.ids)}")
        place, done = self._offsets[name] + row * len(view), 0
        try:
            while done < len(view):
                count = self._read_at(view[done:], place + done)
                if not count:
                    raise DataError(
                        f"{self.path}: truncated store, {name} of exam {self.ids[row]} is gone; {AGAIN}"
                    )
                done += count
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot read {name} of exam {self.ids[row]}: {error.strerror or error}; "
                "check the disk or the network that it is on"
            ) from error
        if zlib.crc32(view) != self._sums[row, list(ROWS).index(name)]:
            raise DataError(f"{self.path}: {name} is damaged in exam {self.ids[row]}; {AGAIN}")

    def hu(self, row: int) -> NDArray[np.int16]:
        """Hounsfield units ``[64, 64, 64]``."""
        out = np.empty((MODEL_SIZE,) * 3, dtype=ROWS["hu"][0])
        self.read_into("hu", row, out)
        return out

    def mask(self, row: int) -> NDArray[np.uint8]:
        """Foreground ``[64, 64, 64]``, 0 and 1."""
        bits = np.empty(ROWS["mask"][1], dtype=np.uint8)
        self.read_into("mask", row, bits)
        return np.unpackbits(bits).reshape((MODEL_SIZE,) * 3)

    def close(self) -> None:
        self._file.close()

    def _read_at(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view) or 0
