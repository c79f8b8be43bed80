"""A prepared cohort: one HDF5 file with everything that training reads.

Reading it requires only h5py and NumPy. The layout of format 2, for N exams and K structures (a store with overlaps
states format 3):

===============  ======================  ==================================================================
``hu``           int16 [N, 64, 64, 64]   Hounsfield units, or the scale of :mod:`deepatlas.space.intensity`, on the
                                         model grid (RAS order, z, y, x)
``mask``         uint8 [N, 32768]        foreground of paper 5.5.3, one bit per voxel (``numpy.packbits``)
``crc32``        uint32 [N, 2]           checksums of an exam's bytes in ``hu`` and in ``mask``
``labels``       uint [N, 64, 64, 64]    label ids: the majority over 2x2x2 of ``labels_fine``; 0 without labels
``labels_fine``  uint [N, 128, ...]      label ids on the 128 grid before pooling, nearest neighbour
``hidden/<row>``       group             what ``labels`` hides where structures overlap; absent otherwise
``hidden_fine/<row>``  group             the same for ``labels_fine`` (:mod:`deepatlas.store.overlaps`)
``has_label``    uint8 [N, K]            1 where the structure was drawn in the exam
``grid``         float64 [N, 4, 4]       affine of the 64 grid
``fine_grid``    float64 [N, 4, 4]       affine of the 128 grid
``native_grid``  float64 [N, 4, 4]       affine of the exam's own voxels
``native_shape`` int64 [N, 3]            shape of the exam's own voxels (z, y, x)
``ids``          string [N]              exam ids
``coords``       float16 [N, 3, m, m, m]  in a store of crops alone (:attr:`Store.region`): where the level above puts
                                         each voxel, in the region's own coordinates, corner-aligned with ``grid``
``meta``         JSON                    label names and ids, crop, intensity, sources, roots, skipped exams, notes,
                                         fingerprint, region
===============  ======================  ==================================================================

Every batch of training reads ``hu`` and ``mask``, which are contiguous and not compressed (see
:mod:`deepatlas.store.packed`). The labels are compressed and carry the checksums of HDF5. The other datasets are read
when a store is opened, and compared with the file's attribute ``tables`` (:func:`tables_digest`).

In the folder of a dataset (docs/dataset.md) the store is ``packed.h5``, and its sources are the exam files beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, did_you_mean
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.store.hdf5 import FileArray, Hdf5Reader, begins_like_hdf5
from deepatlas.store.overlaps import read_hidden
from deepatlas.store.packed import AGAIN, PackedReader

if TYPE_CHECKING:
    import h5py

FORMAT = "deepatlas-cohort"
VERSION = 2
# That of a store in which structures overlap. Others state the former, so that older programs read them.
OVERLAPS_VERSION = 3
# The files of a dataset's folder: the description that its completion leaves, and the store.
DATASET, PACKED = "dataset.json", "packed.h5"
# The coordinates of a store of crops.
COORDS = "coords"
_TABLES = ("crc32", "has_label", "grid", "fine_grid", "native_grid", "native_shape", "ids", "meta")


def tables_digest(file: h5py.File) -> str:
    """SHA-256, in hexadecimal, of everything in a store except voxels and label maps."""
    digest = hashlib.sha256()
    for name in _TABLES:
        value = np.asarray(file[name][()])
        data = b"\0".join(value.ravel().tolist()) if value.dtype.kind == "O" else value.tobytes()
        digest.update(f"{name} {value.shape} {len(data)} ".encode() + data)
    return digest.hexdigest()


class StoreVersionError(DataError):
    """An intact store that another version of the program wrote."""


class PackedArray:
    """``hu`` or ``mask`` of a store, ``[N, 64, 64, 64]``, read when it is indexed."""

    def __init__(self, store: Store, name: str, dtype: type) -> None:
        self._store, self._name, self.dtype = store, name, np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), MODEL_SIZE, MODEL_SIZE, MODEL_SIZE)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: Any) -> NDArray:
        first, *within = index if isinstance(index, tuple) else (index,)
        rows = np.arange(len(self))[first]
        read = getattr(self._store.packed(), self._name)
        if rows.ndim == 0:
            return read(int(rows))[tuple(within)]
        out = np.empty((len(rows), MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), self.dtype)
        for place, row in enumerate(rows):
            out[place] = read(int(row))
        return out[(slice(None), *within)]


class Store(Hdf5Reader):
    """A prepared cohort on disk, given as its file or as the folder of the dataset that contains it.

    Only the small tables are read until an array is indexed.

    Attributes: ``path``; ``ids`` (exam ids); ``labels`` (``{name: id}``); ``has_label`` bool [N, K],
    columns in the order of ``labels``; ``crop``; ``intensity``; ``fingerprint``; ``skipped`` (``{exam: reason}``);
    ``notes`` (``{exam: [note]}``); ``region`` (what a store of crops was cut by, otherwise None); arrays ``hu``,
    ``mask``, ``labels_64``, ``labels_128``, indexed by exam like numpy arrays. :meth:`drawn` gives the
    structures of an exam with their overlaps.

    Raises :class:`~deepatlas.errors.DataError` if the file is missing, damaged, truncated, not a store, or
    of another format version.
    """

    format = FORMAT
    kind = "store"
    absent = "prepare the cohort first"
    foreign = "not a prepared cohort; give the file that `prepare` wrote"
    again = AGAIN

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(packed_path(path))
        self._packed: PackedReader | None = None
        with self.reading_tables() as file:
            if int(file.attrs["version"]) not in (VERSION, OVERLAPS_VERSION):
                raise StoreVersionError(
                    f"{self.path}: store format {file.attrs['version']}, this program reads {VERSION} and "
                    f"{OVERLAPS_VERSION}; {AGAIN}"
                )
            if file.attrs.get("tables") != tables_digest(file):
                raise self.damaged("its tables have changed")
            meta = json.loads(file["meta"][()])
            self.ids: list[str] = [i.decode(errors="surrogatepass") for i in file["ids"][:]]
            self._rows = {exam: row for row, exam in enumerate(self.ids)}
            self.has_label: NDArray[np.bool_] = file["has_label"][:].astype(bool)
            self._affines = {name: file[name][:] for name in ("grid", "fine_grid", "native_grid")}
            self._native_shape = file["native_shape"][:]
            shapes = {name: file[name].shape for name in ("hu", "mask", "labels", "labels_fine")}
            if any(shape[0] != len(self.ids) for shape in shapes.values()):
                raise self.damaged(f"arrays of different lengths {shapes}")
        self.labels: dict[str, int] = meta["labels"]
        self.crop: str | None = meta["crop"]
        # Earlier versions knew Hounsfield units alone.
        self.intensity: str = meta.get("intensity", "hu")
        self.fingerprint: str = meta["fingerprint"]
        self.sources: dict[str, dict[str, str | None]] = meta["sources"]
        # The root of a dataset is relative to the store, so that the dataset can be moved.
        self.root: str = str(self.path.resolve().parent / meta["root"])
        # The data directories, where it was made of several.
        self.roots: list[str] = meta.get("roots") or [self.root]
        self.skipped: dict[str, str] = meta["skipped"]
        # Those of them that are no fault of the data.
        self.tolerated: list[str] = meta.get("tolerated", [])
        self.notes: dict[str, list[str]] = meta["notes"]
        # A store of crops: the region, the model whose coordinates cut it, and more; see deepatlas.train.crops.
        self.region: dict[str, Any] | None = meta.get("region")
        self.hu = PackedArray(self, "hu", np.int16)
        self.mask = PackedArray(self, "mask", np.uint8)
        self.labels_64 = FileArray(self, "labels")
        self.labels_128 = FileArray(self, "labels_fine")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} exams, {len(self.labels)} structures)"

    def index(self, exam: str) -> int:
        """The row of an exam; :class:`~deepatlas.errors.DataError` if the store does not contain it."""
        if exam in self._rows:
            return self._rows[exam]
        why = (
            f"it was skipped ({self.skipped[exam]})" if exam in self.skipped else did_you_mean(exam, self.ids)
        )
        raise DataError(f"{self.path}: no exam {exam!r}; {why}")

    def grid(self, index: int) -> Grid:
        """The 64³ grid of ``hu``, ``mask`` and ``labels_64``."""
        return Grid((MODEL_SIZE,) * 3, self._affines["grid"][index])

    def fine_grid(self, index: int) -> Grid:
        """The 128³ grid of ``labels_128``."""
        return Grid((FINE_SIZE,) * 3, self._affines["fine_grid"][index])

    def native_grid(self, index: int) -> Grid:
        """The grid of the exam's own voxels, before resampling."""
        return Grid(tuple(self._native_shape[index].tolist()), self._affines["native_grid"][index])

    def hidden_64(self, index: int) -> dict[int, BoxMask]:
        """What ``labels_64`` hides of structures that overlap others, by their ids."""
        return self._hidden("hidden", index, MODEL_SIZE)

    def hidden_128(self, index: int) -> dict[int, BoxMask]:
        """What ``labels_128`` hides of structures that overlap others, by their ids."""
        return self._hidden("hidden_fine", index, FINE_SIZE)

    def drawn(self, index: int) -> Labels:
        """The structures of an exam on the 128³ grid, each with its whole mask."""
        return Labels(self.labels_128[index], self.fine_grid(index), self.ids[index], self.hidden_128(index))

    def coords(self, index: int) -> NDArray[np.float16]:
        """Where the level above puts the voxels of a crop, ``[3, m, m, m]``, in the region's own coordinates.

        Raises :class:`~deepatlas.errors.DataError` if this is no store of crops.
        """
        if not self.region:
            raise DataError(f"{self.path}: holds whole exams, not the crops of a region")
        found: NDArray[np.float16] = FileArray(self, COORDS)[index]
        return found

    def source(self, index: int) -> Path:
        """The path of the CT from which the exam was prepared; the file may have been moved since."""
        return Path(self.root) / str(self.sources[self.ids[index]]["ct"])

    def _hidden(self, name: str, index: int, size: int) -> dict[int, BoxMask]:
        with self.reading() as file:
            return read_hidden(file[name], str(index), (size,) * 3) if name in file else {}

    def packed(self) -> PackedReader:
        """The thread-safe reader of ``hu`` and ``mask``; it is closed together with the store."""
        if self._packed is None:
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such {self.kind}; {self.absent}")
            self._packed = PackedReader(self.path, self.ids)
        return self._packed

    def close(self) -> None:
        super().close()
        if self._packed is not None:
            self._packed.close()
            self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a file that begins like an HDF5 file, or the folder of a dataset."""
    path = Path(path)
    return is_dataset(path) or begins_like_hdf5(path)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a folder that ``deepatlas prepare`` has completed, which holds ``dataset.json``."""
    return (Path(path) / DATASET).is_file()


def packed_path(path: str | os.PathLike[str]) -> Path:
    """The file of a store: ``path`` itself, or the file ``packed.h5`` in it if it is a folder."""
    path = Path(path)
    return path / PACKED if path.is_dir() else path
