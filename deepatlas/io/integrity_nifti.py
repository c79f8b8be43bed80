"""NIfTI: checks of the header, the length and the values of the voxels.

See :mod:`deepatlas.io.integrity`. The header checks of nibabel (``Nifti1Header.check_fix``) cannot replace these. On
12,000 randomly damaged files they accepted axes of size 0 or less, unknown units of length, and a qform or sform with
NaN or impossibly large numbers; they do not examine the scaling, the length of the file or the values of the voxels.
At the level at which nibabel notices a wrong number of bits per voxel, it also refuses usable files: those with a
``pixdim[0]`` of 0, which many programs write, or with voxels at an offset that is not a multiple of 16.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.integrity import (
    AGAIN,
    RENAME,
    Checked,
    check_length,
    check_memory,
    decompressed,
    nonfinite_error,
)

# The floating-point types, by their datatype code in the header.
_FLOATS = {16: "f4", 64: "f8"}
# Bits per voxel of every datatype code. Those in the second line (complex, extended precision and colour) are refused
# later, when the image is decoded.
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
_BITS |= {32: 64, 1792: 128, 2048: 256, 1536: 128, 128: 24, 2304: 32}
# Millimetres in each unit of length, by its code in the header.
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNUSUAL_UNITS = {1: "metres", 3: "micrometres"}
NO_ORIENTATION = (
    "NIfTI header has no orientation (qform and sform codes are 0); it may be mirrored or turned over"
)
# Numbers of an affine beyond this many millimetres are damage; ITK prints errors of its own for them.
_FARTHEST = 1e6


@dataclass(frozen=True)
class _Header:
    """``offset`` of the voxels and ``length`` of the file in bytes; ``floats`` is None for integer voxels."""

    offset: int
    length: int
    floats: np.dtype | None
    checked: Checked = field(default_factory=Checked)


def check_nifti(path: Path) -> Checked:
    """The content of a header; :class:`DataError` unless header and voxels of the file are consistent."""
    chunks = decompressed(path)
    head = next(chunks, b"")
    header = _header(path, head)
    # The length of an uncompressed file is known without reading it.
    if path.name.lower().endswith(".gz"):
        check_memory(path, header.length)
    position, bad, rest = len(head), 0, head[header.offset : header.length]
    bad, rest = _count_bad(rest, header.floats)
    for chunk in chunks:
        more, rest = _count_bad(rest + chunk[: max(0, header.length - position)], header.floats)
        bad, position = bad + more, position + len(chunk)
    check_length(path, position, header.length, header.checked.notes)
    if bad:
        raise nonfinite_error(path, bad)
    return header.checked


def check_version(path: Path) -> None:
    """Raise :class:`DataError` for a NIfTI-2, from its first bytes; other files pass, also damaged ones."""
    with suppress(EOFError, zlib.error, gzip.BadGzipFile), open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if zipped else raw as stream:
            _refuse_second_version(path, stream.read(4))


def _refuse_second_version(path: Path, head: bytes) -> None:
    """ITK reads no NIfTI-2, whose header has 540 bytes; they are whole files that nibabel and FSL can write."""
    if head[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
        raise DataError(
            f"{path}: is a NIfTI-2, which is not read; save it as NIfTI-1, in Python by "
            "nibabel.Nifti1Image.from_image(nibabel.load(FILE)).to_filename(NEW)"
        )


def _header(path: Path, head: bytes) -> _Header:
    if len(head) < 348:
        raise DataError(f"{path}: too short for a NIfTI file ({len(head)} bytes); {AGAIN}")
    _refuse_second_version(path, head)
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", head[:4])[0] != 348:
        raise DataError(f"{path}: not a NIfTI file despite its name; {RENAME}")
    dim = struct.unpack(order + "8h", head[40:56])
    kind, bits = struct.unpack(order + "2h", head[70:74])
    pixdim = struct.unpack(order + "8f", head[76:108])
    offset, slope, intercept = struct.unpack(order + "3f", head[108:120])
    units = head[123]
    codes = struct.unpack(order + "2h", head[252:256])
    numbers = struct.unpack(order + "18f", head[256:328])
    if head[344:347] != b"n+1":
        raise DataError(
            f"{path}: not a single-file NIfTI (header and voxels in one .nii or .nii.gz); convert it first"
        )
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]) or not 352 <= offset < 1 << 40:
        raise DataError(f"{path}: damaged NIfTI header (dimensions {list(dim)}, offset {offset}); {AGAIN}")
    if _BITS.get(kind) != bits:
        raise DataError(f"{path}: damaged NIfTI header (datatype {kind} of {bits} bits); {AGAIN}")
    if np.isinf([slope, intercept]).any():
        raise DataError(f"{path}: damaged NIfTI header (scaling {slope}, {intercept}); {AGAIN}")
    voxels = 1
    for n in dim[1 : dim[0] + 1]:
        voxels *= n
    # If an extended header is longer than the first chunk, the position of the voxels in the chunks is unknown, and
    # NaN voxels are not counted.
    countable = kind in _FLOATS and offset <= len(head)
    floats = np.dtype(order + _FLOATS[kind]) if countable else None
    checked = _geometry(path, np.array(pixdim), units & 7, codes, np.array(numbers))
    _check_scaling(slope, intercept, checked)
    return _Header(int(offset), int(offset) + voxels * bits // 8, floats, checked)


def _check_scaling(slope: float, intercept: float, checked: Checked) -> None:
    """Notes about a scaling of which only one half is set; NaN means unset, as many programs write it.

    By the format a slope of 0 means that the voxels are not scaled, and the intercept does not count. nibabel reads it
    so, and ITK adds the intercept.
    """
    unset = slope == 0 or np.isnan(slope)
    if unset and intercept and np.isfinite(intercept):
        checked.surplus = intercept
        checked.notes.append(
            f"NIfTI header has an intercept of {intercept:g} without a slope, so that neither counts; check the values"
        )
    if not unset and np.isnan(intercept):
        checked.notes.append(f"NIfTI header has a slope of {slope:g} and no intercept (NaN); 0 is used")


def _geometry(path: Path, pixdim: NDArray, units: int, codes: tuple[int, ...], numbers: NDArray) -> Checked:
    """The affines of qform and sform in millimetres, and notes about units and orientation.

    ``codes`` are those of qform and sform. ``numbers`` are the three of the quaternion, the three of its offset, and
    the twelve of the rows of the sform.
    """
    checked, scale = Checked(), _UNITS.get(units)
    if scale is None:
        raise DataError(f"{path}: damaged NIfTI header (unit of length {units}); {AGAIN}")
    if units in _UNUSUAL_UNITS:
        checked.notes.append(f"NIfTI header gives lengths in {_UNUSUAL_UNITS[units]}, which is unusual")
    if not any(codes):
        checked.notes.append(NO_ORIENTATION)
    millimetres = np.diag([scale, scale, scale, 1.0])
    if codes[0] > 0:
        checked.affines["qform"] = millimetres @ _qform(pixdim, numbers)
    if codes[1] > 0:
        checked.affines["sform"] = millimetres @ np.vstack([numbers[6:].reshape(3, 4), [0, 0, 0, 1]])
    for name, affine in checked.affines.items():
        # Written so that NaN fails as well.
        if not np.abs(affine).max() < _FARTHEST:
            raise DataError(f"{path}: damaged NIfTI header ({name} holds impossible numbers); {AGAIN}")
    return checked


def _qform(pixdim: NDArray, numbers: NDArray) -> NDArray[np.float64]:
    """The 4x4 affine of the quaternion, in the unit of the header."""
    with np.errstate(all="ignore"):
        b, c, d = (float(n) for n in numbers[:3])
        a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
        if a < 1e-7:
            # A rotation by half a turn: nifti1.h normalises the other three numbers.
            b, c, d = np.array([b, c, d]) / np.linalg.norm([b, c, d])
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        affine = np.eye(4)
        affine[:3, :3] = rotation * pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1]
        affine[:3, 3] = numbers[3:6]
    return affine


def _count_bad(data: bytes, dtype: np.dtype | None) -> tuple[int, bytes]:
    """The number of values in ``data`` that are not finite, and the bytes of an incomplete value at the end."""
    if dtype is None:
        return 0, b""
    count = len(data) // dtype.itemsize
    values = np.frombuffer(data, dtype=dtype, count=count)
    return count - int(np.count_nonzero(np.isfinite(values))), data[count * dtype.itemsize :]
