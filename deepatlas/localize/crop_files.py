"""The files of crops: a data directory of images, or one HDF5 with a row for each exam."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.exams.mask_files import MASKS, mask_paths, write_masks
from deepatlas.files import atomic_h5
from deepatlas.io.codec import write_volume
from deepatlas.io.values import whole_hounsfield
from deepatlas.localize.crop import Crop
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume
from deepatlas.store.overlaps import read_hidden, write_hidden

FORMAT, VERSION = "deepatlas-crops", 1
# The group of an HDF5 that holds overlaps, by the number of the row.
OVERLAPS = "overlaps"
SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "hdf5": ".h5"}


def image_paths(
    folder: Path, name: str, suffix: str, image: str, labels: Mapping[str, int] | None
) -> list[Path]:
    """The files of one exam in the data directory of a box: its image, and all that may hold its ``labels``."""
    found = [folder / name / f"{image}{suffix}"]
    if labels is None:
        return found
    return [
        *found,
        folder / name / f"seg{suffix}",
        *mask_paths(folder / name / MASKS, labels, suffix).values(),
    ]


def write_images(
    folder: Path,
    name: str,
    suffix: str,
    image: str,
    crop: Crop,
    hounsfield: bool,
    labels: Mapping[str, int] | None = None,
) -> list[Path]:
    """Write a crop as the files of one exam of a data directory.

    Args:
        folder: the data directory.
        name: the name of the exam.
        suffix: ``.nii.gz`` or ``.nrrd``.
        image: what the image is called: ``ct``, ``mr`` or ``image``.
        crop: the crop.
        hounsfield: whether the values are Hounsfield units, which are rounded to whole ones.
        labels: ``{name: id}`` of the structures. Where some overlap, each is written as a mask of its own.
    """
    values = _stored(crop, hounsfield)
    written = [write_volume(folder / name / f"{image}{suffix}", Volume(values, crop.volume.grid, name))]
    seg = folder / name / f"seg{suffix}"
    if crop.labels is not None and crop.labels.hidden and labels is not None:
        present = crop.labels.ids()
        drawn = {name: identity for name, identity in labels.items() if identity in present}
        written += write_masks(folder / name / MASKS, crop.labels, drawn, suffix)
        # An earlier run may have left a label image, or masks of structures that this view does not show.
        for path in (seg, *mask_paths(folder / name / MASKS, set(labels) - set(drawn), suffix).values()):
            path.unlink(missing_ok=True)
    elif crop.labels is not None:
        written.append(write_volume(seg, crop.labels))
    return written


class CropRows:
    """An HDF5 file with a row for each exam, in the order in which they are added.

    It holds ``id`` (text), ``image`` ``[N, D, H, W]`` (int16 Hounsfield units, or float32 of other exams), ``affine``
    ``[N, 4, 4]`` from voxel (x, y, z) to RAS+ millimetres of the exam, ``coverage``, ``residual_mm`` and ``fit``
    ``[N]``; with labels also ``labels`` ``[N, D, H, W]``, ``labelled`` ``[N]`` and the attribute ``labels``
    (``{name: id}`` as JSON). Where structures of a row overlap, the group ``overlaps/<row>`` holds what ``labels``
    hides of them (:mod:`deepatlas.store.overlaps`; :func:`row_labels` reads both). A row is a chunk of its own with a
    checksum. The attribute ``box`` is that of the atlas.
    """

    def __init__(
        self,
        file: h5py.File,
        box: Box,
        shape: Sequence[int],
        hounsfield: bool,
        labels: Mapping[str, int] | None,
    ) -> None:
        self._file, self._hounsfield, self._labels = file, hounsfield, labels
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        about = {"name": box.name, "centre": box.centre.tolist(), "half_axes": box.axes.T.tolist()}
        file.attrs["box"] = json.dumps(about)
        image = tuple(int(n) for n in shape)
        self._make("image", image, np.dtype(np.int16 if hounsfield else np.float32))
        if labels is not None:
            file.attrs["labels"] = json.dumps(dict(labels))
            self._make(
                "labels", image, np.dtype(np.uint8 if max(labels.values(), default=0) < 256 else np.uint16)
            )
            self._make("labelled", (), np.dtype(bool))
        file.create_dataset("id", (0,), maxshape=(None,), chunks=(1024,), dtype=h5py.string_dtype())
        self._make("affine", (4, 4), np.dtype(np.float64))
        for name in ("coverage", "residual_mm", "fit"):
            self._make(name, (), np.dtype(np.float32))

    def _make(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        row = (1, *shape) if len(shape) > 2 else (1024, *shape)
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if len(shape) > 2 else {}
        self._file.create_dataset(
            name, (0, *shape), maxshape=(None, *shape), chunks=row, dtype=dtype, fletcher32=True, **packed
        )

    def add(self, name: str, crop: Crop) -> int:
        """Append the crop of an exam, and return its row."""
        row = len(self._file["id"])
        values = {
            "id": name,
            "image": _stored(crop, self._hounsfield),
            "affine": crop.volume.grid.affine,
            "coverage": crop.coverage,
            "residual_mm": crop.residual_mm,
            "fit": crop.fit.value,
        }
        if self._labels is not None:
            values["labelled"] = crop.labels is not None
            if crop.labels is not None:
                values["labels"] = crop.labels.array
        if crop.labels is not None and self._labels is not None:
            write_hidden(self._file.require_group(OVERLAPS), str(row), crop.labels.hidden)
        for key in self._file:
            if key == OVERLAPS:
                continue
            self._file[key].resize(row + 1, axis=0)
            if key in values:
                self._file[key][row] = values[key]
        return row


def row_labels(file: h5py.File, row: int) -> Labels:
    """The labels of a row of an HDF5 with labels, overlaps included, on the grid of its view."""
    array = file["labels"][row]
    group = file[OVERLAPS] if OVERLAPS in file else {}
    hidden = read_hidden(group, str(row), array.shape)
    return Labels(array, Grid(array.shape, file["affine"][row]), file["id"].asstr()[row], hidden)


@contextmanager
def crop_rows(
    path: Path, box: Box, shape: Sequence[int], hounsfield: bool, labels: Mapping[str, int] | None
) -> Iterator[CropRows]:
    """A file of :class:`CropRows`, which is complete or absent."""
    with atomic_h5(path) as file:
        yield CropRows(file, box, shape, hounsfield, labels)


def _stored(crop: Crop, hounsfield: bool) -> NDArray:
    return whole_hounsfield(crop.volume.array) if hounsfield else crop.volume.array
