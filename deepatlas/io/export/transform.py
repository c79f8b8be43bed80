"""Transforms between two exams as files of ITK, and displacements as NIfTI.

Everything is a pull, from the fixed exam to the moving one, as resampling needs it. A deformable transform is an affine
map and what remains: ``y = affine(x + residual(x))``. Outside its grid a displacement field of ITK is the identity, so
that the affine map alone continues it there. In a composite transform of ITK the last one added is applied first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DataError, WriteError
from deepatlas.files import FREE_SPACE, atomic_h5, atomic_path
from deepatlas.io.itk import itk_writes, simpleitk
from deepatlas.space.constants import LPS_FROM_RAS, LPS_SIGNS
from deepatlas.space.grid import Grid

# ITK writes both formats, h5 binary and tfm as text, which is long for a field.
SUFFIXES = (".h5", ".tfm")
FIELD_SUFFIXES = (".nii.gz", ".nii")


def residual_of(matrix: ArrayLike, places: NDArray[np.floating], grid: Grid) -> NDArray[np.float64]:
    """What remains of a map after its affine part, for :func:`write_transform`.

    Args:
        matrix: 4x4, from RAS mm of the fixed exam to RAS mm of the moving exam.
        places: ``[3, D, H, W]`` (x, y, z), where each voxel of ``grid`` lies in the moving exam, in RAS mm.
        grid: a grid of the fixed exam.

    Returns:
        ``[3, D, H, W]``, displacements in RAS mm of the fixed exam.
    """
    inverse = np.linalg.inv(_matrix(matrix))
    _check_field(places, grid)
    back = np.tensordot(inverse[:3, :3], places.astype(np.float64, copy=False), axes=1)
    back += (inverse[:3, 3])[:, None, None, None]
    back -= _world(grid)
    return back


def write_transform(
    path: str | os.PathLike[str],
    matrix: ArrayLike,
    residual: NDArray[np.floating] | None = None,
    grid: Grid | None = None,
) -> Path:
    """Write a map from a fixed to a moving exam as a transform of ITK, which SimpleITK and ANTs read.

    Args:
        path: ``.h5`` or ``.tfm``; for a map with a residual ``.h5`` is much smaller.
        matrix: 4x4, RAS mm of the fixed exam to RAS mm of the moving exam.
        residual: ``[3, D, H, W]`` (x, y, z), displacements in RAS mm of the fixed exam, applied before ``matrix``;
            None writes the affine map alone.
        grid: the grid of ``residual``.

    Returns the path.

    Raises:
        WriteError: the suffix is another one, or the file cannot be written.
        DataError: the numbers are not finite, of another shape, or the matrix cannot be inverted.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise WriteError(
            f"{path}: cannot write a transform as this kind of file; use one of {', '.join(SUFFIXES)}"
        )
    lps = LPS_FROM_RAS @ _matrix(matrix) @ LPS_FROM_RAS
    if residual is not None and grid is None:
        raise DataError("write_transform: a residual needs the grid that it is on")
    if path.suffix.lower() == ".h5":
        _write_h5(path, lps, residual, grid)
        return path
    sitk = simpleitk()
    transform = sitk.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    if residual is not None and grid is not None:
        # Takes the voxels of the image over.
        field = sitk.DisplacementFieldTransform(_image(residual, grid))
        transform = sitk.CompositeTransform([transform, field])
    with atomic_path(path) as temporary:
        try:
            with itk_writes(temporary) as name:
                sitk.WriteTransform(transform, name)
                # ITK does not report a full disk.
                whole = _size(sitk.ReadTransform(name)) == _size(transform)
        except RuntimeError as error:
            raise WriteError(f"{path}: cannot write: ITK failed; {FREE_SPACE}") from error
        if not whole:
            raise WriteError(f"{path}: cannot write: the file came back different; {FREE_SPACE}")
    return path


def _write_h5(
    path: Path, lps: NDArray[np.float64], residual: NDArray[np.floating] | None, grid: Grid | None
) -> None:
    """Write the HDF5 file that ITK reads. That of ITK itself ends the process where the disk is full."""
    affine = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])
    parts: list[tuple[str, Any, Any]] = [("AffineTransform", np.zeros(3), affine)]
    if residual is not None and grid is not None:
        _check_field(residual, grid)
        spacing = np.array(grid.spacing)
        direction = LPS_FROM_RAS[:3, :3] @ grid.affine[:3, :3] / spacing
        fixed = np.concatenate([grid.shape[::-1], LPS_SIGNS * grid.affine[:3, 3], spacing, direction.ravel()])
        parts = [
            ("CompositeTransform", None, None),
            *parts,
            ("DisplacementFieldTransform", fixed, _vectors(residual).ravel()),
        ]
    with atomic_h5(path) as file:
        file["ITKVersion"] = np.array(["5.4"], dtype=h5py.string_dtype("ascii"))
        for number, (kind, fixed_numbers, numbers) in enumerate(parts):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = np.array([f"{kind}_double_3_3"], dtype=h5py.string_dtype("ascii"))
            if numbers is not None:
                group["TransformFixedParameters"] = np.asarray(fixed_numbers, dtype=np.float64)
                group["TransformParameters"] = numbers


def write_displacements(path: str | os.PathLike[str], displacement: NDArray[np.floating], grid: Grid) -> Path:
    """Write displacements as a NIfTI of five dimensions (x, y, z, 1, 3), intent 1007, float32 vectors in LPS mm.

    SimpleITK and ANTs read it as a pull field. Beyond the grid it says nothing, and both take the identity there;
    :func:`write_transform` does not have this limit.

    Args:
        path: ``.nii.gz`` or ``.nii``.
        displacement: ``[3, D, H, W]`` (x, y, z), RAS mm: the place in the moving exam minus that in the fixed exam.
        grid: the grid, of the fixed exam.

    Raises as :func:`write_transform`.
    """
    path = Path(path)
    if not path.name.lower().endswith(FIELD_SUFFIXES):
        raise WriteError(
            f"{path}: cannot write displacements as this kind of file; use one of {', '.join(FIELD_SUFFIXES)}"
        )
    sitk = simpleitk()
    image = sitk.Cast(_image(displacement, grid), sitk.sitkVectorFloat32)
    with atomic_path(path) as temporary:
        try:
            with itk_writes(temporary) as name:
                sitk.WriteImage(image, name, useCompression=True)
                read = sitk.ReadImage(name)
        except RuntimeError as error:
            raise WriteError(f"{path}: cannot write: ITK failed; {FREE_SPACE}") from error
        if not np.array_equal(sitk.GetArrayViewFromImage(read), sitk.GetArrayViewFromImage(image)):
            raise WriteError(f"{path}: cannot write: the file came back different; {FREE_SPACE}")
    return path


def _matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(matrix, dtype=np.float64)
    if found.shape != (4, 4) or not np.isfinite(found).all() or not np.allclose(found[3], (0, 0, 0, 1)):
        raise DataError(
            f"transform: its matrix must be 4x4 finite numbers that end in 0 0 0 1, got {found.shape}"
        )
    if abs(np.linalg.det(found[:3, :3])) < 1e-9:
        raise DataError("transform: its matrix cannot be inverted, so that it maps the exam onto a plane")
    return found


def _check_field(field: NDArray[np.floating], grid: Grid) -> None:
    if field.shape != (3, *grid.shape):
        raise DataError(
            f"transform: a field of shape {field.shape} on a grid of {grid.shape}; give [3, D, H, W]"
        )
    if not all(np.isfinite(channel).all() for channel in field):
        raise DataError(
            "transform: its field holds NaN or infinite numbers; give the affine map's value there"
        )


def _image(field: NDArray[np.floating], grid: Grid) -> Any:
    """A float64 vector image of ITK with LPS vectors; ``field`` is ``[3, D, H, W]`` in RAS."""
    _check_field(field, grid)
    image = simpleitk().GetImageFromArray(_vectors(field), isVector=True)
    spacing = np.array(grid.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS_SIGNS * grid.affine[:3, 3]).tolist())
    image.SetDirection((LPS_FROM_RAS[:3, :3] @ grid.affine[:3, :3] / spacing).ravel().tolist())
    return image


def _vectors(field: NDArray[np.floating]) -> NDArray[np.float64]:
    """``[D, H, W, 3]`` in LPS, float64, of a field ``[3, D, H, W]`` in RAS."""
    vectors = np.empty((*field.shape[1:], 3))
    for axis, sign in enumerate(LPS_SIGNS):
        np.multiply(field[axis], sign, out=vectors[..., axis])
    return vectors


def _world(grid: Grid) -> NDArray[np.float64]:
    """``[3, D, H, W]``, the RAS mm of every voxel."""
    z, y, x = (np.arange(n, dtype=np.float64) for n in grid.shape)
    a = grid.affine
    return np.stack(
        [a[i, 0] * x + (a[i, 1] * y)[:, None] + (a[i, 2] * z + a[i, 3])[:, None, None] for i in range(3)]
    )


def _size(transform: Any) -> tuple[int, int]:
    """What tells a whole transform from a damaged one: how many numbers it has."""
    sitk = simpleitk()
    if transform.GetTransformEnum() == sitk.sitkComposite:
        parts = sitk.CompositeTransform(transform)
        inner = [parts.GetNthTransform(i) for i in range(parts.GetNumberOfTransforms())]
        return sum(t.GetNumberOfParameters() for t in inner), len(inner)
    return transform.GetNumberOfParameters(), 1
