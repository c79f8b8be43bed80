"""Structures drawn as contours: DICOM RTSTRUCT.

A voxel belongs to a structure if its centre lies inside an odd number of the structure's contours on that slice (the
even-odd rule, that is the XOR of the contours). An inner contour is therefore a hole, and the two banks of a keyhole
cancel. A centre exactly on a contour belongs to the structure if the inside lies towards the higher voxel index, so
that structures with a common border neither share voxels nor leave voxels between them.

:func:`fill` evaluates this rule. Libraries that fill polygons follow other rules: skimage.draw.polygon includes every
centre on the border, matplotlib.path decides by the sense of rotation, and PIL rounds the vertices.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.structures.contents import LabelContents, Reference, Structure
from deepatlas.io.structures.drawing import (
    ON_GRID,
    Drawing,
    LabelSource,
    Patch,
    dicom_errors,
    empty_patch,
)
from deepatlas.io.structures.ignored import Ignored, Why
from deepatlas.space.constants import LPS_SIGNS
from deepatlas.space.grid import Grid

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_COMMAS = "its contours have decimal commas; they are read as points"
_CONTOUR_DATA = 0x30060050
# Decimals of a voxel: far finer than what is drawn, far coarser than rounding errors.
_SNAP = 6
# A coordinate beyond this (mm) is damaged.
_FAR = 1e5
# Number of crossings of an edge and a row that are computed at once.
_PAIRS = 1 << 22


def rtstruct_contents(dataset: Any) -> LabelContents:
    """The structures of an RTSTRUCT (a pydicom data set) and what they were drawn on.

    Raises :class:`~deepatlas.errors.DataError` if the file holds no structure or no contours, or is damaged.
    """
    with dicom_errors("the RTSTRUCT"):
        references = _references(dataset)
        if dataset.get("ROIContourSequence") is None:
            raise DataError("the RTSTRUCT has no contours (ROIContourSequence); export it again")
        outlines = {
            int(item.ReferencedROINumber)
            for item in dataset.get("RTROIObservationsSequence") or []
            if item.get("RTROIInterpretedType") == "EXTERNAL" and item.get("ReferencedROINumber") is not None
        }
        contours = _contours(dataset)
        items = dataset.get("StructureSetROISequence") or []
        times = Counter(_number(item) for item in items)
        drawn = Counter(
            int(item.ReferencedROINumber)
            for item in dataset.ROIContourSequence
            if item.get("ReferencedROINumber") is not None and item.get("ContourSequence")
        )
        structures = [
            Structure(
                str(item.get("ROIName") or ""),
                number := _number(item),
                outline=number in outlines,
                frame=str(item.get("ReferencedFrameOfReferenceUID") or ""),
                ignored=_unnumbered(number, times, drawn) or _encloses_nothing(contours.get(number, [])),
            )
            for item in items
        ]
    if not structures:
        raise DataError("the RTSTRUCT holds no structure; export it again with its structures")
    return LabelContents(tuple(structures), references, images_count=True)


def read_rtstruct(dataset: Any, series: DicomSeries | None = None) -> LabelSource:
    """The structures of an RTSTRUCT (a pydicom data set), ready to be drawn.

    ``series`` is the CT's; without it, neither frame of reference nor series is compared. Raises
    :class:`~deepatlas.errors.DataError` if the file was drawn on another series or frame of reference, holds no
    structure, or is damaged.
    """
    contents = rtstruct_contents(dataset)
    structures = contents.drawn_on(series)
    with dicom_errors("the RTSTRUCT"):
        contours = _contours(dataset)
    drawings = [Drawing(s, partial(_draw, contours.get(s.number, []))) for s in structures]
    return LabelSource(drawings, notes=contents.remarks(series))


def fill(contours: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels (rows, columns) of ``shape`` whose centres lie inside an odd number of closed ``contours``.

    Each contour is ``[N, 2]``: x (column) and y (row) in voxels, the centre of the first voxel at 0, 0. Exact up to
    1e-6 voxels. A centre on a border belongs if the inside is at higher x, or at higher y for a border along x.
    """
    rows, columns = shape
    contours = [np.round(contour, _SNAP) for contour in contours]
    tail = np.concatenate(contours)
    head = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    rising = (tail[:, 1] <= head[:, 1])[:, None]
    low, high = np.where(rising, tail, head), np.where(rising, head, tail)
    # An edge crosses the rows y with low.y <= y < high.y: of two edges that meet on a row, one does.
    first = np.clip(np.ceil(low[:, 1]), 0, rows).astype(np.int64)
    count = np.clip(np.ceil(high[:, 1]), 0, rows).astype(np.int64) - first
    crossings = np.zeros(rows * (columns + 1), dtype=np.int64)
    step = max(1, _PAIRS // max(rows, 1))
    for part in (slice(i, i + step) for i in range(0, len(low), step)):
        n = count[part]
        edge = np.repeat(np.arange(len(n)), n)
        row = first[part][edge] + np.arange(len(edge)) - np.repeat(np.cumsum(n) - n, n)
        start, run = low[part][edge], (high - low)[part][edge]
        x = start[:, 0] + (row - start[:, 1]) / run[:, 1] * run[:, 0]
        column = np.clip(np.ceil(np.round(x, _SNAP)), 0, columns).astype(np.int64)
        crossings += np.bincount(row * (columns + 1) + column, minlength=len(crossings))
    odd = (crossings & 1).astype(bool).reshape(rows, columns + 1)
    return np.logical_xor.accumulate(odd, axis=1)[:, :columns]


def _contours(dataset: Any) -> dict[int, Any]:
    """``{number of a structure: its contour items}``."""
    return {
        int(item.ReferencedROINumber): item.ContourSequence
        for item in dataset.get("ROIContourSequence") or []
        if item.get("ReferencedROINumber") is not None and item.get("ContourSequence")
    }


def _number(item: Any) -> int:
    """ROINumber; 0, which no structure has, if it is missing."""
    number = item.get("ROINumber")
    return 0 if number is None else int(number)


def _unnumbered(number: int, times: Counter[int], drawn: Counter[int]) -> Ignored | None:
    """Why it is not known which contours belong to a structure; None if it is.

    ``times`` and ``drawn`` count the structures and the items of contours that have a number.
    """
    if number == 0 and times[0] >= 1:
        return Ignored(
            Why.UNUSABLE, "it has no ROINumber, so that its contours are not known; export it again"
        )
    if times[number] > 1:
        return Ignored(Why.UNUSABLE, f"{times[number]} structures have its ROINumber; export them again")
    if drawn[number] > 1:
        return Ignored(
            Why.UNUSABLE, f"{drawn[number]} sets of contours have its ROINumber; export them again"
        )
    return None


def _references(dataset: Any) -> tuple[Reference, ...]:
    """What a structure set says it was drawn on, one entry for each frame of reference."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for item in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        uids, images = found.setdefault(str(item.get("FrameOfReferenceUID") or ""), (set(), set()))
        for study in item.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                if uid := series.get("SeriesInstanceUID"):
                    uids.add(str(uid))
                for image in series.get("ContourImageSequence") or []:
                    images.add(str(image.get("ReferencedSOPInstanceUID")))
    if len(found) == 1 and not next(iter(found.values()))[1]:
        # The images are named by the contours alone.
        for item in dataset.get("ROIContourSequence") or []:
            for contour in item.get("ContourSequence") or []:
                for image in contour.get("ContourImageSequence") or []:
                    next(iter(found.values()))[1].add(str(image.get("ReferencedSOPInstanceUID")))
    return tuple(Reference(f, frozenset(uids), frozenset(images)) for f, (uids, images) in found.items())


def _points(item: Any, notes: list[str]) -> NDArray[np.float64]:
    """Contour points ``[N, 3]`` in RAS mm."""
    element = item.get_item(_CONTOUR_DATA)
    raw = getattr(element, "value", None)
    # The bytes are parsed here: pydicom makes an object of every number, which takes ten times as long.
    numbers = (
        raw.decode("ascii").strip(" \0").split("\\")
        if isinstance(raw, bytes)
        else (item.get("ContourData") or [])
    )
    if isinstance(raw, bytes) and b"," in raw:
        numbers = [n.replace(",", ".") for n in numbers]
        if _COMMAS not in notes:
            notes.append(_COMMAS)
    try:
        values = np.array([float(n) for n in numbers], dtype=np.float64)
    except ValueError as error:
        raise DataError("a contour holds a value that is not a number; export it again") from error
    if len(values) % 3 or not (np.abs(values) < _FAR).all():
        raise DataError("a contour's coordinates are damaged; export it again")
    stated = item.get("NumberOfContourPoints")
    if stated is not None and int(stated) != len(values) // 3:
        raise DataError(
            f"a contour of {int(stated)} points holds {len(values) // 3}: it is truncated; export it again"
        )
    return values.reshape(-1, 3) * LPS_SIGNS


def _draw(items: Any, grid: Grid, notes: list[str]) -> Patch:
    with dicom_errors("a contour"):
        contours = _closed_contours(items, notes)
    voxels = [grid.world_to_voxel(points) for points in contours]
    axis = _slice_axis(voxels)
    planes = _on_slices(voxels, axis, grid.shape[2 - axis], notes)
    if not planes:
        return empty_patch()
    u, v = [other for other in range(3) if other != axis]
    width, height = grid.shape[2 - u], grid.shape[2 - v]
    # Only the box around the structure is filled, not the whole array.
    every = np.concatenate([points for plane in planes.values() for points in plane])[:, [u, v]]
    # A contour along the outer face of the CT, with rounded numbers, loses nothing there.
    if (every < -0.5 - ON_GRID).any() or (every > np.array([width, height]) - 0.5 + ON_GRID).any():
        notes.append("reaches beyond the CT within its slices; cut off there")
    low = np.clip(np.floor(every.min(axis=0)), 0, None).astype(np.int64)
    high = np.minimum(np.ceil(every.max(axis=0)).astype(np.int64) + 1, [width, height])
    if (high <= low).any():
        return empty_patch()
    first, last = min(planes), max(planes)
    drawn = np.zeros((last - first + 1, high[1] - low[1], high[0] - low[0]), dtype=bool)
    for index, plane in planes.items():
        drawn[index - first] = fill([points[:, [u, v]] - low for points in plane], drawn.shape[1:])
    if gaps := len(drawn) - len(planes):
        notes.append(
            f"no contour on {gaps} of the {len(drawn)} slices from its first to its last; left empty there"
        )
    # From (slice, v, u) to (z, y, x).
    order = {2: (0, 1, 2), 1: (1, 0, 2), 0: (1, 2, 0)}[axis]
    start = np.array([first, low[1], low[0]])[list(order)]
    return Patch(tuple(int(n) for n in start), drawn.transpose(order))  # type: ignore[arg-type]


def _kind(item: Any) -> str:
    """The geometric type of a contour, or a neutral word if it is free text."""
    kind = str(item.get("ContourGeometricType") or "no type").strip()
    return kind if kind.replace("_", "").replace(" ", "").isalpha() else "unknown type"


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


def _encloses_nothing(items: Any) -> Ignored | None:
    """Why contours enclose nothing, judged by their types alone; None if they may enclose something."""
    if not items:
        return Ignored(Why.EMPTY, "empty: no contour was drawn")
    if any(_kind(item) in _CLOSED for item in items):
        return None
    kinds = _counts(Counter(map(_kind, items)))
    return Ignored(Why.UNUSABLE, f"no closed contour ({kinds}), so it has no inside")


def _closed_contours(items: Any, notes: list[str]) -> list[NDArray[np.float64]]:
    """The closed contours. The others are counted in ``notes``; :class:`DataError` if no contour is closed."""
    kept: list[NDArray[np.float64]] = []
    seen: set[bytes] = set()
    left_out: Counter[str] = Counter()
    for item in items:
        if (kind := _kind(item)) not in _CLOSED:
            left_out[kind] += 1
            continue
        points = _points(item, notes)
        if len(points) < 3:
            left_out["fewer than three points"] += 1
        elif points.tobytes() in seen:
            # By the even-odd rule, two equal contours would cancel.
            left_out["drawn twice"] += 1
        else:
            seen.add(points.tobytes())
            kept.append(points)
    if not kept:
        raise DataError(f"no closed contour ({_counts(left_out)}), so it has no inside")
    if left_out:
        notes.append(f"contours left out: {_counts(left_out)}")
    return kept


def _slice_axis(contours: list[NDArray[np.float64]]) -> int:
    """The voxel axis (0 x, 1 y, 2 z) that all contours are perpendicular to."""
    spread = np.max([np.ptp(points, axis=0) for points in contours], axis=0)
    flat = [axis for axis in (2, 1, 0) if spread[axis] <= 2 * ON_GRID]
    if not flat:
        raise DataError(
            "its contours are not parallel to the CT's slices; draw it on this CT, or bring a label image on its grid"
        )
    return flat[0]


def _on_slices(
    contours: list[NDArray[np.float64]], axis: int, slices: int, notes: list[str]
) -> dict[int, list[NDArray[np.float64]]]:
    """``{slice: its contours}``. A plane is drawn on the nearest slice; of several planes a slice takes the nearest."""
    positions = np.array([points[:, axis].mean() for points in contours])
    order = np.argsort(positions, kind="stable")
    # The positions of contours in one plane differ only by the rounding of their coordinates.
    breaks = np.flatnonzero(np.diff(positions[order]) > ON_GRID) + 1
    best: dict[int, tuple[float, NDArray[np.int64]]] = {}
    beyond = between = crowded = 0
    for plane in np.split(order, breaks):
        position = positions[plane].mean()
        index = int(np.floor(position + 0.5))
        if not 0 <= index < slices:
            beyond += len(plane)
            continue
        away = round(abs(position - index), 3)
        between += len(plane) if away > ON_GRID else 0
        held = best.get(index)
        if held is not None:
            crowded += len(plane) if held[0] <= away else len(held[1])
        if held is None or away < held[0]:
            best[index] = (away, plane)
    if beyond:
        notes.append(
            f"{beyond} of {len(contours)} contours lie beyond the CT's first or last slice; left out"
        )
    if between:
        notes.append(
            f"{between} of {len(contours)} contours lie between the CT's slices; taken on the nearest"
        )
    if crowded:
        notes.append(f"{crowded} of {len(contours)} contours left out, others lie closer to their slice")
    return {index: [contours[i] for i in plane] for index, (_, plane) in sorted(best.items())}
