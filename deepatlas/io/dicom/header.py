"""The fields of a DICOM header that deciding what a file is, stacking it and decoding its pixels depend on."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray

from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.dicom.magic import is_zipped_dicom, starts_as_dicom
from deepatlas.io.dicom.values import FunctionalGroups, Plain, int_of, quiet, tag_of, text_of, values_of

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"
CT_CLASSES = (CT, ENHANCED_CT, LEGACY_ENHANCED_CT)
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
# Native transfer syntaxes; a file without meta information has none and is one of the first two.
NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN)
DIRECTORY = "1.2.840.10008.1.3.10"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATIONS = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
)

_AGAIN = "export it again from the archive (PACS)"
# A header that claims more frames is damaged, and reading it would exhaust the memory.
_MOST_FRAMES = 65536
_PIXEL_DATA = (0x7FE0, 0x0010)

# The elements that are read. All others are skipped, above all private elements and free text.
_TAGS = """
SOPClassUID SOPInstanceUID Modality PatientID PatientName StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
SeriesNumber SeriesDescription AcquisitionNumber AcquisitionTime AcquisitionDateTime TemporalPositionIdentifier
NominalPercentageOfCardiacPhase TriggerTime InstanceNumber ImageType Rows Columns PixelSpacing
ImageOrientationPatient ImagePositionPatient SliceThickness ConvolutionKernel ContrastBolusAgent KVP WindowWidth
SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation NumberOfFrames
RescaleSlope RescaleIntercept RescaleType LossyImageCompression PixelPaddingValue PixelPaddingRangeLimit
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ConcatenationUID InConcatenationTotalNumber
""".split()


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one image, RTSTRUCT or segmentation. Lengths are in mm, directions in LPS.

    A classic image has one frame. Texts may identify a patient and must not leave the intake.
    """

    sop_class: str
    sop_uid: str
    # TransferSyntaxUID.
    syntax: str
    modality: str
    patient: str
    study: str
    series: str
    frame: str
    number: int | None
    instance: int | None
    # Elements of the acquisition that may tell apart several images at one position (see scan.py).
    moments: tuple[str, ...]
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    # ConcatenationUID of a multi-frame image that was cut into several files, and the number of these files.
    concatenation: tuple[str, int]
    # Between columns and between rows, that is (x, y).
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    positions: NDArray[np.float64] | None  # [frames, 3]
    thickness: float | None
    kernel: str
    description: str
    contrast: bool
    kvp: float | None
    window: float | None
    samples: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    # Slope and intercept; NaN where the file gives none.
    rescale: NDArray[np.float64]  # [frames, 2]
    rescale_type: str
    # Lowest and highest stored value that mean "no pixel".
    padding: tuple[int, int] | None
    # The SeriesInstanceUIDs that an RTSTRUCT or a segmentation refers to.
    referenced: tuple[str, ...]
    # Whether the pixels were compressed with a loss at some time.
    lossy: bool
    # First byte of the value of PixelData, 0 if its place in the file is unknown (deflated, or no pixels).
    pixel_offset: int
    # Bytes of PixelData as declared (-1: undefined, for encapsulated pixels), and as the file holds them.
    pixel_length: int
    pixel_held: int
    # CRC-32 of the bytes before PixelData (of the whole file if ``pixel_offset`` is 0).
    checksum: int
    # Whether its decimal numbers were written with commas.
    commas: bool = False
    # What ``read_drawn`` of :func:`read_header` returned for an RTSTRUCT or a segmentation.
    drawn: Any = None

    @property
    def thicknesses(self) -> NDArray[np.float64]:
        """SliceThickness of every frame in mm, [frames]; NaN where it is not given."""
        return np.full(self.frames, np.nan if self.thickness is None else self.thickness)

    @property
    def hounsfield(self) -> bool:
        """Whether RescaleType is HU, or absent, as in most CT images."""
        return self.rescale_type.upper() in ("", "HU", "HU_MOD")

    @property
    def known_syntax(self) -> str:
        """The transfer syntax if it is one of the standard's (a damaged or private one may hold any text)."""
        return self.syntax if re.fullmatch(r"1\.2\.840\.10008\.1\.2[.0-9]*", self.syntax) else ""

    @property
    def is_multiframe(self) -> bool:
        return self.sop_class in CT_CLASSES[1:]

    @property
    def is_label_object(self) -> bool:
        """Whether it is an RTSTRUCT or a DICOM segmentation."""
        return self.sop_class == RTSTRUCT or self.sop_class in SEGMENTATIONS

    @property
    def is_native(self) -> bool:
        """Whether the pixels are neither encapsulated nor deflated, so that their number of bytes is known."""
        return not is_encapsulated(self.syntax) and self.syntax != DEFLATED

    @property
    def pixel_bytes(self) -> int:
        """Bytes that uncompressed pixels of this size and number of frames need."""
        return self.rows * self.columns * self.samples * self.frames * self.allocated // 8

    @property
    def surplus(self) -> int:
        """Bytes of uncompressed pixel data beyond what size and number of frames need."""
        need = self.pixel_bytes
        return max(self.pixel_length - need - need % 2, 0) if self.is_native else 0

    @property
    def complete(self) -> bool:
        """Whether the file is whole, as far as its length tells."""
        return self.syntax == DEFLATED or self.pixel_held >= (self.pixel_bytes if self.is_native else 1)


def read_header(found: Found, read_drawn: Callable[[Any, int], Any] | None = None) -> Header | Refusal | None:
    """Read the header of a file, opening the file once.

    Args:
        found: the file.
        read_drawn: called for an RTSTRUCT or a segmentation with its pydicom data set (without pixels) and the size
            of the file in bytes; the result becomes :attr:`Header.drawn`. It must not raise.

    Returns:
        The header; None if the file is not DICOM; a refusal if it is DICOM that cannot be part of an exam. The
        refusal quotes nothing of the file's text. What a file holds never makes this function raise.
    """
    try:
        with open(found.path, "rb") as handle:
            if is_zipped_dicom(handle):
                reason = "a DICOM file compressed with gzip, which is not read; unpack it (gunzip)"
                return Refusal(found.name, reason, zipped=True)
            if not starts_as_dicom(handle):
                return None
            return _read(found, handle, read_drawn)
    except _Useless as useless:
        return Refusal(found.name, str(useless), damaged=useless.damaged)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or 'input/output error'}); copy it again"
        return Refusal(found.name, reason, passing=True)
    except Exception:
        # pydicom raises whatever the damage leads to, and its text may quote the file.
        return Refusal(found.name, f"a DICOM file whose header is damaged; {_AGAIN}", damaged=True)


class _Useless(Exception):
    """DICOM that cannot be part of an exam; the text is the reason."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


def _read(found: Found, handle: BinaryIO, read_drawn: Callable[[Any, int], Any] | None) -> Header:
    with quiet():
        ds = pydicom.dcmread(
            handle, stop_before_pixels=True, force=True, specific_tags=[tag_of(k) for k in _TAGS]
        )
        meta = ds.file_meta
        pixels = _locate_pixels(handle, text_of(meta, "TransferSyntaxUID") == BIG_ENDIAN)
        sop_class = text_of(ds, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")
        modality = text_of(ds, "Modality")
        if sop_class == DIRECTORY:
            raise _Useless("a DICOMDIR, which is an index; the files that it lists are read themselves")
        if not sop_class and modality == "CT" and "Rows" in ds:
            sop_class = CT
        if not sop_class and not modality:
            raise _Useless(f"DICOM without SOPClassUID and Modality; {_AGAIN}")
        referenced: tuple[str, ...] = ()
        drawn = None
        if sop_class == RTSTRUCT or sop_class in SEGMENTATIONS:
            handle.seek(0)
            everything = pydicom.dcmread(handle, stop_before_pixels=True, force=True)
            referenced = _referenced(everything)
            if read_drawn is not None:
                drawn = read_drawn(everything, os.fstat(handle.fileno()).st_size)
        elif sop_class in CT_CLASSES and not _is_image(ds, sop_class):
            raise _Useless(f"{object_type(sop_class)} with a damaged header; {_AGAIN}", damaged=True)
        elif not _is_image(ds, sop_class):
            raise _Useless(f"{object_type(sop_class)}: not an image of the body")
        handle.seek(0)
        checksum = zlib.crc32(handle.read(pixels[0] or -1))
        return _header(found, ds, sop_class, modality, referenced, drawn, pixels, checksum)


def _header(
    found: Found,
    ds: Any,
    sop_class: str,
    modality: str,
    referenced: tuple[str, ...],
    drawn: Any,
    pixels: tuple[int, int, int],
    checksum: int,
) -> Header:
    folder = found.name.rpartition("/")[0]
    study = text_of(ds, "StudyInstanceUID") or f"folder:{folder}"
    number, frames = int_of(ds, "SeriesNumber"), max(int_of(ds, "NumberOfFrames") or 1, 1)
    if frames > _MOST_FRAMES:
        raise _Useless(f"it claims {frames} frames; {_AGAIN}")
    rows, columns = int_of(ds, "Rows") or 0, int_of(ds, "Columns") or 0
    allocated, stored = int_of(ds, "BitsAllocated") or 0, int_of(ds, "BitsStored") or 0
    high_bit, samples = int_of(ds, "HighBit"), int_of(ds, "SamplesPerPixel") or 1
    syntax = text_of(ds.file_meta, "TransferSyntaxUID")
    groups = FunctionalGroups(ds, frames) if sop_class in CT_CLASSES[1:] else Plain(ds)
    spacing, orientation = groups.numbers("PixelSpacing", 2), groups.numbers("ImageOrientationPatient", 6)
    signed = int_of(ds, "PixelRepresentation") == 1
    offset, length, held = pixels
    header = Header(
        sop_class=sop_class,
        sop_uid=text_of(ds, "SOPInstanceUID") or text_of(ds.file_meta, "MediaStorageSOPInstanceUID"),
        syntax=syntax,
        modality=modality,
        patient=text_of(ds, "PatientID") or text_of(ds, "PatientName"),
        study=study,
        series=text_of(ds, "SeriesInstanceUID") or f"{study}:{number}",
        frame=text_of(ds, "FrameOfReferenceUID"),
        number=number,
        instance=int_of(ds, "InstanceNumber"),
        moments=tuple(
            text_of(ds, key)
            for key in (
                "AcquisitionNumber",
                "TemporalPositionIdentifier",
                "NominalPercentageOfCardiacPhase",
                "TriggerTime",
                "AcquisitionDateTime",
                "AcquisitionTime",
            )
        ),
        image_type=tuple(str(v).upper() for v in values_of(ds, "ImageType")),
        rows=rows,
        columns=columns,
        frames=frames,
        concatenation=(text_of(ds, "ConcatenationUID"), int_of(ds, "InConcatenationTotalNumber") or 1),
        spacing=(spacing[0][1], spacing[0][0]) if spacing is not None and groups.same(spacing) else None,
        orientation=tuple(orientation[0])
        if orientation is not None and groups.same(orientation, 1e-4)
        else None,
        positions=groups.numbers("ImagePositionPatient", 3),
        thickness=groups.number("SliceThickness"),
        kernel=groups.text("ConvolutionKernel"),
        description=text_of(ds, "SeriesDescription"),
        contrast=bool(text_of(ds, "ContrastBolusAgent")),
        kvp=groups.number("KVP"),
        window=groups.number("WindowWidth"),
        samples=samples,
        photometric=text_of(ds, "PhotometricInterpretation"),
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=signed,
        rescale=groups.rescale(),
        rescale_type=groups.text("RescaleType"),
        padding=_padding(ds, signed, allocated),
        referenced=referenced,
        lossy=text_of(ds, "LossyImageCompression") == "01",
        pixel_offset=offset,
        pixel_length=length,
        pixel_held=held,
        checksum=checksum,
        drawn=drawn,
    )
    # Known when all numbers have been read.
    return replace(header, commas=groups.commas)


def _padding(ds: Any, signed: bool, allocated: int) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "no pixel".

    The value representation of the two elements is often the wrong one of US and SS, which is undone here.
    """
    ends = [
        v for key in ("PixelPaddingValue", "PixelPaddingRangeLimit") if (v := int_of(ds, key)) is not None
    ]
    if "PixelPaddingValue" not in ds or not ends or allocated not in (8, 16, 32):
        return None
    size = 1 << allocated
    wrapped = [v % size - (size if signed and v % size >= size // 2 else 0) for v in ends]
    return min(wrapped), max(wrapped)


def _locate_pixels(handle: BinaryIO, big_endian: bool) -> tuple[int, int, int]:
    """Offset and length of the value of PixelData, which begins here, and how many of its bytes the file holds.

    The length is the declared one, -1 if it is undefined. All three are 0 where no PixelData begins.
    """
    start = handle.tell()
    head = handle.read(12)
    order: Literal["big", "little"] = "big" if big_endian else "little"
    if len(head) < 12 or (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) != _PIXEL_DATA:
        return 0, 0, 0
    explicit = head[4:6] in (b"OW", b"OB")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    offset = start + (12 if explicit else 8)
    held = max(handle.seek(0, os.SEEK_END) - offset, 0)
    return offset, -1 if length == 0xFFFFFFFF else length, held


def is_encapsulated(syntax: str) -> bool:
    """Whether a transfer syntax encapsulates the pixels, so that their number of bytes tells nothing."""
    return syntax.startswith("1.2.840.10008.1.2.4.") or syntax == "1.2.840.10008.1.2.5"


def _is_image(ds: Any, sop_class: str) -> bool:
    # Of the objects of radiotherapy (doses, plans, beams …) only RT Image is an image.
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.481"):
        return sop_class == "1.2.840.10008.5.1.4.1.1.481.1"
    return bool(int_of(ds, "Rows") and int_of(ds, "Columns"))


def object_type(sop_class: str) -> str:
    """The kind of a DICOM object in the words of the standard: "CT Image", "Comprehensive SR" …"""
    with quiet():
        name = str(pydicom.uid.UID(sop_class).name)
    return name.removesuffix(" Storage") if name != sop_class else "object of unknown type"


def _referenced(ds: Any) -> tuple[str, ...]:
    """The SeriesInstanceUIDs anywhere below the references of an RTSTRUCT or a segmentation."""
    found = []
    for keyword in ("ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence"):
        for item in values_of(ds, keyword):
            found += [str(e.value) for e in item.iterall() if e.keyword == "SeriesInstanceUID" and e.value]
            if keyword == "ReferencedSeriesSequence" and (own := text_of(item, "SeriesInstanceUID")):
                found.append(own)
    return tuple(dict.fromkeys(found))
