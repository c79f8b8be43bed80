"""NRRD (.nrrd, .nhdr): checks of the header and of the length of the voxels (see :mod:`deepatlas.io.integrity`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.integrity import AGAIN, RENAME, Checked, check_length, check_memory, inflated_length
from deepatlas.io.text_header import MAX_LINES, TextHeader, bytes_left, printable, read_line
from deepatlas.io.units import millimetres

_BYTES = {
    name: size
    for size, names in {
        1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
        2: "short,short int,signed short,signed short int,int16,int16_t,"
        "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
        8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
        "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
    }.items()
    for name in names.split(",")
}
# The signs that turn coordinates (x, y, z) of each space into RAS.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "ras": (1, 1, 1),
    "las": (-1, 1, 1),
    "lps": (-1, -1, 1),
}


def check_nrrd(path: Path) -> Checked:
    """The content of a header; :class:`DataError` unless header and voxels of the file are consistent."""
    with open(path, "rb") as handle:
        header, ended = _read_header(path, handle)
        for key in ("dimension", "type", "sizes", "encoding"):
            if key not in header.fields:
                raise DataError(f"{path}: incomplete NRRD file ({key} is missing in its header); {AGAIN}")
        return _check(header, handle, ended)


def nrrd_scale(path: Path) -> float:
    """Millimetres in the unit of length of a header; :class:`DataError` for a damaged one. Voxels are not read."""
    with open(path, "rb") as handle:
        return _scale(_read_header(path, handle)[0], [])


def _read_header(path: Path, handle: BinaryIO) -> tuple[TextHeader, bool]:
    """The header, and whether an empty line ends it, as it must where voxels follow in the same file."""
    if handle.read(4) != b"NRRD":
        raise DataError(f"{path}: not an NRRD file despite its name; {RENAME}")
    handle.readline(8192)
    header = TextHeader(path, "NRRD")
    for _ in range(MAX_LINES):
        line = read_line(handle)
        if not line.strip():
            return header, bool(line)
        # Comments, and key/value pairs that do not describe the voxels.
        if line[0] == "#" or re.match(r"[^:]*:=", line):
            continue
        key, separator, value = line.partition(":")
        key = key.strip().lower()
        if not separator or key in header.fields:
            raise header.damaged(f"the line {printable(line)}")
        header.fields["data file" if key == "datafile" else key] = value.strip()
    raise header.damaged("too many lines")


def _check(header: TextHeader, handle: BinaryIO, ended: bool) -> Checked:
    path, fields = header.path, header.fields
    (dims,) = header.integers("dimension", 1)
    shape = header.integers("sizes", dims)
    size = _BYTES.get(fields["type"].lower())
    if size is None:
        raise header.damaged(f"type {printable(fields['type'])}")
    encoding = fields["encoding"].lower()
    if size > 1 and encoding in ("raw", "gzip", "gz") and fields.get("endian") not in ("little", "big"):
        raise header.damaged(f"endian {printable(fields.get('endian', 'is missing'))}")
    checked = Checked()
    _check_geometry(header, checked)
    needed = int(np.prod(shape, dtype=object)) * size
    name = fields.get("data file")
    if name is None and not ended:
        raise DataError(f"{path}: truncated, its header does not end; {AGAIN}")
    if name is not None and ("%" in name or name.split()[:1] == ["LIST"]):
        raise DataError(f"{path}: its voxels are in a list of files; save it as one .nrrd first")
    voxels = path if name is None else header.voxel_file(name, checked)
    lines, skip = header.number("line skip", "0"), header.number("byte skip", "0")
    with open(voxels, "rb") as data:
        data.seek(handle.tell() if name is None else 0)
        for _ in range(min(lines, MAX_LINES)):
            data.readline(1 << 16)
        if encoding in ("gzip", "gz"):
            check_memory(path, needed)
            found = inflated_length(voxels, data)
        elif encoding == "raw":
            found = bytes_left(data)
        else:
            # ITK itself counts the voxels of text and of the other encodings.
            return checked
    check_length(voxels, found - max(0, skip), needed, checked.notes if skip >= 0 else [])
    return checked


def _check_geometry(header: TextHeader, checked: Checked) -> None:
    """Add the geometry to ``checked``, or a note where it is incomplete."""
    fields = header.fields
    checked.scale = _scale(header, checked.notes)
    missing = [k for k in ("space", "space directions", "space origin") if k not in fields]
    if missing:
        checked.notes.append(f"NRRD header has no {missing[0]}; size or place in the body may be wrong")
    vectors = {}
    for key, count in (("space directions", 3), ("space origin", 1)):
        text = fields.get(key, "")
        found = re.findall(r"\(([^()]*)\)", text)
        if re.sub(r"\([^()]*\)|none|\s", "", text):
            raise header.damaged(f"{key} {printable(text)}")
        if len(found) == count:
            vectors[key] = np.array([header.floats(key, v.split(","), 3) for v in found])
        elif text:
            raise header.damaged(f"{key} {printable(text)}")
    signs = _SPACES.get(fields.get("space", "").lower())
    if signs is None and "space" in fields:
        checked.notes.append(f"NRRD space {printable(fields['space'])} does not define which side is left")
    if signs is not None and len(vectors) == 2:
        affine = np.eye(4)
        affine[:3, :3] = vectors["space directions"].T
        affine[:3, 3] = vectors["space origin"][0]
        affine[:3] *= checked.scale
        checked.affines["header"] = np.diag([*signs, 1]) @ affine


def _scale(header: TextHeader, notes: list[str]) -> float:
    """Millimetres in the unit of length, which stands beside the space or, without one, beside the spacings."""
    key = "space units" if "space units" in header.fields else "units"
    text = header.fields.get(key, "")
    if re.sub(r'"[^"]*"|\s', "", text):
        raise header.damaged(f"{key} {printable(text)}")
    units = re.findall(r'"([^"]*)"', text)
    if key == "units":
        # An axis without a spacing is none of space; it may hold the values of a voxel.
        spacings = header.fields.get("spacings", "").split()
        units = [unit for unit, spacing in zip(units, spacings, strict=False) if spacing.lower() != "nan"]
    return millimetres(header.path, "NRRD", key, units, notes)
