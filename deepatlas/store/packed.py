"""``hu`` and ``mask`` of a store, which every batch of training reads: rows of equal size that are read without HDF5.

HDF5 reads and decompresses under one lock for the whole process, and h5py holds Python's global lock meanwhile, so that
reading an exam stops the training thread for 3 ms. Therefore ``hu`` and ``mask`` are contiguous datasets without a
filter, whose position in the file is known. Reading a row with the operating system and verifying its checksum takes a
tenth of the time, and any number of threads can do so in parallel with Python code.
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
# For each dataset the dtype in the file and the number of values of an exam. The mask has one bit per voxel.
ROWS: dict[str, tuple[np.dtype, int]] = {
    "hu": (np.dtype("<i2"), VOXELS),
    "mask": (np.dtype("u1"), VOXELS // 8),
}
# The dataset of checksums, uint32 [N, 2]: CRC-32 of the bytes of each row, in the order of ROWS.
CHECKSUMS = "crc32"
AGAIN = "delete it and prepare it again"


class PackedWriter:
    """Creates the datasets ``hu``, ``mask`` and ``crc32`` for ``count`` exams in a new HDF5 file."""

    def __init__(self, file: h5py.File, count: int) -> None:
        self._hu = file.create_dataset("hu", (count, MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), dtype=ROWS["hu"][0])
        self._mask = file.create_dataset("mask", (count, ROWS["mask"][1]), dtype=ROWS["mask"][0])
        self._sums = file.create_dataset(CHECKSUMS, (count, len(ROWS)), dtype=np.uint32)

    def write(self, row: int, hu: NDArray, mask: NDArray) -> None:
        """Write one exam.

        Args:
            row: the position of the exam.
            hu: Hounsfield units, int16 ``[64, 64, 64]``.
            mask: the foreground, of the same shape and any dtype; every value except 0 is foreground.
        """
        hu = np.ascontiguousarray(hu, dtype=ROWS["hu"][0])
        bits = np.packbits(np.asarray(mask, dtype=bool).reshape(-1))
        self._hu[row], self._mask[row] = hu, bits
        self._sums[row] = zlib.crc32(hu.data), zlib.crc32(bits.data)


class PackedReader:
    """Reads rows of ``hu`` and ``mask``. Several threads may call its methods at the same time.

    Args:
        path: the store, which is kept open until :meth:`close`.
        ids: the ids of the exams, which messages name.

    Raises :class:`~deepatlas.errors.DataError` if the file cannot be read or has other datasets than expected.
    """

    def __init__(self, path: Path, ids: Sequence[str]) -> None:
        self.path, self.ids = Path(path), ids
        self._offsets: dict[str, int] = {}
        try:
            with h5py.File(path, "r", locking=False) as file:
                self._sums: NDArray[np.uint32] = file[CHECKSUMS][:]
                for name, (dtype, values) in ROWS.items():
                    dataset = file[name]
                    # None if the dataset is chunked, as after another program has rewritten the file.
                    offset = dataset.id.get_offset()
                    if offset is None or dataset.dtype != dtype or dataset.size != len(ids) * values:
                        raise DataError(f"{path}: damaged store ({name} is not laid out as written); {AGAIN}")
                    self._offsets[name] = offset
            if self._sums.shape != (len(ids), len(ROWS)):
                raise DataError(f"{path}: damaged store ({len(self._sums)} checksums); {AGAIN}")
            self._file = open(path, "rb", buffering=0)
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: damaged store ({error}); {AGAIN}") from error
        # Used where the operating system cannot read at a given position.
        self._lock = threading.Lock()

    def read_into(self, name: str, row: int, out: NDArray) -> None:
        """Fill ``out`` with a row and verify its checksum.

        Args:
            name: a key of :data:`ROWS`.
            row: the position of the exam.
            out: a contiguous array of the row's dtype and size; the mask is read as packed bits.

        Raises :class:`~deepatlas.errors.DataError` if the row cannot be read or has changed.
        """
        dtype, values = ROWS[name]
        view = out.reshape(-1).data.cast("B")
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
                "check its disk or network"
            ) from error
        if zlib.crc32(view) != self._sums[row, list(ROWS).index(name)]:
            raise DataError(f"{self.path}: {name} is damaged in exam {self.ids[row]}; {AGAIN}")

    def hu(self, row: int) -> NDArray[np.int16]:
        """Hounsfield units, int16 ``[64, 64, 64]``."""
        out = np.empty((MODEL_SIZE,) * 3, dtype=ROWS["hu"][0])
        self.read_into("hu", row, out)
        return out

    def mask(self, row: int) -> NDArray[np.uint8]:
        """Foreground uint8 ``[64, 64, 64]``: 1 for voxels of the patient, 0 elsewhere."""
        bits = np.empty(ROWS["mask"][1], dtype=np.uint8)
        self.read_into("mask", row, bits)
        return np.unpackbits(bits).reshape((MODEL_SIZE,) * 3)

    def close(self) -> None:
        """Close the file. The reader cannot be used afterwards."""
        self._file.close()

    def _read_at(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view) or 0
