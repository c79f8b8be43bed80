"""Group arbitrary DICOM files into image series, from their headers alone.

The result is what can be stacked. One SeriesInstanceUID may hold several stacks (a scout beside the slices, a second
orientation, the phases of one acquisition), and each of them becomes a series of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.dicom.geometry import arrange, orientation_class
from deepatlas.io.dicom.header import RTSTRUCT, Header, object_type, read_header
from deepatlas.io.dicom.kernel import known_kernel, tissue
from deepatlas.io.dicom.parts import SCOUTS, Image, Part, left_out, one_uid_each, parts_of, plane_of
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.space.constants import MIN_VOXELS

_MODALITIES = {"CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OT", "RTIMAGE", "SC"}
# Values of ImageType that the standard or manufacturers define. Other values are free text and are not passed on.
_IMAGE_TYPES = frozenset(
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER SCOUT VOLUME NONE OTHER MPR MIP MINIP MIN_IP AVERAGE "
    "REFORMATTED RESAMPLED MIXED HELIX DOSE_INFO DOSE PERFUSION CBF CBV MTT TTP TMAX VRT 3D RGB OVERLAY IODINE EFF_Z "
    "RHO_Z VNC MONO_E SUBTRACTION BONE_REMOVED".split()
) | {"PROJECTION IMAGE", "SCREEN SAVE", "SCREEN CAPTURE"}  # fmt: skip


@dataclass(frozen=True)
class LabelObject:
    """An RTSTRUCT or DICOM-SEG file and what it belongs to.

    ``modality`` is "RTSTRUCT" or "SEG", ``referenced`` the SeriesInstanceUIDs that the file refers to, and ``drawn``
    what was read of its structures together with the header (:attr:`Header.drawn`).
    """

    found: Found
    modality: str
    patient: str
    study: str
    referenced: tuple[str, ...] = ()
    drawn: Any = None
    # Whether the file is whole, as far as its length tells.
    complete: bool = True


@dataclass
class Scan:
    """What a set of files holds.

    ``series`` is sorted by patient, study, number and UID; ``labels`` are the RTSTRUCT and DICOM-SEG objects; ``rest``
    are the files that are not DICOM.
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

    A file that is not DICOM goes to ``rest``. DICOM that is not an image (reports, presentation states, DICOMDIR),
    second copies of an instance (equal SOPInstanceUID and position) and damaged files become refusals. Images of
    every kind become series, so that a choice can state why it does not take them. The ``facts`` of a series are:

    ================ ==============================================================================================
    number           SeriesNumber, or None
    modality         "CT", "MR", "PT" …, or "" for an unusual one
    kind             "CT Image", "Secondary Capture Image" …: the type of the object in the standard's words
    image_type       the defined values of ImageType, joined by a backslash
    localizer        whether it is a scout
    orientation      "axial", "coronal", "sagittal", "oblique", or None without a position
    slices           number of positions along the normal
    images           number of images; more than ``slices`` where several share a position
    rows, columns    size of an image
    spacing          (x, y, z) in mm after stacking, or None
    thickness        SliceThickness in mm, or None
    extent           distance from the first to the last slice in mm
    kernel           ConvolutionKernel if it is a known one, otherwise ""
    tissue           "soft", "sharp" or "unknown": what the reconstruction is for
    contrast         whether a contrast agent is named
    kvp              tube voltage in kV, or None
    multiframe       whether it is an enhanced multi-frame object
    syntax           UID of the transfer syntax
    hounsfield       whether RescaleType is HU or absent
    problem          why it is not a volume (one line without identifiers), or None
    left_out         what else its SeriesInstanceUID holds: a line for each reason, with the number of images
    ================ ==============================================================================================
    """
    return group_headers((found, read_header(found)) for found in files)


def group_headers(headers: Iterable[tuple[Found, Header | Refusal | None]]) -> Scan:
    """As :func:`scan_dicom`, for headers that have been read already."""
    scan = Scan()
    groups: dict[tuple, list[Image]] = defaultdict(list)
    copies: dict[tuple, tuple[tuple, int]] = {}
    for found, header in headers:
        if header is None:
            scan.rest.append(found)
        elif isinstance(header, Refusal):
            scan.refusals.append(header)
        elif header.is_label_object:
            modality = "RTSTRUCT" if header.sop_class == RTSTRUCT else "SEG"
            about = header.patient, header.study, header.referenced, header.drawn, header.complete
            scan.labels.append(LabelObject(found, modality, *about))
        else:
            _add(Image(found, header), groups, copies, scan.refusals)
    one_uid_each(groups)
    for members in groups.values():
        parts = parts_of(members)
        series = sorted(
            (_series(part, [other.members for other in parts if other is not part]) for part in parts),
            key=lambda s: (-s.facts["slices"], -s.facts["images"], s.sop_uids),
        )
        for index, part in enumerate(series, 1):
            name = part.series if index == 1 else f"{part.series}#{index}"
            scan.series.append(replace(part, series=name))
    scan.series.sort(key=lambda s: (s.patient, s.study, s.facts["number"] or 0, s.series))
    scan.labels.sort(key=lambda o: o.found.name)
    return scan


def _add(image: Image, groups: dict, copies: dict, refusals: list[Refusal]) -> None:
    """Add an image to its series, unless it is a second copy. Of two copies the complete one is kept."""
    header = image.header
    key = (header.patient, header.study, header.series)
    group = groups[key]
    if header.sop_uid:
        first = copies.get((*key, header.sop_uid))
        place = None if header.positions is None else tuple(map(tuple, header.positions.round(3)))
        if first is not None and first[0] == (place, header.orientation):
            kept = group[first[1]]
            loser = image
            if header.complete and not kept.header.complete:
                group[first[1]], loser = image, kept
            reason = "a second copy of an image that is there (same SOPInstanceUID)"
            refusals.append(Refusal(loser.found.name, reason))
            return
        copies[(*key, header.sop_uid)] = ((place, header.orientation), len(group))
    group.append(image)


def _series(part: Part, others: list[list[Image]]) -> DicomSeries:
    members = part.members
    facts, order = _facts(members)
    # A gap within the part says more.
    if not facts["problem"] or len(members) < MIN_VOXELS:
        facts["problem"] = part.problem or facts["problem"]
    facts["left_out"] = left_out(members, others)
    head = members[0].header
    return DicomSeries(
        patient=head.patient,
        study=head.study,
        series=head.series,
        frame=head.frame,
        slices=tuple(members[i].found for i in order),
        sop_uids=tuple(members[i].header.sop_uid for i in order),
        facts=facts,
        headers=tuple(members[i].header for i in order),
    )


def _facts(members: list[Image]) -> tuple[dict[str, Any], list[int]]:
    """The facts of a series (see :func:`scan_dicom`), and the indices of its members in the order of stacking."""
    headers = [m.header for m in members]
    head = headers[0]
    images = sum(h.frames for h in headers)
    facts: dict[str, Any] = {
        "number": head.number,
        "modality": head.modality if head.modality in _MODALITIES else "",
        "kind": object_type(head.sop_class),
        "image_type": "\\".join(v for v in head.image_type if v in _IMAGE_TYPES),
        "localizer": bool(SCOUTS & set(head.image_type)),
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
    }
    order = sorted(range(len(members)), key=lambda i: (headers[i].instance or 0, members[i].found.name))
    try:
        order = _stacked(headers, facts) or order
    except DataError as error:
        facts["problem"] = str(error)
    return facts, order


def _stacked(headers: list[Header], facts: dict[str, Any]) -> list[int]:
    """Complete ``facts`` by the geometry, and give the order of the files (empty for multi-frame objects).

    Raises :class:`~deepatlas.errors.DataError` with the reason if the images make no volume.
    """
    head = headers[0]
    if any(h.orientation is None for h in headers):
        if head.is_multiframe:
            raise DataError("its frames differ in ImageOrientationPatient; export it as separate series")
        raise DataError("it has no ImageOrientationPatient: a projection or a picture, not slices in space")
    facts["orientation"] = orientation_class(head.orientation)  # type: ignore[arg-type]
    if any(h.positions is None for h in headers):
        raise DataError("it has slices without ImagePositionPatient; export the series again")
    if head.spacing is None:
        raise DataError("it has no PixelSpacing; export the series again")
    if head.concatenation[0] and len(headers) < head.concatenation[1]:
        raise DataError(
            f"{len(headers)} of the {head.concatenation[1]} files of one multi-frame image are there; "
            "export the series again"
        )
    cut = sum(not h.complete for h in headers)
    if cut:
        raise DataError(f"{cut} of {len(headers)} files are cut short; copy the series again")
    positions = np.concatenate([h.positions for h in headers])  # type: ignore[misc]
    facts["slices"] = len(np.unique(positions.round(2), axis=0))
    thickness = np.concatenate([h.thicknesses for h in headers])
    plane = plane_of(headers)
    stack = arrange(positions, plane.orientation, plane.spacing, thickness)
    facts["slices"] = len(stack.planes)
    facts["spacing"] = tuple(round(v, 4) for v in stack.spacing)
    facts["extent"] = round(float(stack.levels[-1]), 3)
    if len(stack.planes) < MIN_VOXELS:
        raise DataError(f"it has {len(stack.planes)} slices; a volume needs at least {MIN_VOXELS}")
    return [i for plane in stack.planes for i in plane] if head.frames == 1 else []
