"""Hounsfield units of single DICOM files, decoded by the GDCM inside SimpleITK.

GDCM decodes every transfer syntax in use, but what it hands out is not always what the header means: it inverts the
pixels of MONOCHROME1 (which only says how an image is shown), applies the first frame's rescale to all frames of an
enhanced image and none at all to a converted one, takes a slope of 0 for 1, and ignores a HighBit that is not
BitsStored - 1. So plain, uncompressed CT images are read as they are, and of the others GDCM sees the pixels alone, in
a file that leaves it nothing to interpret; the rescale is then done here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.dicom.codestream import check_codestream
from deepatlas.io.dicom.header import BIG_ENDIAN, CT, DEFLATED, Header, is_encapsulated
from deepatlas.io.dicom.values import pydicom_module, quiet
from deepatlas.io.itk import simpleitk
from deepatlas.space.constants import AIR

_BELOW_TISSUE, _ABOVE_TISSUE = -900.0, 3071.0  # HU; a padding value outside this range hides no tissue
_MULTIFRAME_WORDS = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture
_AGAIN = "copy or export it again"


@dataclass
class Pixels:
    """Frames [F, rows, columns] in float32 HU, and what was done to them."""

    hu: NDArray[np.float32]
    padded: int = 0  # pixels that were padding and are air now
    doubtful_padding: bool = False  # PixelPaddingValue lies among tissue and was left alone


def read_pixels(header: Header) -> Pixels:
    """Decode one file.

    Without RescaleSlope and RescaleIntercept the stored values are returned; whether those are Hounsfield units is
    for the caller to judge.

    Raises :class:`~deepatlas.errors.DataError` (one line without names) for pixels that cannot be decoded, are in
    colour or cut short, or whose header contradicts itself.
    """
    _check(header)
    slopes = np.where(np.isnan(header.rescale[:, 0]), 1.0, header.rescale[:, 0])
    intercepts = np.where(np.isnan(header.rescale[:, 1]), 0.0, header.rescale[:, 1])
    plain = (
        header.sop_class == CT
        and header.frames == 1
        and header.photometric == "MONOCHROME2"
        and header.high_bit == header.stored - 1
        and not is_encapsulated(header.syntax)
        and header.syntax != DEFLATED  # GDCM reads a damaged stream without a word
        and np.isfinite(header.rescale).all()
    )
    values = _by_gdcm(header.found.path) if plain else _stored(header)
    if values.shape != (header.frames, header.rows, header.columns):
        raise DataError(
            f"its pixels decode to {values.shape} (frames, rows, columns), but its header says "
            f"{(header.frames, header.rows, header.columns)}; {_AGAIN}"
        )
    hu = np.empty(values.shape, dtype=np.float32)
    for k in range(header.frames):
        hu[k] = values[k] if plain else values[k] * slopes[k] + intercepts[k]
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


def _by_gdcm(path: Path) -> NDArray[Any]:
    sitk = simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError:  # its text holds the path
        _read_through(path)
        raise DataError(
            f"its pixels cannot be decoded (damaged, or a transfer syntax unknown to GDCM); {_AGAIN}"
        ) from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError("its pixels are in colour, not Hounsfield units; choose an original series")
    values = sitk.GetArrayFromImage(image)
    return values.reshape(-1, *values.shape[-2:])


def _read_through(path: Path) -> None:
    """Raise :class:`DataError` if the disk does not hand out the file, which GDCM does not tell from damage."""
    try:
        with open(path, "rb") as handle:
            while handle.read(1 << 20):
                pass
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or 'input/output error'}); {_AGAIN}") from error


def _stored(header: Header) -> NDArray[Any]:
    """Stored values, decoded from a copy of the pixels with no more header than decoding needs."""
    pydicom = pydicom_module()
    with quiet():
        try:
            source = pydicom.dcmread(header.found.path, force=True)
            element = source["PixelData"]
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or 'input/output error'}); {_AGAIN}") from error
        except Exception:
            raise DataError(f"its pixels cannot be found; {_AGAIN}") from None
        syntax = header.syntax or pydicom.uid.ImplicitVRLittleEndian
        need = header.frames * header.rows * header.columns * header.allocated // 8
        if syntax == DEFLATED and not need <= len(element.value) <= need + 1:
            raise DataError(f"PixelData holds {len(element.value)} of {need} bytes; {_AGAIN}")
        bare = pydicom.Dataset()
        bare.file_meta = pydicom.dataset.FileMetaDataset()
        bare.file_meta.TransferSyntaxUID = (
            pydicom.uid.ExplicitVRLittleEndian if syntax == DEFLATED else syntax
        )
        bare.SOPClassUID = _MULTIFRAME_WORDS
        bare.SOPInstanceUID = "2.25.1"
        bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
        bare.NumberOfFrames, bare.Rows, bare.Columns = header.frames, header.rows, header.columns
        bare.BitsAllocated, bare.BitsStored = header.allocated, header.stored
        bare.HighBit, bare.PixelRepresentation = header.stored - 1, int(header.signed)
        if header.high_bit != header.stored - 1:
            bare.PixelData = _shifted(header, element.value)
        else:
            bare.PixelData = element.value
        encapsulated = is_encapsulated(syntax)
        if encapsulated:
            check_codestream(
                element.value, syntax, header.frames, header.rows, header.columns, header.allocated
            )
        bare["PixelData"].VR = "OB" if encapsulated or header.allocated == 8 else "OW"
        bare["PixelData"].is_undefined_length = encapsulated
        with tempfile.TemporaryDirectory(prefix="deepatlas-") as folder:
            path = Path(folder) / "pixels.dcm"
            try:
                bare.save_as(path, enforce_file_format=True)
            except OSError as error:
                raise DataError(
                    f"no room to decode its pixels in the temporary folder ({error.strerror}); free space"
                ) from error
            except ValueError:  # pydicom does not know the transfer syntax
                raise DataError(
                    f"its pixels cannot be decoded (damaged, or an unknown transfer syntax); {_AGAIN}"
                ) from None
            return _by_gdcm(path)


def _shifted(header: Header, data: bytes) -> bytes:
    """The pixels moved down to the lowest bits, whence every decoder takes them."""
    if is_encapsulated(header.syntax):
        raise DataError(
            f"HighBit {header.high_bit} with BitsStored {header.stored} in compressed pixels is read differently by "
            "every program; export it uncompressed"
        )
    order = ">" if header.syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}u{header.allocated // 8}")
    cells = np.frombuffer(data, dtype=dtype) >> (header.high_bit + 1 - header.stored)
    return cells.astype(dtype).tobytes()


def _without_padding(header: Header, hu: NDArray[np.float32], slopes: NDArray, intercepts: NDArray) -> Pixels:
    """Padding becomes air; padding whose value lies among tissue only where it fills the corners of the image."""
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
