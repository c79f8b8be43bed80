"""MetaImage (.mha, .mhd): checks of the header and of the length of the voxels (see :mod:`deepatlas.io.integrity`)."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.integrity import AGAIN, Checked, check_length, check_memory, inflated_length
from deepatlas.io.text_header import MAX_LINES, TextHeader, bytes_left, printable, read_line
from deepatlas.io.units import millimetres
from deepatlas.space.constants import LPS_FROM_RAS

_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 8, "ULONG": 8}
_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# The names under which each field of the geometry may occur, and how many numbers it holds in 3-D.
_GEOMETRY = {
    "ElementSpacing": (("ElementSpacing", "ElementSize"), 3),
    "Offset": (("Offset", "Position", "Origin"), 3),
    "TransformMatrix": (("TransformMatrix", "Rotation", "Orientation"), 9),
}


def check_metaimage(path: Path) -> Checked:
    """The content of a header; :class:`DataError` unless header and voxels of the file are consistent."""
    with open(path, "rb") as handle:
        header = _read_header(path, handle)
        return _check(header, handle)


def metaimage_scale(path: Path) -> float:
    """Millimetres in the unit of length of a header; :class:`DataError` for a damaged one. Voxels are not read."""
    with open(path, "rb") as handle:
        return _scale(_read_header(path, handle), [])


def _read_header(path: Path, handle: BinaryIO) -> TextHeader:
    header = TextHeader(path, "MetaImage")
    for _ in range(MAX_LINES):
        key, separator, value = read_line(handle).partition("=")
        key = key.strip()
        if not separator:
            break
        if key in header.fields:
            raise header.damaged(f"{printable(key)} is given twice")
        header.fields[key] = value.strip()
        if key == "ElementDataFile":
            break
    for key in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if key not in header.fields:
            raise DataError(f"{path}: not a MetaImage file ({key} is missing in its header); {AGAIN}")
    return header


def _check(header: TextHeader, handle: BinaryIO) -> Checked:
    path, fields = header.path, header.fields
    (dims,) = header.integers("NDims", 1)
    shape = header.integers("DimSize", dims)
    (channels,) = header.integers("ElementNumberOfChannels", 1, default="1")
    voxel_bytes = _voxel_bytes(header) * channels
    compressed, binary = _flag(header, "CompressedData"), _flag(header, "BinaryData")
    for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        _flag(header, key)
    checked = Checked()
    _check_geometry(header, dims, checked)
    name = fields["ElementDataFile"]
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise DataError(f"{path}: its voxels are in a list of files; save it as one .mha first")
    if binary is False:
        raise DataError(f"{path}: its voxels are written as text; save it in binary form first")
    needed = int(np.prod(shape, dtype=object)) * voxel_bytes
    local = name.upper() == "LOCAL"
    voxels = path if local else header.voxel_file(name, checked)
    with open(voxels, "rb") as data:
        data.seek(handle.tell() if local else 0)
        if compressed:
            check_memory(path, needed)
            _check_compressed_size(header, bytes_left(data), local)
            check_length(voxels, inflated_length(voxels, data), needed, checked.notes)
        else:
            skip = header.number("HeaderSize", "0")
            check_length(voxels, bytes_left(data) - max(0, skip), needed, checked.notes if skip >= 0 else [])
    return checked


def _voxel_bytes(header: TextHeader) -> int:
    """Number of bytes of one value."""
    text = header.fields["ElementType"]
    kind = text.removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _BYTES or not text.startswith("MET_"):
        raise header.damaged(f"ElementType {printable(text)}")
    return _BYTES[kind]


def _flag(header: TextHeader, key: str) -> bool | None:
    """A field that is true or false; None if it is absent."""
    text = header.fields.get(key)
    if text is None:
        return None
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise header.damaged(f"{key} {printable(text)}")


def _check_geometry(header: TextHeader, dims: int, checked: Checked) -> None:
    """Add the geometry to ``checked``, or a note for each field that is missing."""
    found: dict[str, NDArray[np.float64]] = {}
    checked.scale = _scale(header, checked.notes)
    for key, (names, count) in _GEOMETRY.items():
        given = [name for name in names if name in header.fields]
        if not given:
            checked.notes.append(f"MetaImage header has no {key}; size or place in the body may be wrong")
        elif dims == 3:
            found[key] = header.floats(key, header.fields[given[0]].split(), count)
    if len(found) == len(_GEOMETRY):
        affine = np.eye(4)
        affine[:3, :3] = found["TransformMatrix"].reshape(3, 3).T * found["ElementSpacing"]
        affine[:3, 3] = found["Offset"]
        affine[:3] *= checked.scale
        checked.affines["header"] = LPS_FROM_RAS @ affine


def _scale(header: TextHeader, notes: list[str]) -> float:
    """Millimetres in the unit of length."""
    return millimetres(
        header.path, "MetaImage", "DistanceUnits", [header.fields.get("DistanceUnits", "")], notes
    )


def _check_compressed_size(header: TextHeader, found: int, local: bool) -> None:
    """Compare the size of the compressed voxels in the header with the number of bytes in the file."""
    key = "CompressedDataSize"
    if key in header.fields:
        if header.integers(key, 1)[0] != found:
            raise header.damaged(f"{key} {printable(header.fields[key])}, but {found} bytes follow")
    elif local:
        # MetaIO does not decompress such a file, and prints at most a warning on stderr.
        raise header.damaged(f"{key} is missing")
