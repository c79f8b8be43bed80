"""The rows of a store, which is assembled from one part for each exam, so that no exam is read or resampled twice.

A part is an HDF5 file, or a group in one. It holds ``hu`` and ``mask`` of one exam and, where structures were drawn,
``labels`` and ``labels_fine``, as :mod:`deepatlas.store.store` describes them, each as one compressed chunk with a
checksum; where structures overlap, ``hidden`` and ``hidden_fine`` (:mod:`deepatlas.store.overlaps`); in the crop of a
region ``coords``; ``has_label``; the affines and shapes of its grids; and in ``meta`` its label table and notes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from deepatlas.errors import DataError
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.grid import Grid
from deepatlas.store.fit import PreparedExam
from deepatlas.store.overlaps import read_hidden, write_hidden
from deepatlas.store.packed import PackedWriter
from deepatlas.store.store import COORDS, FORMAT, OVERLAPS_VERSION, VERSION, Store, tables_digest

# To be raised whenever the layout of parts changes, so that the parts of an interrupted build are made again.
PART_VERSION = 2

_LABEL_MAPS = {"labels": (MODEL_SIZE,) * 3, "labels_fine": (FINE_SIZE,) * 3}
# What each of the label maps hides.
_HIDDEN = {"hidden": (MODEL_SIZE,) * 3, "hidden_fine": (FINE_SIZE,) * 3}
_TABLES = {"grid": (4, 4), "fine_grid": (4, 4), "native_grid": (4, 4), "native_shape": (3,)}


class Row(NamedTuple):
    """One exam on its way into a store; ``exam.has_label`` is in the order of the table ``labels``."""

    id: str
    exam: PreparedExam
    labels: dict[str, int]


def write_part(group: h5py.Group, exam: PreparedExam, labels: dict[str, int]) -> None:
    """Write one exam into an empty file or group.

    The same exam always gives the same bytes, which the LZF compression would not guarantee.
    """
    for name in ("hu", "mask", *_LABEL_MAPS):
        array = getattr(exam, name)
        if array is not None:
            group.create_dataset(name, data=array, **_compressed(array.dtype, array.shape))
            # Otherwise the order of the chunks in the file would depend on when Python deletes the dataset objects.
            group.file.flush()
    for name in _HIDDEN:
        write_hidden(group, name, getattr(exam, name))
    if exam.coords is not None:
        group.create_dataset(COORDS, data=exam.coords, **_compressed(exam.coords.dtype, exam.coords.shape))
    group["has_label"] = np.array(exam.has_label, dtype=np.uint8)
    group["fine_grid"] = exam.fine_grid.affine
    group["native_grid"] = exam.native_grid.affine
    group["native_shape"] = np.array(exam.native_grid.shape, dtype=np.int64)
    group["meta"] = json.dumps({"labels": labels, "notes": exam.notes})


def read_part(path: Path, group: str = "/") -> tuple[PreparedExam, dict[str, int]]:
    """The exam of a part and its label table; :class:`~deepatlas.errors.DataError` if it cannot be read."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            part = file[group]
            meta = json.loads(part["meta"][()])
            exam = PreparedExam(
                hu=part["hu"][:],
                mask=part["mask"][:],
                labels=part["labels"][:] if "labels" in part else None,
                labels_fine=part["labels_fine"][:] if "labels_fine" in part else None,
                has_label=part["has_label"][:].astype(bool).tolist(),
                fine_grid=Grid((FINE_SIZE,) * 3, part["fine_grid"][:]),
                native_grid=Grid(tuple(part["native_shape"][:].tolist()), part["native_grid"][:]),
                notes=meta["notes"],
                hidden=read_hidden(part, "hidden", _HIDDEN["hidden"]),
                hidden_fine=read_hidden(part, "hidden_fine", _HIDDEN["hidden_fine"]),
                coords=part[COORDS][:] if COORDS in part else None,
            )
            return exam, meta["labels"]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: damaged or missing ({error}); prepare this exam again") from error


def read_row(store: Store, row: int) -> tuple[PreparedExam, dict[str, int]]:
    """The exam in one row of a store, and the label table of the store."""
    drawn = bool(store.has_label[row].any())
    exam = PreparedExam(
        hu=store.hu[row],
        mask=store.mask[row],
        labels=store.labels_64[row] if drawn else None,
        labels_fine=store.labels_128[row] if drawn else None,
        has_label=store.has_label[row].tolist(),
        fine_grid=store.fine_grid(row),
        native_grid=store.native_grid(row),
        notes=store.notes.get(store.ids[row], []),
        hidden=store.hidden_64(row),
        hidden_fine=store.hidden_128(row),
        coords=store.coords(row) if store.region else None,
    )
    return exam, store.labels


def assemble(file: h5py.File, count: int, rows: Iterable[Row], meta: dict[str, Any]) -> None:
    """Write a store, with one exam in memory at a time.

    Args:
        file: a new HDF5 file.
        count: the number of exams that ``rows`` gives.
        rows: the exams, in the order of the store.
        meta: the content of the dataset ``meta``. ``meta["labels"]`` must name every structure that was drawn;
            ``meta["notes"]`` is filled with the notes of the exams.
    """
    table: dict[str, int] = meta["labels"]
    label_dtype = np.dtype(np.uint8 if max(table.values(), default=0) < 256 else np.uint16)
    file.attrs["format"] = FORMAT
    file.attrs["version"] = VERSION
    packed = PackedWriter(file, count)
    # Chunks of exams without labels are not allocated, so they need no space.
    maps = {
        name: file.create_dataset(
            name, (count, *shape), dtype=label_dtype, fillvalue=0, **_compressed(label_dtype, (1, *shape))
        )
        for name, shape in _LABEL_MAPS.items()
    }
    has_label = np.zeros((count, len(table)), dtype=np.uint8)
    columns = {name: column for column, name in enumerate(table)}
    tables = {
        name: np.zeros((count, *shape), dtype=np.int64 if name == "native_shape" else np.float64)
        for name, shape in _TABLES.items()
    }
    ids = []
    for i, (exam_id, exam, labels) in enumerate(rows):
        # The name of a folder may hold bytes that are not UTF-8, which Python keeps as lone surrogates.
        ids.append(exam_id.encode(errors="surrogatepass"))
        packed.write(i, exam.hu, exam.mask)
        for name, drawn in zip(labels, exam.has_label, strict=True):
            if drawn:
                has_label[i, columns[name]] = 1
        for name, dataset in maps.items():
            array = getattr(exam, name)
            if array is not None and has_label[i].any():
                dataset[i] = array
        for name in _HIDDEN:
            if hidden := getattr(exam, name):
                # An older version of this program must not take the label maps for all that was drawn.
                file.attrs["version"] = OVERLAPS_VERSION
                write_hidden(file.require_group(name), str(i), hidden)
        if exam.coords is not None:
            shape = exam.coords.shape
            placed = file.require_dataset(
                COORDS, (count, *shape), np.float16, **_compressed(exam.coords.dtype, (1, *shape))
            )
            placed[i] = exam.coords
        tables["grid"][i] = exam.fine_grid.pooled(FINE_SIZE // MODEL_SIZE).affine
        tables["fine_grid"][i] = exam.fine_grid.affine
        tables["native_grid"][i] = exam.native_grid.affine
        tables["native_shape"][i] = exam.native_grid.shape
        if exam.notes:
            meta["notes"][exam_id] = exam.notes
    if len(ids) != count:
        raise ValueError(f"assemble: rows must give {count} exams, got {len(ids)}")
    file["has_label"] = has_label
    for name, values in tables.items():
        file[name] = values
    file["ids"] = np.array(ids)
    file["meta"] = json.dumps(meta)
    file.attrs["tables"] = tables_digest(file)


def _compressed(dtype: np.dtype, chunks: tuple[int, ...]) -> dict[str, Any]:
    return {
        "chunks": chunks,
        "compression": "gzip",
        "compression_opts": 1,
        "shuffle": dtype.itemsize > 1,
        # HDF5 raises an error for a damaged block instead of returning wrong voxels.
        "fletcher32": True,
    }
