"""What an intake needs to know of a DICOM file, from its header alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.dicom.series import Found, Refusal
from deepatlas.io.dicom.values import (
    FunctionalGroups,
    Plain,
    int_of,
    pydicom_module,
    quiet,
    tag_of,
    text_of,
    values_of,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"
CT_CLASSES = (CT, ENHANCED_CT, LEGACY_ENHANCED_CT)
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
DIRECTORY = "1.2.840.10008.1.3.10"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATIONS = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
)

_AGAIN = "export it again from the archive (PACS)"
_MOST_FRAMES = 65536  # more are damage, and would ask for memory

# Read in one pass; everything else is skipped, private tags and free text first of all.
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
    """One image (or RTSTRUCT, or segmentation) as its header tells it. Lengths in mm, directions in LPS.

    ``positions`` is [frames, 3], ``rescale`` [frames, 2] (slope and intercept; NaN where the file gives none); a
    classic image has one frame. ``spacing`` is (between columns, between rows), that is (x, y). Texts may identify
    a patient and stay inside the intake.
    """

    found: Found
    sop_class: str
    sop_uid: str
    syntax: str
    modality: str
    patient: str
    study: str
    series: str
    frame: str
    number: int | None
    instance: int | None
    moments: tuple[str, ...]  # what may tell apart images of one place, see scan
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    concatenation: tuple[
        str, int
    ]  # ConcatenationUID of an enhanced image in several files, and how many they are
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    positions: NDArray[np.float64] | None
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
    rescale: NDArray[np.float64]
    rescale_type: str
    padding: tuple[int, int] | None
    referenced: tuple[str, ...]  # SeriesInstanceUIDs that an RTSTRUCT or a segmentation refers to
    lossy: bool  # compressed with a loss at some time
    surplus: int  # bytes of uncompressed pixel data beyond what size and number of frames ask for
    complete: bool  # as far as the length of the file tells

    @property
    def is_ct(self) -> bool:
        return self.modality == "CT" and self.sop_class in CT_CLASSES

    @property
    def thicknesses(self) -> NDArray[np.float64]:
        """SliceThickness of every frame in mm, [frames]; NaN where it is not given."""
        return np.full(self.frames, np.nan if self.thickness is None else self.thickness)

    @property
    def hounsfield(self) -> bool:
        """Whether RescaleType is HU, or not given as in most CT images."""
        return self.rescale_type.upper() in ("", "HU", "HU_MOD")

    @property
    def known_syntax(self) -> str:
        """The transfer syntax if it is one of the standard's (a damaged or private one may hold anything)."""
        return self.syntax if re.fullmatch(r"1\.2\.840\.10008\.1\.2[.0-9]*", self.syntax) else ""

    @property
    def is_multiframe(self) -> bool:
        return self.sop_class in CT_CLASSES[1:]


def read_header(found: Found) -> Header | Refusal | None:
    """The header of a file: None if it is no DICOM, a refusal if it is DICOM that an intake has no use for.

    The refusal's reason holds nothing of the file's text. Never raises for what a file holds.
    """
    try:
        with open(found.path, "rb") as handle:
            start = _start(handle)
            if start is None:
                return None
            return _read(found, handle)
    except _Useless as useless:
        return Refusal(found.name, str(useless))
    except OSError as error:
        return Refusal(
            found.name,
            f"cannot be read ({error.strerror or 'input/output error'}); copy it again",
            passing=True,
        )
    except DataError:
        raise
    except Exception:  # pydicom raises whatever the damage leads to; its text may quote the file
        return Refusal(found.name, f"a DICOM file whose header is damaged; {_AGAIN}")


class _Useless(Exception):
    """DICOM without a place in a dataset; the text is the reason."""


def looks_like_dicom(path: str | Path) -> bool:
    """Whether a file starts as DICOM does, with or without the preamble."""
    try:
        with open(path, "rb") as handle:
            return _start(handle) is not None
    except OSError:
        return False


def _start(handle: BinaryIO) -> int | None:
    """Where the data set begins (file meta information included), or None; rewinds the file."""
    head = handle.read(140)
    handle.seek(0)
    if head[128:132] == b"DICM":
        return 132
    group, element = int.from_bytes(head[0:2], "little"), int.from_bytes(head[2:4], "little")
    if len(head) < 132 or group not in (0x0002, 0x0008) or element > 0x0100:
        return None
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return 0 if explicit or length <= 1024 else None


def _read(found: Found, handle: BinaryIO) -> Header:
    pydicom = pydicom_module()
    with quiet():
        ds = pydicom.dcmread(
            handle, stop_before_pixels=True, force=True, specific_tags=[tag_of(k) for k in _TAGS]
        )
        meta = ds.file_meta
        declared, held = _pixel_bytes(handle, text_of(meta, "TransferSyntaxUID") == BIG_ENDIAN)
        sop_class = text_of(ds, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")
        modality = text_of(ds, "Modality")
        if sop_class == DIRECTORY:
            raise _Useless("a DICOMDIR: an index, whose files are read themselves")
        if not sop_class and modality == "CT" and "Rows" in ds:
            sop_class = CT
        if not sop_class and not modality:
            raise _Useless(f"DICOM without SOPClassUID and Modality; {_AGAIN}")
        referenced: tuple[str, ...] = ()
        if sop_class == RTSTRUCT or sop_class in SEGMENTATIONS:
            referenced = _referenced(pydicom.dcmread(found.path, stop_before_pixels=True, force=True))
        elif sop_class in CT_CLASSES and not _is_image(ds, sop_class):
            raise _Useless(f"{object_type(sop_class)} with a damaged header; {_AGAIN}")
        elif not _is_image(ds, sop_class):
            raise _Useless(f"{object_type(sop_class)}: not an image of the body")
        return _header(found, ds, sop_class, modality, referenced, declared, held)


def _header(
    found: Found,
    ds: Any,
    sop_class: str,
    modality: str,
    referenced: tuple[str, ...],
    declared: int,
    held: int,
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
    native = not is_encapsulated(syntax) and syntax != DEFLATED
    need = rows * columns * samples * frames * allocated // 8
    return Header(
        found=found,
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
        surplus=max(declared - need - need % 2, 0) if native else 0,
        complete=syntax == DEFLATED or held >= (need if native else 1),
    )


def _padding(ds: Any, signed: bool, allocated: int) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "no pixel". The two tags' type is often the wrong one of US and SS."""
    ends = [
        v for key in ("PixelPaddingValue", "PixelPaddingRangeLimit") if (v := int_of(ds, key)) is not None
    ]
    if "PixelPaddingValue" not in ds or not ends or allocated not in (8, 16, 32):
        return None
    size = 1 << allocated
    wrapped = [v % size - (size if signed and v % size >= size // 2 else 0) for v in ends]
    return min(wrapped), max(wrapped)


def _pixel_bytes(handle: BinaryIO, big_endian: bool) -> tuple[int, int]:
    """Length of the pixel data that starts here: as declared (-1: not declared), and what the file holds of it."""
    head = handle.read(12)
    order = "big" if big_endian else "little"
    explicit = head[4:6] in (b"OW", b"OB")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    start = handle.tell() - (0 if explicit else 4)
    here = max(handle.seek(0, 2) - start, 0) if len(head) == 12 else 0
    return (-1 if length == 0xFFFFFFFF else length), here


def is_encapsulated(syntax: str) -> bool:
    """Whether the pixels are encapsulated, so that their length says nothing."""
    return syntax.startswith("1.2.840.10008.1.2.4.") or syntax == "1.2.840.10008.1.2.5"


def _is_image(ds: Any, sop_class: str) -> bool:
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.481"):  # dose, plan and beam objects of radiotherapy
        return sop_class == "1.2.840.10008.5.1.4.1.1.481.1"
    return bool(int_of(ds, "Rows") and int_of(ds, "Columns"))


def object_type(sop_class: str) -> str:
    """What kind of object it is, in words of the standard alone: "CT Image", "Comprehensive SR" …"""
    with quiet():
        name = str(pydicom_module().uid.UID(sop_class).name)
    return name.removesuffix(" Storage") if name != sop_class else "object of unknown type"


def _referenced(ds: Any) -> tuple[str, ...]:
    """SeriesInstanceUIDs named anywhere below the references of an RTSTRUCT or a segmentation."""
    found = []
    for keyword in ("ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence"):
        for item in values_of(ds, keyword):
            found += [str(e.value) for e in item.iterall() if e.keyword == "SeriesInstanceUID" and e.value]
            if keyword == "ReferencedSeriesSequence" and (own := text_of(item, "SeriesInstanceUID")):
                found.append(own)
    return tuple(dict.fromkeys(found))
