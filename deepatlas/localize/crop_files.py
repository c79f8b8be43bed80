"""The files of crops: a data directory of images, or one HDF5 with a row for each exam."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from deepatlas.files import atomic_h5
from deepatlas.io.codec import write_volume
from deepatlas.io.values import whole_hounsfield
from deepatlas.localize.crop import Crop
from deepatlas.space.box import Box
from deepatlas.space.volume import Volume

FORMAT, VERSION = "deepatlas-crops", 1
SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "hdf5": ".h5"}


def image_paths(folder: Path, name: str, suffix: str, image: str, labelled: bool) -> list[Path]:
    """The files of one exam in the data directory of a box: its image, and its labels where they are written."""
    found = [folder / name / f"{image}{suffix}"]
    return found + ([folder / name / f"seg{suffix}"] if labelled else [])


def write_images(
    folder: Path, name: str, suffix: str, image: str, crop: Crop, hounsfield: bool
) -> list[Path]:
    """Write a crop as the files of one exam of a data directory.

    Args:
        folder: the data directory.
        name: the name of the exam.
        suffix: ``.nii.gz`` or ``.nrrd``.
        image: what the image is called: ``ct``, ``mr`` or ``image``.
        crop: the crop.
        hounsfield: whether the values are Hounsfield units, which are rounded to whole ones.
    """
    paths = image_paths(folder, name, suffix, image, crop.labels is not None)
    values = _stored(crop, hounsfield)
    written = [write_volume(paths[0], Volume(values, crop.volume.grid, name))]
    if crop.labels is not None:
        written.append(write_volume(paths[1], crop.labels))
    return written


class CropRows:
    """An HDF5 file with a row for each exam, in the order in which they are added.

    It holds ``id`` (text), ``image`` ``[N, D, H, W]`` (int16 Hounsfield units, or float32 of other exams), ``affine``
    ``[N, 4, 4]`` from voxel (x, y, z) to RAS+ millimetres of the exam, ``coverage``, ``residual_mm`` and ``fit``
    ``[N]``; with labels also ``labels`` ``[N, D, H, W]``, ``labelled`` ``[N]`` and the attribute ``labels``
    (``{name: id}`` as JSON). A row is a chunk of its own with a checksum. The attribute ``box`` is that of the atlas.
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
        """Append the crop of an exam, and return its row. The overlaps of its labels are not kept."""
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
        for key in self._file:
            self._file[key].resize(row + 1, axis=0)
            if key in values:
                self._file[key][row] = values[key]
        return row


@contextmanager
def crop_rows(
    path: Path, box: Box, shape: Sequence[int], hounsfield: bool, labels: Mapping[str, int] | None
) -> Iterator[CropRows]:
    """A file of :class:`CropRows`, which is complete or absent."""
    with atomic_h5(path) as file:
        yield CropRows(file, box, shape, hounsfield, labels)


def _stored(crop: Crop, hounsfield: bool) -> NDArray:
    return whole_hounsfield(crop.volume.array) if hounsfield else crop.volume.array
