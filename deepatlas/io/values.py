"""Voxel values: checks that an array holds Hounsfield units or label ids, and conversion to the types in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.integrity import nonfinite_error


def as_hounsfield(array: NDArray, path: Path) -> NDArray[np.float32]:
    """The voxels of a CT as float32.

    Whether they are Hounsfield units is judged where a model uses them (:mod:`deepatlas.space.hounsfield`).

    Args:
        array: voxels of any shape.
        path: the file that messages name.

    Raises :class:`~deepatlas.errors.DataError` for values that are not numbers, NaN or infinite values, and an image
    in which all voxels are equal.
    """
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels of type {array.dtype}; give a CT in Hounsfield units")
    _check_finite(array, path)
    # The sum turns -0, as which a message would call it, into 0.
    low, high = float(array.min()) + 0.0, float(array.max()) + 0.0
    if low == high:
        raise DataError(f"{path}: every voxel is {low:g}, so the image is empty; export it again")
    return array.astype(np.float32, copy=False)


def as_labels(array: NDArray, path: Path) -> NDArray:
    """The voxels of a label image in the smallest of uint8, uint16 and int32 that holds every label id.

    Raises :class:`~deepatlas.errors.DataError`, which names ``path``, for values that are not integers between 0 and
    2147483647.
    """
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels of type {array.dtype}; a label image holds integers")
    _check_finite(array, path)
    if array.dtype.kind == "f":
        fractions = int(np.count_nonzero(array != np.round(array)))
        if fractions:
            raise DataError(
                f"{path}: {fractions} voxels are not integers, so this is no label image; "
                "resample labels with nearest neighbour and save them as integers"
            )
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise DataError(f"{path}: holds the negative label {low}; label ids must be 0 (background) or above")
    for dtype in (np.uint8, np.uint16, np.int32):
        if high <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False)
    raise DataError(f"{path}: holds the label {high}, larger than 2147483647; renumber the labels")


def whole_hounsfield(array: NDArray) -> NDArray[np.int16]:
    """Resampled Hounsfield units as whole ones, which take a third of the space of fractions in a compressed file."""
    bounds = np.iinfo(np.int16)
    whole = np.rint(array)
    # Hardly any image needs it, and it takes as long as all the rest.
    if whole.size and (whole.min() < bounds.min or whole.max() > bounds.max):
        whole = whole.clip(bounds.min, bounds.max)
    return whole.astype(np.int16)


def storable(array: NDArray) -> NDArray:
    """The array in a data type that NIfTI, NRRD and MetaImage all support.

    Booleans become uint8, float16 becomes float32, and 64-bit integers become int32.

    Raises :class:`~deepatlas.errors.DataError` for integers outside the range of int32, and for values that are not
    numbers.
    """
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        info = np.iinfo(np.int32)
        if array.size and (array.min() < info.min or array.max() > info.max):
            raise DataError(f"cannot write integers outside {info.min} to {info.max}; renumber them")
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf":
        raise DataError(f"cannot write voxels of type {array.dtype}; give numbers")
    return array


def _check_finite(array: NDArray, path: Path) -> None:
    if array.dtype.kind == "f":
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        if count:
            raise nonfinite_error(path, count)
