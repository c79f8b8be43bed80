"""Synthetic DICOM: a CT written as a series, with the traps of real ones, and the other objects of a study.

The geometry of a voxel array is the plain RAS affine of nibabel, so that a test can compare positions with
``affine @ (x, y, z, 1)``. It may be oblique, flipped, left-handed or sheared (a tilted gantry).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    ComprehensiveSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

PATIENT = {"PatientID": "PAT-0001", "PatientName": "Doe^Jane", "PatientBirthDate": "19500102"}
COMPRESSED = (RLELossless, JPEGLSLossless, JPEGLosslessSV1, JPEG2000Lossless)


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def tilted(affine: ArrayLike, degrees: float) -> NDArray[np.float64]:
    """``affine`` with its slices shifted along the image's y axis, as a gantry tilted by ``degrees`` writes them.

    The distance between the slices' planes stays; each lies further along y by ``tan(degrees)`` times it.
    """
    affine = np.array(affine, dtype=np.float64)
    y = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    affine[:3, 2] += np.tan(np.radians(degrees)) * np.linalg.norm(affine[:3, 2]) * y
    return affine


def lps(affine: ArrayLike) -> NDArray[np.float64]:
    """The affine to DICOM's patient coordinates (x to the left, y to the back) of one to RAS, and back."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)


def base(
    sop_class: str, study: str, series: str, instance: str, tags: dict[str, Any] | None = None, **more: Any
) -> Dataset:
    """The elements of every object of a study. ``tags`` (keyword: value) win; None removes an element."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, instance
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200304", "101112", "S1", "A-4711"
    ds.Modality = "CT"
    return set_tags(ds, {**PATIENT, **more, **(tags or {})})


def set_tags(ds: Dataset, tags: dict[str, Any]) -> Dataset:
    for keyword, value in tags.items():
        if value is None:
            if keyword in ds:
                del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def write_ct(
    folder: Path,
    hu: ArrayLike,
    affine: ArrayLike,
    *,
    study: str | None = None,
    series: str | None = None,
    frame: str | None = None,
    number: int = 2,
    tags: dict[str, Any] | None = None,
    slice_tags: dict[int, dict[str, Any]] | None = None,
    tilt: float = 0.0,
    drop: Sequence[int] = (),
    duplicate: Sequence[int] = (),
    moves: dict[int, Sequence[float]] | None = None,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    signed: bool = False,
    bits: int = 16,
    high_bit: int | None = None,
    padding: int | None = None,
    inverted: bool = False,
    multiframe: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    preamble: bool = True,
    name: str = "IM{:04d}.dcm",
    shuffle: int | None = 0,
) -> list[Path]:
    """Write a CT as a DICOM series; return the files in the order of their slices (duplicates last).

    Args:
        folder: made if missing.
        hu: Hounsfield units (z, y, x); stored as ``round((hu - intercept) / slope)``.
        affine: 4x4, voxel (x, y, z) to RAS mm; slice k lies at its column 2 times k.
        study, series, frame: UIDs; by default made from the folder's path and ``number``.
        number: SeriesNumber.
        tags: for every file, keyword: value (None removes the element).
        slice_tags: the same for single slices, ``{slice: {keyword: value}}``; not for multi-frame.
        tilt: gantry tilt in degrees; shears ``affine`` with :func:`tilted`.
        drop, duplicate: slices left out; slices written once more under another SOPInstanceUID.
        moves: ``{slice: (x, y, z)}`` in RAS mm, added to that slice's position.
        slope, intercept: of the rescale; one for all or one for each slice.
        signed, bits, high_bit: PixelRepresentation, BitsStored and HighBit (default bits - 1) of 16 allocated.
        padding: PixelPaddingValue (stored); where ``hu`` is NaN that value is stored.
        inverted: PhotometricInterpretation MONOCHROME1, which changes how it is shown and not what it holds.
        multiframe: one Enhanced CT object instead of a file for each slice.
        syntax: transfer syntax; see ``COMPRESSED`` for those that need an encoder.
        preamble: False writes the bare data set without preamble and file meta information.
        name: of the files, given a number; by default the numbers are shuffled (``shuffle`` is the seed; None: in
            order), so that neither the order of the files nor InstanceNumber is that of the slices.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hu = np.asarray(hu, dtype=np.float64)
    count = len(hu)
    affine = lps(tilted(affine, tilt) if tilt else affine)
    study, series = study or uid(folder, "study"), series or uid(folder, number, "series")
    frame = frame or uid(study, "frame")
    slopes, intercepts = np.broadcast_to(slope, count), np.broadcast_to(intercept, count)
    high_bit = bits - 1 if high_bit is None else high_bit
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    normal = np.cross(affine[:3, 0] / spacing[0], affine[:3, 1] / spacing[1])
    common = {
        "FrameOfReferenceUID": frame,
        "SeriesNumber": number,
        "SeriesDescription": "Body 3.0 B30f",
        "BodyPartExamined": "CHEST",
        "Manufacturer": "Maker",
        "KVP": 120,
        "ConvolutionKernel": "B30f",
        "GantryDetectorTilt": tilt,
        "PatientPosition": "HFS",
        "SliceThickness": _number(abs(affine[:3, 2] @ normal)),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2",
        "Rows": hu.shape[1],
        "Columns": hu.shape[2],
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": high_bit,
        "PixelRepresentation": int(signed),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    if padding is not None:
        common["PixelPaddingValue"] = padding
    positions = np.array([affine[:3, 3] + k * affine[:3, 2] for k in range(count)])
    for k, move in (moves or {}).items():
        positions[k] += np.asarray(move) * (-1, -1, 1)
    stored = np.stack(
        [_stored(hu[k], slopes[k], intercepts[k], signed, bits, high_bit, padding) for k in range(count)]
    )
    measures = {"PixelSpacing": [_number(spacing[1]), _number(spacing[0])]}
    orientation = [_number(v) for v in [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])]]
    jobs = [k for k in range(count) if k not in set(drop)] + list(duplicate)
    if multiframe:
        ds = base(EnhancedCTImageStorage, study, series, uid(series, "enhanced"), common)
        for keyword in ("SliceThickness", "GantryDetectorTilt", "KVP", "ConvolutionKernel"):
            del ds[keyword]
        shared = Dataset()
        shared.PixelMeasuresSequence = [
            set_tags(Dataset(), {**measures, "SliceThickness": common["SliceThickness"]})
        ]
        shared.PlaneOrientationSequence = [set_tags(Dataset(), {"ImageOrientationPatient": orientation})]
        shared.CTReconstructionSequence = [set_tags(Dataset(), {"ConvolutionKernel": "B30f"})]
        ds.SharedFunctionalGroupsSequence = [shared]
        order = list(np.random.default_rng(shuffle).permutation(jobs)) if shuffle is not None else jobs
        ds.PerFrameFunctionalGroupsSequence = [
            _frame(positions[k], slopes[k], intercepts[k], index) for index, k in enumerate(order, 1)
        ]
        ds.NumberOfFrames = len(order)
        _pixels(ds, stored[order], syntax)
        set_tags(ds, tags or {})
        return [_save(ds, folder / name.format(1), preamble)]
    numbers = np.arange(1, len(jobs) + 1)
    if shuffle is not None:
        numbers = np.random.default_rng(shuffle).permutation(numbers)
    paths = []
    for place, k in enumerate(jobs):
        own = {
            **measures,
            "ImageOrientationPatient": orientation,
            "ImagePositionPatient": [_number(v) for v in positions[k]],
            # A trap: no reader may rely on it.
            "SliceLocation": _number(-1000.0 + float(numbers[place])),
            "RescaleSlope": _number(slopes[k]),
            "RescaleIntercept": _number(intercepts[k]),
            "RescaleType": "HU",
            "InstanceNumber": int(numbers[place]),
            "AcquisitionNumber": 1,
        }
        ds = base(CTImageStorage, study, series, uid(series, place), common)
        _pixels(set_tags(ds, own), stored[k : k + 1], syntax)
        set_tags(ds, {**(tags or {}), **(slice_tags or {}).get(k, {})})
        paths.append(_save(ds, folder / name.format(int(numbers[place])), preamble))
    return paths


def write_capture(path: Path, study: str, number: int = 99, tags: dict[str, Any] | None = None) -> Path:
    """A colour secondary capture (a screenshot) of the study."""
    series = uid(study, number)
    ds = base(SecondaryCaptureImageStorage, study, series, uid(series, path.name), {"Modality": "OT"})
    ds.SeriesNumber, ds.ImageType, ds.ConversionType = number, ["DERIVED", "SECONDARY"], "WSD"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 8, 8, 3, "RGB"
    ds.PlanarConfiguration, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        0,
        8,
        8,
        7,
        0,
    )
    ds.PixelData = bytes(8 * 8 * 3)
    return _save(set_tags(ds, tags or {}), path, True)


def write_report(path: Path, study: str, number: int = 501, tags: dict[str, Any] | None = None) -> Path:
    """A structured report (as a radiation dose report): no pixels."""
    series = uid(study, number)
    ds = base(ComprehensiveSRStorage, study, series, uid(series, path.name), {"Modality": "SR"})
    ds.SeriesNumber, ds.InstanceNumber, ds.CompletionFlag = number, 1, "COMPLETE"
    ds.VerificationFlag, ds.ValueType = "UNVERIFIED", "CONTAINER"
    return _save(set_tags(ds, tags or {}), path, True)


def write_localizer(
    path: Path, study: str, number: int = 1, tags: dict[str, Any] | None = None, frame: str | None = None
) -> Path:
    """A coronal scout (topogram): one CT image of the whole trunk."""
    turned = np.array([[-1.0, 0, 0, 100], [0, 0, 1, -200], [0, -1, 0, 300], [0, 0, 0, 1]])
    ramp = np.linspace(-500, 500, 64 * 48).reshape(1, 64, 48)
    written = write_ct(
        path.parent,
        ramp,
        turned,
        study=study,
        series=uid(study, number),
        frame=frame,
        number=number,
        name=path.name,
        tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], **(tags or {})},
    )
    return written[0]


def _frame(position: NDArray, slope: float, intercept: float, index: int) -> Dataset:
    content = {"StackID": "1", "InStackPositionNumber": index, "DimensionIndexValues": [1, index]}
    item = Dataset()
    item.FrameContentSequence = [set_tags(Dataset(), content)]
    item.PlanePositionSequence = [
        set_tags(Dataset(), {"ImagePositionPatient": [_number(v) for v in position]})
    ]
    rescale = {"RescaleSlope": _number(slope), "RescaleIntercept": _number(intercept), "RescaleType": "HU"}
    item.PixelValueTransformationSequence = [set_tags(Dataset(), rescale)]
    item.CTImageFrameTypeSequence = [
        set_tags(Dataset(), {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]})
    ]
    return item


def _number(value: float) -> str:
    """A decimal string of at most 16 characters, as exact as that allows."""
    return pydicom.valuerep.format_number_as_ds(float(value))


def _stored(
    hu: NDArray, slope: float, intercept: float, signed: bool, bits: int, high_bit: int, padding: int | None
) -> NDArray[np.uint16]:
    """A slice's 16-bit cells: the values in ``bits`` bits whose highest is ``high_bit``."""
    holes = np.isnan(hu)
    values = np.rint((np.where(holes, 0, hu) - intercept) / slope).astype(np.int64)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not holes.all() and (values[~holes].min() < low or values[~holes].max() > high):
        raise ValueError(f"values {values.min()} to {values.max()} do not fit {bits} bits, signed {signed}")
    if padding is not None:
        values[holes] = padding
    shift = high_bit - bits + 1
    if signed and high_bit == 15:
        return (values << shift).astype(np.int16).view(np.uint16)
    if signed and shift == 0:
        # Scanners extend the sign into the unused bits.
        return values.astype(np.int16).view(np.uint16)
    return ((values & ((1 << bits) - 1)) << shift).astype(np.uint16)


def _pixels(ds: Dataset, cells: NDArray[np.uint16], syntax: str) -> None:
    """Put the frames into the data set in that transfer syntax."""
    cells = np.ascontiguousarray(cells)
    ds.PixelData = cells.tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (RLELossless, JPEGLSLossless):
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax == JPEGBaseline8Bit:
        # Lossy and with 8 bits, so not for a CT, but a reader must be able to decode it.
        from PIL import Image

        frames = []
        for frame in cells:
            buffer = io.BytesIO()
            Image.fromarray(frame.astype(np.uint8)).save(buffer, "JPEG", quality=95)
            frames.append(buffer.getvalue())
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit = 7
        _encapsulated(ds, frames, syntax)
    elif syntax == JPEG2000:
        # Lossy.
        from PIL import Image

        frames = []
        for frame in cells:
            buffer = io.BytesIO()
            options = {"irreversible": True, "quality_mode": "rates", "quality_layers": [6], "no_jp2": True}
            Image.fromarray(frame).save(buffer, "JPEG2000", num_resolutions=3, **options)
            frames.append(buffer.getvalue())
        _encapsulated(ds, frames, syntax)
    elif syntax in (JPEGLosslessSV1, JPEG2000Lossless):
        _encapsulated(ds, [_by_gdcm(ds, frame, syntax) for frame in cells], syntax)
    else:
        if not pydicom.uid.UID(syntax).is_little_endian:
            ds.PixelData = cells.byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = syntax


def _encapsulated(ds: Dataset, frames: list[bytes], syntax: str) -> None:
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax


def _by_gdcm(ds: Dataset, cells: NDArray[np.uint16], syntax: str) -> bytes:
    """One frame, encoded by the GDCM inside SimpleITK."""
    import SimpleITK as sitk

    dtype = np.int16 if ds.PixelRepresentation else np.uint16
    image = sitk.JoinSeries(sitk.GetImageFromArray(cells.view(dtype)))
    with tempfile.TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(Path(folder) / "one.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG" if syntax == JPEGLosslessSV1 else "JPEG2000")
        writer.Execute(image)
        written = pydicom.dcmread(Path(folder) / "one.dcm")
    if written.file_meta.TransferSyntaxUID != syntax:
        raise RuntimeError(f"GDCM wrote {written.file_meta.TransferSyntaxUID.name}")
    return next(generate_frames(written.PixelData, number_of_frames=1))


def _save(ds: Dataset, path: Path, preamble: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if preamble:
        ds.save_as(path, enforce_file_format=True)
    else:
        syntax = pydicom.uid.UID(ds.file_meta.TransferSyntaxUID)
        del ds.file_meta
        ds.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return path
