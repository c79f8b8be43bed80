"""NRRD and MetaImage: text headers, read strictly, and their voxels (see :mod:`deepatlas.io.integrity`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.integrity import (
    AGAIN,
    RENAME,
    Checked,
    beside,
    check_length,
    check_memory,
    inflated_length,
)
from deepatlas.space.constants import LPS_FROM_RAS

_LINES = 1024

# -- MetaImage --------------------------------------------------------------------------------------

_MET_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 8, "ULONG": 8}
_MET_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# The three names of a field, and how many numbers it holds in 3-D.
_MET_GEOMETRY = {
    "ElementSpacing": (("ElementSpacing", "ElementSize"), 3),
    "Offset": (("Offset", "Position", "Origin"), 3),
    "TransformMatrix": (("TransformMatrix", "Rotation", "Orientation"), 9),
}


def check_metaimage(path: Path) -> Checked:
    """Raise :class:`DataError` unless header and voxels of a MetaImage (.mha, .mhd) hold together."""
    with open(path, "rb") as handle:
        fields = _meta_fields(path, handle)
        return _check_meta(path, handle, fields)


def _meta_fields(path: Path, handle: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    for _ in range(_LINES):
        key, separator, value = _line(handle).partition("=")
        key = key.strip()
        if not separator:
            break
        if key in fields:
            raise _damaged(path, "MetaImage", f"{_word(key)} is given twice")
        fields[key] = value.strip()
        if key == "ElementDataFile":
            break
    for key in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if key not in fields:
            raise DataError(f"{path}: not a MetaImage file ({key} is missing in its header); {AGAIN}")
    return fields


def _check_meta(path: Path, handle: BinaryIO, fields: dict[str, str]) -> Checked:
    checked = Checked()
    (dims,) = _integers(path, "MetaImage", "NDims", fields["NDims"], 1)
    shape = _integers(path, "MetaImage", "DimSize", fields["DimSize"], dims)
    kind = fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
    (channels,) = _integers(path, "MetaImage", "channels", fields.get("ElementNumberOfChannels", "1"), 1)
    if kind not in _MET_BYTES or not fields["ElementType"].startswith("MET_"):
        raise _damaged(path, "MetaImage", f"ElementType {_word(fields['ElementType'])}")
    flags = {key: _flag(path, key, fields.get(key)) for key in ("CompressedData", "BinaryData")}
    for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        _flag(path, key, fields.get(key))
    found: dict[str, NDArray[np.float64]] = {}
    for key, (names, count) in _MET_GEOMETRY.items():
        given = [name for name in names if name in fields]
        if not given:
            checked.notes.append(f"MetaImage header has no {key}; size or place in the body may be wrong")
        elif dims == 3:
            found[key] = _floats(path, "MetaImage", key, fields[given[0]].split(), count)
    if dims == 3 and len(found) == len(_MET_GEOMETRY):
        affine = np.eye(4)
        affine[:3, :3] = found["TransformMatrix"].reshape(3, 3).T * found["ElementSpacing"]
        affine[:3, 3] = found["Offset"]
        checked.affines["header"] = LPS_FROM_RAS @ affine
    name = fields["ElementDataFile"]
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise DataError(f"{path}: its voxels are in a list of files; save it as one .mha first")
    needed = int(np.prod(shape, dtype=object)) * channels * _MET_BYTES[kind]
    if flags["BinaryData"] is False:
        raise DataError(f"{path}: its voxels are written as text; save it in binary form first")
    local = name.upper() == "LOCAL"
    voxels = path if local else beside(path, name)
    with open(voxels, "rb") as data:
        data.seek(handle.tell() if local else 0)
        if flags["CompressedData"]:
            check_memory(path, needed)
            size = fields.get("CompressedDataSize")
            there = _rest(data)
            if size is None:
                if local:  # MetaIO then leaves the voxels as they are, with a word on stderr at most
                    raise _damaged(path, "MetaImage", "CompressedDataSize is missing")
            elif _integers(path, "MetaImage", "CompressedDataSize", size, 1)[0] != there:
                raise _damaged(
                    path, "MetaImage", f"CompressedDataSize {_word(size)}, but {there} bytes follow"
                )
            check_length(voxels, inflated_length(voxels, data), needed, checked.notes)
        else:
            skip = int(_floats(path, "MetaImage", "HeaderSize", [fields.get("HeaderSize", "0")], 1)[0])
            check_length(voxels, _rest(data) - max(0, skip), needed, checked.notes if skip >= 0 else [])
    return checked


def _flag(path: Path, key: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise _damaged(path, "MetaImage", f"{key} {_word(text)}")


# -- NRRD -------------------------------------------------------------------------------------------

_NRRD_BYTES = {
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
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "ras": (1, 1, 1),
    "las": (-1, 1, 1),
    "lps": (-1, -1, 1),
}


def check_nrrd(path: Path) -> Checked:
    """Raise :class:`DataError` unless header and voxels of an NRRD (.nrrd, .nhdr) hold together."""
    with open(path, "rb") as handle:
        if handle.read(4) != b"NRRD":
            raise DataError(f"{path}: not an NRRD file despite its name; {RENAME}")
        handle.readline(8192)
        fields, ended = _nrrd_fields(path, handle)
        for key in ("dimension", "type", "sizes", "encoding"):
            if key not in fields:
                raise DataError(f"{path}: not a whole NRRD file ({key} is missing in its header); {AGAIN}")
        return _check_nrrd(path, handle, fields, ended)


def _nrrd_fields(path: Path, handle: BinaryIO) -> tuple[dict[str, str], bool]:
    """The fields, and whether an empty line ends them (voxels follow then)."""
    fields: dict[str, str] = {}
    for _ in range(_LINES):
        line = _line(handle)
        if not line.strip():
            return fields, bool(line)
        if line[0] == "#" or re.match(r"[^:]*:=", line):
            continue
        key, separator, value = line.partition(":")
        key = key.strip().lower()
        if not separator or key in fields:
            raise _damaged(path, "NRRD", f"the line {_word(line)}")
        fields["data file" if key == "datafile" else key] = value.strip()
    raise _damaged(path, "NRRD", "too many lines")


def _check_nrrd(path: Path, handle: BinaryIO, fields: dict[str, str], ended: bool) -> Checked:
    checked = Checked()
    (dims,) = _integers(path, "NRRD", "dimension", fields["dimension"], 1)
    shape = _integers(path, "NRRD", "sizes", fields["sizes"], dims)
    size = _NRRD_BYTES.get(fields["type"].lower())
    if size is None:
        raise _damaged(path, "NRRD", f"type {_word(fields['type'])}")
    encoding = fields["encoding"].lower()
    if size > 1 and encoding in ("raw", "gzip", "gz") and fields.get("endian") not in ("little", "big"):
        raise _damaged(path, "NRRD", f"endian {_word(fields.get('endian', 'is missing'))}")
    _nrrd_geometry(path, fields, checked)
    needed = int(np.prod(shape, dtype=object)) * size
    name = fields.get("data file")
    if name is None and not ended:
        raise DataError(f"{path}: truncated, its header does not end; {AGAIN}")
    if name is not None and ("%" in name or name.split()[:1] == ["LIST"]):
        raise DataError(f"{path}: its voxels are in a list of files; save it as one .nrrd first")
    voxels = path if name is None else beside(path, name)
    skips = [int(_floats(path, "NRRD", k, [fields.get(k, "0")], 1)[0]) for k in ("line skip", "byte skip")]
    with open(voxels, "rb") as data:
        data.seek(handle.tell() if name is None else 0)
        for _ in range(min(skips[0], _LINES)):
            data.readline(1 << 16)
        if encoding in ("gzip", "gz"):
            check_memory(path, needed)
            found = inflated_length(voxels, data)
        elif encoding == "raw":
            found = _rest(data)
        else:  # text and others: ITK counts them itself
            return checked
    check_length(voxels, found - max(0, skips[1]), needed, checked.notes if skips[1] >= 0 else [])
    return checked


def _nrrd_geometry(path: Path, fields: dict[str, str], checked: Checked) -> None:
    missing = [k for k in ("space", "space directions", "space origin") if k not in fields]
    if missing:
        checked.notes.append(f"NRRD header has no {missing[0]}; size or place in the body may be wrong")
    vectors = {}
    for key, count in (("space directions", 3), ("space origin", 1)):
        text = fields.get(key, "")
        found = re.findall(r"\(([^()]*)\)", text)
        if re.sub(r"\([^()]*\)|none|\s", "", text):
            raise _damaged(path, "NRRD", f"{key} {_word(text)}")
        if len(found) == count:
            vectors[key] = np.array([_floats(path, "NRRD", key, v.split(","), 3) for v in found])
        elif text:
            raise _damaged(path, "NRRD", f"{key} {_word(text)}")
    signs = _SPACES.get(fields.get("space", "").lower())
    if signs is None and "space" in fields:
        checked.notes.append(f"NRRD space {_word(fields['space'])} does not say where left is")
    if signs is not None and len(vectors) == 2:
        affine = np.eye(4)
        affine[:3, :3] = vectors["space directions"].T
        affine[:3, 3] = vectors["space origin"][0]
        checked.affines["header"] = np.diag([*signs, 1]) @ affine


# -- both -------------------------------------------------------------------------------------------


def _damaged(path: Path, kind: str, what: str) -> DataError:
    return DataError(f"{path}: damaged {kind} header ({what}); {AGAIN}")


def _line(handle: BinaryIO) -> str:
    """A line; bytes beyond ASCII become a sign that is no number, and that strip() does not take for a blank."""
    return handle.readline(1 << 16).decode("ascii", "replace")


def _word(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text.strip())[:60]


def _integers(path: Path, kind: str, key: str, text: str, count: int) -> list[int]:
    words = text.split()
    if len(words) != count or not all(re.fullmatch(r"0*[1-9][0-9]{0,11}", w) for w in words):
        raise _damaged(path, kind, f"{key} {_word(text)}")
    return [int(word) for word in words]


def _floats(path: Path, kind: str, key: str, words: list[str], count: int) -> NDArray[np.float64]:
    try:
        # float() takes 1_0 and the digits of other scripts, which no writer means
        numbers = np.array([float(w) if re.fullmatch(r"[\s0-9.eE+-]+", w) else np.nan for w in words])
    except ValueError:
        numbers = np.array([np.nan])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _damaged(path, kind, f"{key} {_word(' '.join(words))}")
    return numbers


def _rest(handle: BinaryIO) -> int:
    """Bytes from here to the end of the file; the place is kept."""
    here = handle.tell()
    length = handle.seek(0, os.SEEK_END) - here
    handle.seek(here)
    return max(0, length)
