"""Exams that another library holds in memory: images of nibabel, SimpleITK and MONAI, and arrays with an affine."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.io.codec import grid_of
from deepatlas.io.integrity_nifti import NO_ORIENTATION
from deepatlas.space.constants import LPS_FROM_RAS
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# The unit of length of a NIfTI header in millimetres.
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_KINDS = (
    "a path, a deepatlas.Volume, an image of nibabel, SimpleITK or MONAI, or a pair (array [X, Y, Z], 4x4 affine to "
    "RAS+ millimetres)"
)


def as_volume(image: Any) -> Volume:
    """An image of another library as a volume. Its voxels are shared where the library allows it, and never changed.

    Args:
        image: one of

            - a ``SimpleITK.Image``;
            - a nibabel image, whose scaling and unit of length are applied; a NIfTI without an orientation gets the
              axes that its file would get;
            - a MONAI ``MetaTensor`` with or without its channel, whose affine is to RAS+ unless its ``space`` is LPS;
            - a pair ``(array, affine)``: numbers ``[X, Y, Z]``, NumPy or torch, and the 4x4 matrix from voxel indices
              to RAS+ millimetres, both as nibabel has them.

            Axes of one voxel beyond the third are dropped.

    Returns the volume (z, y, x), float32 unless the voxels are integers of at most 32 bits.

    Warns:
        DataWarning: the header of a NIfTI has no orientation.

    Raises:
        DataError: the image is not 3-D and scalar, holds no numbers, or its affine is not invertible or sheared.
        DeepAtlasError: it is no image of these kinds.
    """
    # A library that was not imported has made no image.
    sitk, nibabel, torch = (sys.modules.get(name) for name in ("SimpleITK", "nibabel", "torch"))
    if sitk and isinstance(image, sitk.Image):
        if (values := image.GetNumberOfComponentsPerPixel()) != 1:
            raise DataError(f"SimpleITK image: {values} values a voxel; give a scalar one")
        _in_millimetres(image)
        array = _three(sitk.GetArrayFromImage(image).T, "SimpleITK image").T
        return Volume(_numbers(array, "SimpleITK image"), grid_of(image, "SimpleITK image"))
    if nibabel and isinstance(image, nibabel.spatialimages.SpatialImage):
        name = image.get_filename() or ""
        scale, affine = 1.0, image.affine
        if affine is None:
            raise DataError(
                f"{name or 'nibabel image'}: has no affine that says where its voxels lie; give one"
            )
        if isinstance(image, nibabel.Nifti1Pair):
            header = image.header
            scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
            if not (header["qform_code"] or header["sform_code"]):
                # nibabel would take other axes than the reader of files.
                warnings.warn(f"{name or 'nibabel image'}: {NO_ORIENTATION}", DataWarning, stacklevel=2)
                x, y, z = header.get_zooms()[:3]
                affine = LPS_FROM_RAS @ np.diag([x, y, z, 1.0])
        affine = np.diag([scale, scale, scale, 1.0]) @ affine
        return _from_xyz(np.asanyarray(image.dataobj), affine, name, "nibabel image")
    if torch and isinstance(image, torch.Tensor) and hasattr(image, "affine") and hasattr(image, "meta"):
        array = image.detach().cpu().numpy()
        if array.ndim == 4 and len(array) == 1:
            array = array[0]
        affine = np.asarray(image.affine, dtype=np.float64)
        if str(image.meta.get("space", "RAS")).upper().endswith("LPS"):
            affine = LPS_FROM_RAS @ affine
        name = image.meta.get("filename_or_obj", "")
        return _from_xyz(array, affine, name if isinstance(name, str) else "", "MONAI image")
    if isinstance(image, (tuple, list)) and len(image) == 2:
        array, affine = (
            part.detach().cpu().numpy() if torch and isinstance(part, torch.Tensor) else np.asarray(part)
            for part in image
        )
        return _from_xyz(array, affine, "", "array")
    kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
    alone = ", which has no position in space," if hasattr(image, "__array__") else ""
    raise DeepAtlasError(f"an exam must be {_KINDS}; got {kind}{alone} instead")


def _in_millimetres(image: Any) -> None:
    """Refuse an image of SimpleITK that was read from a MetaImage in another unit.

    SimpleITK has not converted its lengths, and whether the user has cannot be known.
    """
    key = "ITK_VoxelUnits"
    if image.HasMetaDataKey(key) and (unit := image.GetMetaData(key).strip()) not in ("mm", "?", ""):
        raise DataError(
            f"SimpleITK image: its {key} are {unit!r}; give its spacing and origin in millimetres, and "
            f"EraseMetaData({key!r})"
        )


def _from_xyz(array: NDArray, affine: NDArray, name: str, what: str) -> Volume:
    array = _numbers(_three(array, name or what), name or what)
    if affine.shape != (4, 4) or affine.dtype.kind not in "iuf":
        raise DataError(
            f"{name or what}: its affine has shape {affine.shape}; give 4x4 numbers, to RAS+ millimetres"
        )
    try:
        return Volume(array.T, Grid(array.T.shape, affine.astype(np.float64)), name)
    except DataError as error:
        raise DataError(f"{name or what}: {error}") from error


def _three(array: NDArray, what: str) -> NDArray:
    """The array ``[X, Y, Z, …]`` without axes of one voxel beyond the third."""
    if array.ndim < 3 or any(n != 1 for n in array.shape[3:]):
        raise DataError(f"{what}: an array of shape {array.shape}; give a 3-D image")
    return array.reshape(array.shape[:3])


def _numbers(array: NDArray, what: str) -> NDArray:
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what}: voxels of type {array.dtype}; give numbers")
    if array.dtype.kind == "f" or array.dtype.itemsize > 4:
        return array.astype(np.float32, copy=False)
    # PyTorch has no voxels in the other byte order.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
