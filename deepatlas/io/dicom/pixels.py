"""Hounsfield units of single DICOM files.

Native (uncompressed) pixels are taken from the bytes of the file. Encapsulated ones are decoded by the GDCM inside
SimpleITK, which reads every transfer syntax in use, but does not always interpret the header as the standard means it:
it inverts MONOCHROME1 (which only says how an image is displayed), applies the rescale of the first frame to all frames
of an enhanced image and no rescale to a converted one, takes a slope of 0 for 1, and ignores a HighBit other than
BitsStored - 1. GDCM is therefore given the pixels alone, in a file that leaves nothing to interpret, and the rescale is
applied here.
"""

from __future__ import annotations

import io
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from deepatlas.errors import DataError, PassingError
from deepatlas.files import create_private
from deepatlas.io.dicom.codestream import check_codestream
from deepatlas.io.dicom.header import BIG_ENDIAN, NATIVE, Header, is_encapsulated
from deepatlas.io.dicom.values import quiet
from deepatlas.io.itk import itk_reads, simpleitk
from deepatlas.space.constants import AIR

# A padding value outside this range (HU) hides no tissue.
_BELOW_TISSUE, _ABOVE_TISSUE = -900.0, 3071.0
# Multi-frame Grayscale Word Secondary Capture, an object without a rescale.
_MULTIFRAME_WORDS = "1.2.840.10008.5.1.4.1.1.7.3"
_AGAIN = "copy or export it again"


@dataclass
class Pixels:
    """The frames of a file in Hounsfield units, and what was done to them."""

    hu: NDArray[np.float32]  # [frames, rows, columns]
    # Number of padding pixels that were set to air.
    padded: int = 0
    # PixelPaddingValue lies among the values of tissue, and its pixels were left as they are.
    doubtful_padding: bool = False


def read_pixels(path: Path, header: Header) -> Pixels:
    """Decode the pixels of a file whose header was read before, opening the file once.

    Without RescaleSlope and RescaleIntercept the stored values are returned; the caller decides whether these are
    Hounsfield units.

    Raises:
        DataError: one line without identifiers, for pixels that cannot be decoded, are in colour or cut short, or
            whose header contradicts itself.
        PassingError: the file cannot be read now, or its header is not the one that was read before.
    """
    _check(header)
    data = _bytes_of(path, header)
    values = _native(data, header) if header.is_native else _decoded(data, header)
    if values.shape != (header.frames, header.rows, header.columns):
        raise DataError(
            f"its pixels decode to {values.shape} (frames, rows, columns), but its header says "
            f"{(header.frames, header.rows, header.columns)}; {_AGAIN}"
        )
    slopes = np.where(np.isnan(header.rescale[:, 0]), 1.0, header.rescale[:, 0])
    intercepts = np.where(np.isnan(header.rescale[:, 1]), 0.0, header.rescale[:, 1])
    hu = np.empty(values.shape, dtype=np.float32)
    for k in range(header.frames):
        hu[k] = values[k] * slopes[k] + intercepts[k]
    if not np.isfinite(hu).all():
        raise DataError(f"its pixels are not finite numbers; {_AGAIN}")
    return _without_padding(header, hu, slopes, intercepts)


def _check(header: Header) -> None:
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        raise DataError("its pixels are in colour, not Hounsfield units; choose an original series")
    if header.allocated not in (8, 16, 32) or not 1 <= header.stored <= header.allocated:
        raise DataError(f"BitsStored {header.stored} does not fit BitsAllocated {header.allocated}; {_AGAIN}")
    if not header.stored - 1 <= header.high_bit < header.allocated:
        raise DataError(f"HighBit {header.high_bit} does not fit BitsStored {header.stored}; {_AGAIN}")
    if not header.hounsfield:
        raise DataError("RescaleType is not HU: its values are no Hounsfield units; choose another series")
    if (header.rescale[:, 0] == 0).any():
        raise DataError(f"RescaleSlope is 0, so its Hounsfield units are lost; {_AGAIN}")
    if not header.complete:
        raise DataError(f"the file is cut short; {_AGAIN}")
    if header.surplus > 0:
        raise DataError(
            f"PixelData holds {header.surplus} bytes more than {header.frames} frames of {header.rows} x "
            f"{header.columns} pixels; {_AGAIN}"
        )


def _bytes_of(path: Path, header: Header) -> bytes:
    """All bytes of the file, whose header must be the one that was read before."""
    try:
        with open(path, "rb") as handle:
            data = handle.read()
    except OSError as error:
        reason = error.strerror or "input/output error"
        raise PassingError(f"cannot be read ({reason}); {_AGAIN}") from error
    if zlib.crc32(memoryview(data)[: header.pixel_offset or None]) != header.checksum:
        raise PassingError("the file changed after its header was read; run again when nobody writes to it")
    return data


def _native(data: bytes, header: Header) -> NDArray[Any]:
    """The stored values of native pixels."""
    if header.syntax not in NATIVE:
        raise DataError(f"its pixels cannot be decoded (damaged, or an unknown transfer syntax); {_AGAIN}")
    need = header.pixel_bytes
    if header.pixel_length < need or len(data) < header.pixel_offset + need:
        there = min(header.pixel_length, len(data) - header.pixel_offset)
        raise DataError(f"PixelData holds {max(there, 0)} of {need} bytes; {_AGAIN}")
    return _values(memoryview(data)[header.pixel_offset : header.pixel_offset + need], header)


def _values(cells: bytes | memoryview, header: Header) -> NDArray[Any]:
    """The stored values [frames, rows, columns] of cells: their BitsStored bits up to HighBit, signed or not."""
    size = header.allocated // 8
    order = ">" if header.syntax == BIG_ENDIAN else "<"
    values = np.frombuffer(cells, dtype=f"{order}{'i' if header.signed else 'u'}{size}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if header.stored < header.allocated:
        # Shifting to the left drops what lies above HighBit (an overlay, say), and back to the right extends the sign.
        values = values << (header.allocated - 1 - header.high_bit) >> (header.allocated - header.stored)
    return values.reshape(header.frames, header.rows, header.columns)


def _decoded(data: bytes, header: Header) -> NDArray[Any]:
    """The stored values of deflated or encapsulated pixels."""
    with quiet():
        try:
            value = pydicom.dcmread(io.BytesIO(data), force=True)["PixelData"].value
        except Exception:
            raise DataError(f"its pixels cannot be found; {_AGAIN}") from None
    if is_encapsulated(header.syntax):
        return _by_gdcm(value, header)
    need = header.pixel_bytes
    if not need <= len(value) <= need + 1:
        raise DataError(f"PixelData holds {len(value)} of {need} bytes; {_AGAIN}")
    return _values(value[:need], header)


def _by_gdcm(value: bytes, header: Header) -> NDArray[Any]:
    """The stored values of encapsulated pixels, decoded from a file with no more header than decoding needs."""
    if header.high_bit != header.stored - 1:
        raise DataError(
            f"HighBit {header.high_bit} with BitsStored {header.stored} in compressed pixels is read differently by "
            "every program; export it uncompressed"
        )
    check_codestream(value, header.syntax, header.frames, header.rows, header.columns, header.allocated)
    bare = pydicom.Dataset()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = pydicom.uid.UID(header.syntax)
    bare.SOPClassUID, bare.SOPInstanceUID = _MULTIFRAME_WORDS, "2.25.1"
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.NumberOfFrames, bare.Rows, bare.Columns = header.frames, header.rows, header.columns
    bare.BitsAllocated, bare.BitsStored = header.allocated, header.stored
    bare.HighBit, bare.PixelRepresentation = header.stored - 1, int(header.signed)
    bare.PixelData = value
    bare["PixelData"].VR = "OB"
    bare["PixelData"].is_undefined_length = True
    with quiet(), tempfile.TemporaryDirectory(prefix="deepatlas-") as folder:
        path = Path(folder) / "pixels.dcm"
        try:
            create_private(path)
            bare.save_as(path, enforce_file_format=True)
        except OSError as error:
            raise PassingError(
                f"no room to decode its pixels in the temporary folder ({error.strerror}); free space"
            ) from error
        except ValueError:
            # pydicom does not know the transfer syntax.
            raise DataError(
                f"its pixels cannot be decoded (damaged, or an unknown transfer syntax); {_AGAIN}"
            ) from None
        return _read_by_gdcm(path)


def _read_by_gdcm(path: Path) -> NDArray[Any]:
    sitk = simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    try:
        with itk_reads(path, ".dcm") as name:
            reader.SetFileName(name)
            image = reader.Execute()
    except RuntimeError:
        # The text of the error holds the path.
        raise DataError(
            f"its pixels cannot be decoded (damaged, or a transfer syntax unknown to GDCM); {_AGAIN}"
        ) from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError("its pixels are in colour, not Hounsfield units; choose an original series")
    values = sitk.GetArrayFromImage(image)
    return values.reshape(-1, *values.shape[-2:])


def _without_padding(header: Header, hu: NDArray[np.float32], slopes: NDArray, intercepts: NDArray) -> Pixels:
    """Turn padding into air. A padding value among those of tissue counts only if it fills the image's corners."""
    if header.padding is None:
        return Pixels(hu)
    padded, doubtful = 0, False
    for k in range(header.frames):
        low, high = sorted(v * slopes[k] + intercepts[k] for v in header.padding)
        half = abs(slopes[k]) / 2
        mask = (hu[k] > low - half) & (hu[k] < high + half)
        if high > _BELOW_TISSUE and low < _ABOVE_TISSUE and mask.any():
            if not mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
                doubtful = True
                continue
        padded += int(np.count_nonzero(mask))
        hu[k][mask] = AIR
    return Pixels(hu, padded, doubtful)
