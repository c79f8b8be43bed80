"""Reading and writing volumes as NIfTI, NRRD and MetaImage files, which SimpleITK decodes and encodes.

SimpleITK uses LPS millimetres and the rest of the package RAS+, so the signs of x and y change in this module.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, WriteError
from deepatlas.files import FREE_SPACE, atomic_path, refuse_pointer
from deepatlas.io.gzip_stream import write_gzip
from deepatlas.io.integrity import AGAIN, Checked, compare_geometry
from deepatlas.io.integrity_metaimage import check_metaimage, metaimage_scale
from deepatlas.io.integrity_nifti import check_nifti, check_version
from deepatlas.io.integrity_nrrd import check_nrrd, nrrd_scale
from deepatlas.io.itk import itk_reads, itk_writes, simpleitk
from deepatlas.io.values import as_hounsfield, as_labels, storable
from deepatlas.space.constants import LPS_FROM_RAS, LPS_SIGNS, MIN_VOXELS
from deepatlas.space.grid import Grid, axis_cosine
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
# The headers whose voxels may lie in another file.
_DETACHED = (".nhdr", ".mhd")
_CHECKS = {"NiftiImageIO": check_nifti, "NrrdImageIO": check_nrrd, "MetaImageIO": check_metaimage}
# ITK converts the lengths of a NIfTI to millimetres, and takes those of the others as they stand.
_SCALES = {"NrrdImageIO": nrrd_scale, "MetaImageIO": metaimage_scale}

# In a NIfTI-1: the longest side, and the bytes at which the sides and the voxels begin.
_NIFTI_SIDE, _NIFTI_DIM, _NIFTI_VOXELS = 32767, 40, 352
# ITK refuses a NIfTI whose sform has two axes with a cosine above about this value between them.
_ITK_SHEAR = 1e-4


def image_suffix(path: str | os.PathLike[str]) -> str:
    """The image suffix of a path in lower case (``.nii.gz``, ``.nrrd`` …), or an empty string."""
    name = Path(path).name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")


def read_image(path: Path, *, labels: bool = False) -> tuple[Volume, list[str]]:
    """Read a 3-D scalar image file.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.
        labels: whether the file is a label image; otherwise it is a CT in Hounsfield units.

    Returns:
        A :class:`Volume` in the file's own voxel order (z, y, x), float32 Hounsfield units or labels in the smallest
        of uint8, uint16 and int32 that holds them; and one line for each oddity that does not prevent the use of
        the file.

    Raises:
        DataError: one line that names the file, the problem and the cure.
    """
    image, checked = _read_image(path)
    array, grid = _array(image), grid_of(image, path, checked.scale)
    compare_geometry(path, grid, checked)
    if checked.surplus:
        # Rounded, because adding and subtracting leaves an error behind, and labels must be whole numbers.
        array = np.round(array.astype(np.float64) - checked.surplus, 4)
    notes = list(checked.notes)
    array = as_labels(array, path) if labels else as_hounsfield(array, path)
    return Volume(array, grid, name=str(path), modality=_modality(path)), notes


def _modality(path: Path) -> str:
    """What the name of an image file says that it is: ``"CT"``, ``"MR"`` or nothing."""
    stem = path.name[: len(path.name) - len(image_suffix(path))].upper()
    return stem if stem in ("CT", "MR") else ""


def read_stored(path: Path) -> NDArray:
    """The voxels (z, y, x) of a 3-D scalar image file in the type that they have, whatever they are.

    Raises :class:`~deepatlas.errors.DataError` as :func:`read_image` does, except for the values of the voxels.
    """
    return _array(_read_image(path)[0])


def read_layers(path: Path) -> tuple[list[NDArray], Grid, list[str]]:
    """The label images on the layers of a file (each z, y, x), its grid, and a line for each oddity.

    A layer is one value of the voxels of a 4-D NRRD; every other label image has one.

    Raises :class:`~deepatlas.errors.DataError` as :func:`read_image` does for a label image.
    """
    image, checked = _read_image(path, layers=True)
    array, grid = _array(image), grid_of(image, path, checked.scale)
    compare_geometry(path, grid, checked)
    layers = [array] if array.ndim == 3 else list(np.moveaxis(array, -1, 0))
    return [as_labels(layer, path) for layer in layers], grid, list(checked.notes)


def read_grid(path: Path, *, layers: bool = False) -> Grid:
    """The grid of a 3-D image file from its header alone; the voxels are neither read nor checked.

    Only with ``layers`` may a voxel have several values (see :func:`read_layers`).

    Raises :class:`~deepatlas.errors.DataError` as :func:`read_image` does.
    """
    suffix = _check_file(path)
    reader = simpleitk().ImageFileReader()
    reader.SetImageIO(_READERS[suffix])
    try:
        if _READERS[suffix] == "NiftiImageIO":
            check_version(path)
        with itk_reads(path, suffix, alone=_has_twin(path)) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path}: its header cannot be decoded{_detail(error)}; {AGAIN}") from error
    _check_shape(path, reader.GetSize(), 1 if layers else reader.GetNumberOfComponents())
    scale = _SCALES.get(_READERS[suffix])
    return grid_of(reader, path, scale(path) if scale else 1.0)


def voxel_file(path: Path) -> Path | None:
    """The other file that holds the voxels of an image file, as its header names it; None where there is none.

    Only the headers of NRRD and MetaImage can name one.

    Raises :class:`~deepatlas.errors.DataError` as :func:`read_image` does for a damaged header.
    """
    suffix = _check_file(path)
    if suffix in (".nii", ".nii.gz"):
        return None
    beside = _CHECKS[_READERS[suffix]](path).beside
    return path.parent / beside if beside else None


def files_of_image(path: Path) -> list[Path]:
    """An image file and, beside a header (``.nhdr``, ``.mhd``), the files of the same name with another ending.

    They may hold its voxels, so that a new size or time of one of them means another image. The header is not read.
    Raises :class:`OSError` if its folder cannot be listed.
    """
    if path.suffix.lower() not in _DETACHED:
        return [path]
    stem = path.name[: -len(path.suffix)] + "."
    return [
        path,
        *sorted(p for p in path.parent.iterdir() if p.name.startswith(stem) and p.name != path.name),
    ]


def write_volume(path: str | os.PathLike[str], volume: Volume) -> Path:
    """Write a volume and its geometry atomically, compressed unless the suffix is ``.nii``; return the path.

    What ITK writes is read back before it gets its final name, because its libraries do not report a full disk.

    Raises :class:`~deepatlas.errors.WriteError` for a suffix other than ``.nii``, ``.nii.gz``, ``.nrrd`` and
    ``.mha``, and if the file cannot be written; :class:`~deepatlas.errors.DataError` for voxels of a type that
    these formats do not support.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix not in WRITABLE:
        raise WriteError(f"{path}: cannot write this kind of file; use one of {', '.join(WRITABLE)}")
    array = storable(volume.array)
    # In the order of the bytes of this machine, as the header will say.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with atomic_path(path) as temporary:
        if suffix == ".nii.gz" and max(array.shape) <= _NIFTI_SIDE:
            header = _nifti_header(path, temporary, array, volume.grid)
            with open(temporary, "wb") as file:
                write_gzip(file, [header, array.data])
        else:
            _write_by_itk(path, temporary, array, volume.grid)
    return path


def _write_by_itk(path: Path, temporary: Path, array: NDArray, grid: Grid) -> None:
    """Write ``temporary``, which is to become ``path``, and read it back."""
    sitk = simpleitk()
    image = sitk.GetImageFromArray(array)
    spacing = np.array(grid.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS_SIGNS * grid.affine[:3, 3]).tolist())
    image.SetDirection((LPS_FROM_RAS[:3, :3] @ grid.affine[:3, :3] / spacing).ravel().tolist())
    try:
        with itk_writes(temporary) as name:
            sitk.WriteImage(image, name, useCompression=image_suffix(temporary) != ".nii")
        written = _array(_read_image(temporary)[0])
    except (RuntimeError, DataError) as error:
        raise WriteError(f"{path}: cannot write: {_why_not_written(temporary, error)}") from error
    if not np.array_equal(written, array, equal_nan=array.dtype.kind == "f"):
        raise WriteError(f"{path}: cannot write: the file came back different; {FREE_SPACE}")


def _nifti_header(path: Path, temporary: Path, array: NDArray, grid: Grid) -> bytes:
    """The header of a NIfTI as ITK writes it: that of a small image of the same type and geometry, with the true size.

    ITK itself would compress in one thread, and at a level that takes several times as long.
    """
    small = temporary.with_suffix("")
    try:
        _write_by_itk(path, small, np.zeros((MIN_VOXELS,) * 3, dtype=array.dtype), grid)
        header = bytearray(small.read_bytes()[:_NIFTI_VOXELS])
    finally:
        small.unlink(missing_ok=True)
    struct.pack_into("=8h", header, _NIFTI_DIM, 3, *array.shape[::-1], 1, 1, 1, 1)
    return bytes(header)


# Volumes lie below this room, and cannot import what writes them.
Volume.writer = staticmethod(write_volume)


def _read_image(path: Path, *, layers: bool = False) -> tuple[Any, Checked]:
    """Check a file and decode it; returns a 3-D SimpleITK image and the content of the header.

    The image is scalar, unless ``layers`` allows several values for each voxel.
    """
    suffix = _check_file(path)
    sitk = simpleitk()
    try:
        checked = _CHECKS[_READERS[suffix]](path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_READERS[suffix])
        with itk_reads(path, suffix, alone=_has_twin(path), beside=checked.beside) as name:
            reader.SetFileName(name)
            _read_header(path, reader, checked)
            shape = reader.GetSize()
            if len(shape) > 3 and all(n == 1 for n in shape[3:]):
                reader.SetExtractSize([*shape[:3], *[0] * (len(shape) - 3)])
            _check_shape(path, shape, 1 if layers else reader.GetNumberOfComponents())
            return reader.Execute(), checked
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{path}: cannot be decoded, damaged or not of the format that its name says{_detail(error)}; {AGAIN}"
        ) from error


def _read_header(path: Path, reader: Any, checked: Checked) -> None:
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        # ITK names the reason in the text of its error alone, so the axes are examined here.
        if any(axis_cosine(affine) > _ITK_SHEAR for affine in checked.affines.values()):
            raise DataError(
                f"{path}: its axes are not at right angles (sheared geometry, as after a gantry tilt); "
                "resample it to orthogonal axes first (dcm2niix does it on conversion)"
            ) from error
        raise


def _has_twin(path: Path) -> bool:
    """Whether the same file lies uncompressed beside a compressed one.

    Where ``x.nii`` lies beside ``x.nii.gz``, ITK reads the header of the latter and, silently, the voxels of the
    former.
    """
    if not path.name.lower().endswith(".nii.gz"):
        return False
    return any(path.with_name(path.name[:-7] + suffix).exists() for suffix in (".nii", ".NII"))


def _check_file(path: Path) -> str:
    """The suffix of a file; :class:`DataError` unless it is a readable, non-empty file of a supported format."""
    try:
        if path.is_dir():
            raise DataError(
                f"{path}: is a folder without a DICOM series; give one with a series, or an image file "
                f"({', '.join(SUFFIXES)})"
            )
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; {AGAIN}")
        with open(path, "rb") as handle:
            head = handle.read(132)
        refuse_pointer(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read: {error.strerror or error}; check the path and its permissions"
        ) from error
    if suffix := image_suffix(path):
        return suffix
    if head[128:132] == b"DICM":
        raise DataError(
            f"{path}: is a DICOM file, which is no label image; give the labels as NIfTI, NRRD or MetaImage, or "
            "prepare the exam with its RTSTRUCT or DICOM-SEG (deepatlas prepare)"
        )
    raise DataError(f"{path}: unknown kind of image file; use one of {', '.join(SUFFIXES)}")


def _check_shape(path: Path, shape: tuple[int, ...], components: int) -> None:
    """Raise :class:`DataError` unless this is one 3-D image of scalars that is thick enough along every axis."""
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


def _detail(error: Exception) -> str:
    """The last of the many lines of an ITK error without file names and prefixes, in parentheses; often empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"\s*/\S+?:\d+:", "", lines[-1]) if lines else type(error).__name__
    last = re.sub(
        r"(?i)itk::?\s?error:\s*\w*(\(0x[0-9a-f]+\))?:?\s*|\[nrrd\]\s*|^Reason: Success$", "", last
    ).strip()
    return f" ({last[:120]})" if last else ""


def _array(image: Any) -> NDArray:
    return simpleitk().GetArrayFromImage(image)


def grid_of(image: Any, path: str | os.PathLike[str], scale: float = 1.0) -> Grid:
    """The grid of an image of SimpleITK, or of a reader that has read a header; axes beyond the third have one voxel.

    ``scale`` is millimetres in the unit of its lengths.
    Raises :class:`~deepatlas.errors.DataError`, which names ``path``, if no grid can have such axes.
    """
    shape = image.GetSize()
    direction = np.array(image.GetDirection()).reshape(len(shape), -1)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS_FROM_RAS[:3, :3] @ direction * image.GetSpacing()[:3]
    affine[:3, 3] = LPS_SIGNS * image.GetOrigin()[:3]
    affine[:3] *= scale
    try:
        return Grid(shape[2::-1], affine)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _why_not_written(temporary: Path, error: Exception) -> str:
    """The reason and the cure, from the state of the folder: ITK reports that writing failed, but not why."""
    folder = temporary.parent
    if not os.access(folder, os.W_OK):
        return "permission denied; choose a folder that you may write to"
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < 1 << 20:
            return f"the disk is full; {FREE_SPACE}"
    except (OSError, AttributeError):
        # The free space is unknown on this system.
        pass
    if isinstance(error, DataError):
        problem = f"the written file cannot be read back ({str(error).removeprefix(f'{temporary}: ')})"
    else:
        problem = f"the image library failed{_detail(error)}"
    return f"{problem}; check the disk and write somewhere else"
