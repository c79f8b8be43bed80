"""Volumes from and to NIfTI, NRRD and MetaImage files, decoded and encoded by SimpleITK.

SimpleITK works in LPS millimetres and everything inside the package in RAS+, so the signs of x and y change here.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, WriteError
from deepatlas.files import atomic_path
from deepatlas.io.integrity import Checked, compare_geometry, nonfinite_error
from deepatlas.io.integrity_nifti import check_nifti
from deepatlas.io.itk import simpleitk
from deepatlas.io.text_header import check_metaimage, check_nrrd
from deepatlas.space.constants import LPS_FROM_RAS, LPS_SIGNS, MIN_VOXELS
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

_READERS = {
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
SUFFIXES = tuple(_READERS)
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
_CHECKS = {"NiftiImageIO": check_nifti, "NrrdImageIO": check_nrrd, "MetaImageIO": check_metaimage}


def image_suffix(path: str | os.PathLike[str]) -> str:
    """The image suffix of a path (``.nii.gz``, ``.nrrd`` …), or the empty string."""
    name = Path(path).name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")


def read_image(path: Path, *, labels: bool = False) -> tuple[Volume, list[str]]:
    """Read a 3-D scalar image file, and what is odd about it without forbidding its use.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.
        labels: the file is a label image; otherwise a CT in Hounsfield units.

    Returns:
        A :class:`Volume` in the file's own voxel order (z, y, x): float32 Hounsfield units, or labels in the smallest
        of uint8, uint16 and int32 that holds them; and one line for each oddity.

    Raises:
        DataError: one line that names the file, what is wrong and the cure.
    """
    image, checked = _read_image(path)
    array, grid = _array(image), _grid(image, path)
    compare_geometry(path, grid, checked)
    notes = list(checked.notes)
    array = as_labels(array, path) if labels else as_hounsfield(array, path, notes)
    return Volume(array, grid, name=str(path)), notes


def write_volume(path: str | os.PathLike[str], volume: Volume) -> Path:
    """Write a volume with its geometry (compressed), whole or not at all; return the path.

    The file is read back before it takes its name: the NIfTI library reports no error on a full disk.

    Raises :class:`~deepatlas.errors.WriteError` for a suffix other than ``.nii``, ``.nii.gz``, ``.nrrd`` and
    ``.mha``, and for every failure of the disk; :class:`~deepatlas.errors.DataError` for voxels that no format holds.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix not in WRITABLE:
        raise WriteError(f"{path}: cannot write this kind of file; use one of {', '.join(WRITABLE)}")
    sitk = simpleitk()
    array = _storable(volume.array)
    image = sitk.GetImageFromArray(array)
    affine = volume.grid.affine
    spacing = np.array(volume.grid.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS_SIGNS * affine[:3, 3]).tolist())
    image.SetDirection((LPS_FROM_RAS[:3, :3] @ affine[:3, :3] / spacing).ravel().tolist())
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=suffix != ".nii")
            whole = np.array_equal(
                _array(_read_image(temporary)[0]), array, equal_nan=array.dtype.kind == "f"
            )
        except (RuntimeError, DataError) as error:
            raise WriteError(f"{path}: cannot write: {_unwritable(temporary, error)}") from error
        if not whole:
            raise WriteError(
                f"{path}: cannot write: the file came back different; free space or write somewhere else"
            )
    return path


def _read_image(path: Path) -> tuple[Any, Checked]:
    """Check and decode a file into a 3-D scalar SimpleITK image, and what its header says."""
    suffix = _check_file(path)
    sitk = simpleitk()
    try:
        checked = _CHECKS[_READERS[suffix]](path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_READERS[suffix])
        with _without_twin(path) as alone:
            reader.SetFileName(str(alone))
            reader.ReadImageInformation()
            shape = reader.GetSize()
            if len(shape) > 3 and all(n == 1 for n in shape[3:]):
                reader.SetExtractSize([*shape[:3], *[0] * (len(shape) - 3)])
            _check_shape(path, shape, reader.GetNumberOfComponents())
            return reader.Execute(), checked
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path}: {_reason(error)}") from error


@contextmanager
def _without_twin(path: Path) -> Iterator[Path]:
    """A path to the same file where no ``x.nii`` lies beside ``x.nii.gz``: ITK would take its voxels unsaid."""
    twins = [path.with_name(path.name[:-7] + suffix) for suffix in (".nii", ".NII")]
    if not path.name.lower().endswith(".nii.gz") or not any(twin.exists() for twin in twins):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deepatlas-") as folder:
        link = Path(folder, "image.nii.gz")
        try:
            link.symlink_to(path.resolve())
        except OSError:  # a system that lets nobody make links
            shutil.copyfile(path, link)
        yield link


def _check_file(path: Path) -> str:
    """Raise unless ``path`` is a readable, non-empty file of a known kind; return its suffix."""
    try:
        if path.is_dir():
            raise DataError(
                f"{path}: is a folder without a DICOM series; give one with a series, or an image file "
                f"({', '.join(SUFFIXES)})"
            )
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; copy or export it again")
        with open(path, "rb") as handle:
            head = handle.read(132)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read: {error.strerror or error}; check the path and its permissions"
        ) from error
    if suffix := image_suffix(path):
        return suffix
    if head[128:132] == b"DICM":
        raise DataError(
            f"{path}: a DICOM file, which is no label image; give the labels as NIfTI, NRRD or MetaImage, or "
            "prepare the exam with its RTSTRUCT or DICOM-SEG (deepatlas prepare)"
        )
    raise DataError(f"{path}: unknown kind of image file; use one of {', '.join(SUFFIXES)}")


def _check_shape(path: Path, shape: tuple[int, ...], components: int) -> None:
    sizes = " x ".join(str(n) for n in shape)
    if components != 1:
        raise DataError(
            f"{path}: holds {components} values per voxel (colour or vector image); give one scalar CT"
        )
    if len(shape) < 3:
        raise DataError(
            f"{path}: is {len(shape)}-D ({sizes}); give a 3-D volume, not a slice or a projection"
        )
    if len(shape) > 3 and any(n != 1 for n in shape[3:]):
        raise DataError(
            f"{path}: is {len(shape)}-D ({sizes}); give one 3-D volume (split phases or time points)"
        )
    if min(shape[:3]) < MIN_VOXELS:
        raise DataError(
            f"{path}: only {min(shape[:3])} voxel(s) on an axis ({sizes}); "
            f"give a volume with at least {MIN_VOXELS} along each"
        )


def _reason(error: Exception) -> str:
    """One line and a cure out of ITK's many."""
    text = str(error)
    if "orthonormal" in text:
        return (
            "its axes are not at right angles (sheared geometry, as after a gantry tilt); "
            "resample it to orthogonal axes first (dcm2niix does it on conversion)"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"\s*/\S+?:\d+:", "", lines[-1]) if lines else type(error).__name__
    last = re.sub(
        r"(?i)itk::?\s?error:\s*\w*(\(0x[0-9a-f]+\))?:?\s*|\[nrrd\]\s*|^Reason: Success$", "", last
    ).strip()
    detail = f" ({last[:120]})" if last else ""
    return f"cannot be decoded, damaged or not what its name says{detail}; copy or export it again"


def _array(image: Any) -> NDArray:
    return simpleitk().GetArrayFromImage(image)


def _grid(image: Any, path: Path) -> Grid:
    spacing = np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = LPS_FROM_RAS[:3, :3] @ np.array(image.GetDirection()).reshape(3, 3) * spacing
    affine[:3, 3] = LPS_SIGNS * np.array(image.GetOrigin())
    try:
        return Grid(image.GetSize()[::-1], affine)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _check_finite(array: NDArray, path: Path) -> None:
    if array.dtype.kind != "f":
        return
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise nonfinite_error(path, bad)


def as_hounsfield(array: NDArray, path: Path, notes: list[str]) -> NDArray[np.float32]:
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels of type {array.dtype}; give a CT in Hounsfield units")
    _check_finite(array, path)
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise DataError(f"{path}: every voxel is {low:g}; the image holds nothing, export it again")
    if low >= 0:
        notes.append(
            f"values {low:g} to {high:g} hold no air (-1000 HU); "
            "is this a CT with its rescale intercept applied?"
        )
    elif high < 0:
        notes.append(f"values {low:g} to {high:g} hold no soft tissue; is this a CT in Hounsfield units?")
    return array.astype(np.float32, copy=False)


def as_labels(array: NDArray, path: Path) -> NDArray:
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels of type {array.dtype}; a label image holds integers")
    _check_finite(array, path)
    if array.dtype.kind == "f":
        odd = int(np.count_nonzero(array != np.round(array)))
        if odd:
            raise DataError(
                f"{path}: {odd} voxels are not integers, so this is no label image; "
                "resample labels with nearest neighbour and save them as integers"
            )
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise DataError(f"{path}: holds the negative label {low}; label ids must be 0 (background) or above")
    for dtype in (np.uint8, np.uint16, np.int32):
        if high <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False)
    raise DataError(f"{path}: holds the label {high}, larger than 2147483647; renumber the labels")


def _storable(array: NDArray) -> NDArray:
    """The array in a type that every format can hold."""
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


def _unwritable(temporary: Path, error: Exception) -> str:
    folder = temporary.parent
    if not os.access(folder, os.W_OK):
        return "permission denied; choose a folder that you may write to"
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < 1 << 20:
            return "the disk is full; free space or write somewhere else"
    except (OSError, AttributeError):
        pass
    return _reason(error).replace("copy or export it again", "check the disk and write somewhere else")
