"""Is an image file whole? The libraries that decode them do not always say.

ITK reads a truncated NIfTI without a word (the rest of the array is what was in memory), turns NaN voxels of
a NIfTI into 0, does not test the checksum of an NRRD, and reports a damaged MetaImage on stderr alone.
These checks run before it and cost one decompression.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deepatlas.errors import DataError

_CHUNK = 1 << 20
_AGAIN = "copy or export it again"
_RENAME = "give it the suffix of its true format"
_FLOATS = {16: "f4", 64: "f8"}  # NIfTI datatype codes


@dataclass(frozen=True)
class _NiftiHeader:
    offset: int
    length: int  # of the file, header and voxels
    floats: np.dtype | None
    oriented: bool


def check_nifti(path: Path) -> list[str]:
    """Raise :class:`DataError` unless header and voxels of a NIfTI file hold together; return notes."""
    chunks = _decompressed(path)
    head = next(chunks, b"")
    header = _nifti_header(path, head)
    position, bad, rest = len(head), 0, head[header.offset :]
    bad, rest = _count_bad(rest, header.floats)
    for chunk in chunks:
        more, rest = _count_bad(rest + chunk, header.floats)
        bad, position = bad + more, position + len(chunk)
    if position < header.length:
        raise DataError(f"{path}: truncated, {position} of {header.length} bytes are there; {_AGAIN}")
    if bad:
        raise nonfinite_error(path, bad)
    if not header.oriented:
        return ["NIfTI header has no orientation (qform and sform codes are 0); left may be right"]
    return []


def check_metaimage(path: Path) -> None:
    """Raise :class:`DataError` unless header and voxels of a MetaImage (.mha, .mhd) hold together."""
    fields: dict[str, str] = {}
    with open(path, "rb") as handle:
        for _ in range(256):
            key, separator, value = handle.readline(8192).decode("latin-1").partition("=")
            if not separator:
                break
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        missing = [key for key in ("NDims", "DimSize", "ElementDataFile") if key not in fields]
        if missing:
            raise DataError(f"{path}: not a MetaImage file ({missing[0]} is missing in its header); {_AGAIN}")
        if fields.get("CompressedData", "False").lower() != "true":
            return  # ITK itself notices when raw voxels are missing
        if fields["ElementDataFile"].upper() == "LOCAL":
            return _inflate(path, handle)
    _inflate_beside(path, fields["ElementDataFile"])


def check_nrrd(path: Path) -> None:
    """Raise :class:`DataError` if the gzip-compressed voxels of an NRRD (.nrrd, .nhdr) are damaged."""
    fields: dict[str, str] = {}
    with open(path, "rb") as handle:
        if handle.read(4) != b"NRRD":
            raise DataError(
                f"{path}: not an NRRD file despite its name; give it the suffix of its true format"
            )
        for line in iter(lambda: handle.readline(8192).strip(), b""):
            key, separator, value = line.decode("latin-1").partition(":")
            if separator:
                fields[key.strip().lower()] = value.strip()
        if fields.get("encoding", "").lower() not in ("gzip", "gz"):
            return
        voxels = fields.get("data file", fields.get("datafile"))
        if voxels is None:
            return _inflate(path, handle)
    if "%" not in voxels and voxels.split()[:1] != ["LIST"]:
        _inflate_beside(path, voxels)


def nonfinite_error(path: Path, count: int) -> DataError:
    """The error for NaN or infinite voxels."""
    return DataError(
        f"{path}: {count} voxels are NaN or infinite; replace them (with -1024 HU outside the patient)"
    )


def _nifti_header(path: Path, head: bytes) -> _NiftiHeader:
    if len(head) < 348:
        raise DataError(f"{path}: too short for a NIfTI file ({len(head)} bytes); {_AGAIN}")
    order = "<" if struct.unpack("<i", head[:4])[0] in (348, 540) else ">"
    version = struct.unpack(order + "i", head[:4])[0]
    if version == 348:
        dim = struct.unpack(order + "8h", head[40:56])
        kind, bits = struct.unpack(order + "2h", head[70:74])
        offset = struct.unpack(order + "f", head[108:112])[0]
        codes = struct.unpack(order + "2h", head[252:256])
        magic = head[344:347]
    elif version == 540 and len(head) >= 540:
        dim = struct.unpack(order + "8q", head[16:80])
        kind, bits = struct.unpack(order + "2h", head[12:16])
        offset = struct.unpack(order + "q", head[168:176])[0]
        codes = struct.unpack(order + "2i", head[344:352])
        magic = head[4:7]
    else:
        raise DataError(f"{path}: not a NIfTI file despite its name; {_RENAME}")
    if magic not in (b"n+1", b"n+2"):
        raise DataError(
            f"{path}: not a single-file NIfTI (header and voxels in one .nii or .nii.gz); convert it first"
        )
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]) or not 0 <= offset < 1 << 40:
        raise DataError(f"{path}: damaged NIfTI header (dimensions {list(dim)}, offset {offset}); {_AGAIN}")
    voxels = 1
    for n in dim[1 : dim[0] + 1]:
        voxels *= n
    # An extended header longer than what was read would put the voxels out of step: ITK's 0 for NaN then.
    countable = kind in _FLOATS and offset <= len(head)
    floats = np.dtype(order + _FLOATS[kind]) if countable else None
    return _NiftiHeader(int(offset), int(offset) + voxels * bits // 8, floats, any(codes))


def _count_bad(data: bytes, dtype: np.dtype | None) -> tuple[int, bytes]:
    """How many floats in ``data`` are not finite, and the bytes left over."""
    if dtype is None:
        return 0, b""
    whole = len(data) // dtype.itemsize
    values = np.frombuffer(data, dtype=dtype, count=whole)
    return whole - int(np.count_nonzero(np.isfinite(values))), data[whole * dtype.itemsize :]


def _decompressed(path: Path) -> Iterator[bytes]:
    """The content of a plain or gzip file in chunks, its checksum tested at the end."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with gzip.open(raw) if zipped else raw as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except EOFError as error:
            raise DataError(f"{path}: truncated, the gzip stream ends early; {_AGAIN}") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: damaged gzip data ({error}); {_AGAIN}") from error


def _inflate_beside(path: Path, name: str) -> None:
    voxels = path.parent / name
    if not voxels.is_file():
        raise DataError(f"{path}: its voxels are in {voxels.name}, which is missing; copy both files")
    with open(voxels, "rb") as handle:
        _inflate(voxels, handle)


def _inflate(path: Path, handle: BinaryIO) -> None:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        while not stream.eof and (chunk := handle.read(_CHUNK)):
            stream.decompress(chunk)
    except zlib.error as error:
        raise DataError(f"{path}: the compressed voxels are damaged ({error}); {_AGAIN}") from error
    if not stream.eof:
        raise DataError(f"{path}: truncated, the compressed voxels end early; {_AGAIN}")
