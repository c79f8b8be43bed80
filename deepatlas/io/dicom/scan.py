"""Arbitrary DICOM files to image series, from headers alone.

The unit is what can be stacked: one series may hold several (a scout beside the slices, a second orientation, the
phases of one acquisition), and each becomes a series of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.dicom.geometry import arrange, orientation_class
from deepatlas.io.dicom.header import RTSTRUCT, SEGMENTATIONS, Header, object_type, read_header
from deepatlas.io.dicom.kernel import known_kernel, tissue
from deepatlas.io.dicom.series import DicomSeries, Found, Refusal
from deepatlas.space.constants import MIN_VOXELS

SAME_ORIENTATION = 1e-3  # largest difference of a direction cosine
SAME_SPACING = 1e-4  # mm
_MODALITIES = {"CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OT", "RTIMAGE", "SC"}
_SCOUTS = {"LOCALIZER", "SCOUT"}
# Values of ImageType that the standard or makers define; others are free text and are not passed on.
_IMAGE_TYPES = {
    *(
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "AXIAL",
        "LOCALIZER",
        "SCOUT",
        "VOLUME",
        "NONE",
        "OTHER",
    ),
    *(
        "MPR",
        "MIP",
        "MINIP",
        "MIN_IP",
        "AVERAGE",
        "REFORMATTED",
        "PROJECTION IMAGE",
        "RESAMPLED",
        "MIXED",
        "HELIX",
    ),
    *(
        "SCREEN SAVE",
        "SCREEN CAPTURE",
        "DOSE_INFO",
        "DOSE",
        "PERFUSION",
        "CBF",
        "CBV",
        "MTT",
        "TTP",
        "TMAX",
        "VRT",
    ),
    *("3D", "RGB", "OVERLAY", "IODINE", "EFF_Z", "RHO_Z", "VNC", "MONO_E", "SUBTRACTION", "BONE_REMOVED"),
}


@dataclass(frozen=True)
class LabelObject:
    """An RTSTRUCT or DICOM-SEG file and what it belongs to."""

    found: Found
    modality: str  # "RTSTRUCT" or "SEG"
    patient: str
    study: str
    frame: str  # FrameOfReferenceUID; often empty in an RTSTRUCT, which names it deeper down
    referenced: tuple[str, ...] = ()  # SeriesInstanceUIDs that it refers to


@dataclass
class Scan:
    """What a set of files holds.

    ``series`` are sorted by patient, study, number and UID; ``labels`` are RTSTRUCT and DICOM-SEG objects;
    ``rest`` are the files that are not DICOM.
    """

    series: list[DicomSeries] = field(default_factory=list)
    labels: list[LabelObject] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    rest: list[Found] = field(default_factory=list)

    def exams(self) -> dict[tuple[str, str], list[DicomSeries]]:
        """The series of every exam, ``{(patient, study): [series]}``."""
        found: dict[tuple[str, str], list[DicomSeries]] = defaultdict(list)
        for series in self.series:
            found[series.patient, series.study].append(series)
        return dict(found)


def scan_dicom(files: Iterable[Found]) -> Scan:
    """Read the headers of ``files`` and group them into series.

    A file that is not DICOM goes to ``rest``; DICOM that is not an image (reports, presentation states, DICOMDIR),
    second copies of one instance (equal SOPInstanceUID and place) and damaged files become refusals. Images of
    every kind become series, so that a choice can say why it passes them over. ``facts`` of a series:

    ================ ==============================================================================================
    number           SeriesNumber, or None
    modality         "CT", "MR", "PT" …, or "" if it is none of the usual
    kind             "CT Image", "Secondary Capture Image" …: the object's type in the standard's words
    image_type       the defined values of ImageType, joined by a backslash
    localizer        whether it is a scout
    orientation      "axial", "coronal", "sagittal", "oblique", or None without a position
    slices           number of levels
    images           number of images; more than ``slices`` where several lie at one level
    rows, columns    of an image
    spacing          (x, y, z) in mm after stacking, or None
    thickness        SliceThickness in mm, or None
    extent           from the first to the last slice, mm
    kernel           ConvolutionKernel where it is one of a maker's, otherwise ""
    tissue           "soft", "sharp" or "unknown": what the reconstruction is for
    contrast         whether a contrast agent is named
    kvp              tube voltage in kV, or None
    multiframe       whether it is one enhanced object
    syntax           UID of the transfer syntax
    hounsfield       whether the rescale type is HU or not given
    problem          why it makes no volume, one line without names, or None
    ================ ==============================================================================================

    Raises :class:`~deepatlas.errors.DataError` only where pydicom is missing.
    """
    return group_headers((found, read_header(found)) for found in files)


def group_headers(headers: Iterable[tuple[Found, Header | Refusal | None]]) -> Scan:
    """The second half of :func:`scan_dicom`, for headers that were read elsewhere (other processes)."""
    scan = Scan()
    groups: dict[tuple, list[Header]] = defaultdict(list)
    copies: dict[tuple, tuple[tuple, int]] = {}
    for found, header in headers:
        if header is None:
            scan.rest.append(found)
        elif isinstance(header, Refusal):
            scan.refusals.append(header)
        elif header.sop_class == RTSTRUCT or header.sop_class in SEGMENTATIONS:
            modality = "RTSTRUCT" if header.sop_class == RTSTRUCT else "SEG"
            scan.labels.append(
                LabelObject(found, modality, header.patient, header.study, header.frame, header.referenced)
            )
        else:
            _add(header, groups, copies, scan.refusals)
    for members in groups.values():
        series = sorted(
            (_series(part) for one in _by_orientation(members) for part in _parts(one)),
            key=lambda s: (-s.facts["slices"], -s.facts["images"], s.sop_uids),
        )
        for index, part in enumerate(series, 1):
            scan.series.append(part if index == 1 else _renamed(part, index))
    scan.series.sort(key=lambda s: (s.patient, s.study, s.facts["number"] or 0, s.series))
    scan.labels.sort(key=lambda o: o.found.name)
    return scan


def _add(header: Header, groups: dict, copies: dict, refusals: list[Refusal]) -> None:
    key = (header.patient, header.study, header.series)
    group = groups[key]
    if header.sop_uid:
        first = copies.get((*key, header.sop_uid))
        place = None if header.positions is None else tuple(map(tuple, header.positions.round(3)))
        if first is not None and first[0] == (place, header.orientation):
            kept = group[first[1]]
            loser = header
            if header.complete and not kept.complete:
                group[first[1]], loser = header, kept
            refusals.append(
                Refusal(loser.found.name, "a second copy of an image that is there (same SOPInstanceUID)")
            )
            return
        copies[(*key, header.sop_uid)] = ((place, header.orientation), len(group))
    group.append(header)


def _by_orientation(members: list[Header]) -> list[list[Header]]:
    """Images of one series that can share a grid: same type, size, spacing and orientation."""
    groups: list[list[Header]] = []
    for header in members:
        for group in groups:
            if _alike(header, group[0]):
                group.append(header)
                break
        else:
            groups.append([header])
    return groups


def _alike(a: Header, b: Header) -> bool:
    if (a.frames > 1 or b.frames > 1) and not (a.concatenation[0] and a.concatenation == b.concatenation):
        return False  # an enhanced object is a volume by itself, unless it was cut into several files
    if (a.sop_class, a.modality, a.rows, a.columns, a.samples, a.frame) != (
        *(b.sop_class, b.modality, b.rows, b.columns, b.samples, b.frame),
    ):
        return False
    if bool(_SCOUTS & set(a.image_type)) != bool(_SCOUTS & set(b.image_type)):
        return False
    return _close(a.spacing, b.spacing, SAME_SPACING) and _close(
        a.orientation, b.orientation, SAME_ORIENTATION
    )


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(np.subtract(a, b)).max() <= tolerance)


def _parts(members: list[Header]) -> list[list[Header]]:
    """Split where several images lie at one level and something of the acquisition tells them apart."""
    if len(members) < 2 or any(m.positions is None for m in members):
        return [members]
    levels = len({_level(m) for m in members})
    if levels == len(members):
        return [members]
    for key in _SPLITS:
        parts: dict[Any, list[Header]] = defaultdict(list)
        for member in members:
            parts[key(member)].append(member)
        if len(parts) > 1 and all(len({_level(m) for m in part}) == len(part) for part in parts.values()):
            return list(parts.values())
    return [members]


def _level(header: Header) -> tuple[float, ...]:
    assert header.positions is not None
    return tuple(header.positions[0].round(2))


_SPLITS = [
    lambda h: h.image_type,
    lambda h: h.kernel,
    *((lambda h, i=i: h.moments[i]) for i in range(6)),
]


def _series(members: list[Header]) -> DicomSeries:
    facts = _facts(members)
    order = facts.pop("order")
    head = members[0]
    return DicomSeries(
        patient=head.patient,
        study=head.study,
        series=head.series,
        frame=head.frame,
        slices=tuple(members[i].found for i in order),
        sop_uids=tuple(members[i].sop_uid for i in order),
        facts=facts,
    )


def _renamed(series: DicomSeries, index: int) -> DicomSeries:
    return DicomSeries(
        series.patient,
        series.study,
        f"{series.series}#{index}",
        series.frame,
        series.slices,
        series.sop_uids,
        series.facts,
    )


def _facts(members: list[Header]) -> dict[str, Any]:
    head = members[0]
    images = sum(m.frames for m in members)
    types = [v for v in head.image_type if v in _IMAGE_TYPES]
    facts: dict[str, Any] = {
        "number": head.number,
        "modality": head.modality if head.modality in _MODALITIES else "",
        "kind": object_type(head.sop_class),
        "image_type": "\\".join(types),
        "localizer": bool(_SCOUTS & set(head.image_type)),
        "orientation": None,
        "slices": images,
        "images": images,
        "rows": head.rows,
        "columns": head.columns,
        "spacing": None,
        "thickness": head.thickness,
        "extent": 0.0,
        "kernel": known_kernel(head.kernel),
        "tissue": tissue(head.kernel, head.window, head.description),
        "contrast": head.contrast,
        "kvp": head.kvp,
        "multiframe": head.is_multiframe,
        "syntax": head.known_syntax,
        "hounsfield": head.hounsfield,
        "problem": None,
        "order": sorted(range(len(members)), key=lambda i: (members[i].instance or 0, members[i].found.name)),
    }
    try:
        _place(members, facts)
    except DataError as error:
        facts["problem"] = str(error)
    return facts


def _place(members: list[Header], facts: dict[str, Any]) -> None:
    head = members[0]
    if any(m.orientation is None for m in members):
        if head.is_multiframe:
            raise DataError("its frames differ in ImageOrientationPatient; export it as separate series")
        raise DataError("it has no ImageOrientationPatient: a projection or a picture, not slices in space")
    facts["orientation"] = orientation_class(head.orientation)  # type: ignore[arg-type]
    if any(m.positions is None for m in members):
        raise DataError("it has slices without ImagePositionPatient; export the series again")
    if head.spacing is None:
        raise DataError("it has no PixelSpacing; export the series again")
    if head.concatenation[0] and len(members) < head.concatenation[1]:
        raise DataError(
            f"{len(members)} of the {head.concatenation[1]} files of one multi-frame image are there; "
            "export the series again"
        )
    cut = sum(not m.complete for m in members)
    if cut:
        raise DataError(f"{cut} of {len(members)} files are cut short; copy the series again")
    positions = np.concatenate([m.positions for m in members])  # type: ignore[arg-type]
    facts["slices"] = len(np.unique(positions.round(2), axis=0))
    thickness = np.concatenate([m.thicknesses for m in members])
    stack = arrange(positions, head.orientation, head.spacing, thickness)  # type: ignore[arg-type]
    facts["slices"] = len(stack.planes)
    facts["spacing"] = tuple(round(v, 4) for v in stack.spacing)
    facts["extent"] = round(float(stack.levels[-1]), 3)
    if head.frames == 1:
        facts["order"] = [i for plane in stack.planes for i in plane]
    if len(stack.planes) < MIN_VOXELS:
        raise DataError(f"it has {len(stack.planes)} slices; a volume needs at least {MIN_VOXELS}")
