"""Structures as a DICOM Segmentation (SEG), which refers to the series that they were found in.

highdicom writes the object; it is an extra of this package. A BINARY segmentation holds a frame for each structure and
slice where it has voxels, so that structures may overlap. A LABELMAP, the newer form, holds one value a voxel.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.files import atomic_path
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.codes import Coded, coded, sequence_item
from deepatlas.io.export.dicom_source import source_of
from deepatlas.io.export.segments import dicom_name, segments_of
from deepatlas.pictures.draw import colour
from deepatlas.space.constants import LPS_FROM_RAS
from deepatlas.space.grid import Grid, axis_cosine
from deepatlas.space.labels import Labels

_WHAT = "a DICOM-SEG"
# The largest cosine between two axes that still is rounding.
_SHEAR = 2e-4
_SERIES_NUMBER = 900
# The longest text that a description of a segment holds (value representation ST).
_LONGEST_TEXT = 1024


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: Labels,
    names: Mapping[str, int],
    source: DicomSeries | str | os.PathLike[str],
    *,
    labelmap: bool = False,
    algorithm: Algorithm | None = None,
    remarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write structures as a DICOM Segmentation.

    Args:
        path: the file, usually ``….seg.dcm``. It names the patient as the source does.
        labels: the structures, on any grid in the frame of reference of the source.
        names: ``{name: id}`` of the structures in ``labels``, which become the labels of the segments.
        source: the series that the exam was read from, or the path of it.
        labelmap: write the newer form, one value a voxel, compressed; smaller, but fewer programs read it.
        algorithm: what made the structures; None says no more than that they were made automatically.
        remarks: what is said of structures, by their names; the descriptions of their segments.

    Returns:
        A line for each structure that is left out, because it has no voxel.

    Raises:
        DeepAtlasError: highdicom is not installed.
        DataError: the source is no DICOM series, or none that can be referred to; no structure has a voxel; two names
            are the same in the first 64 letters; or structures overlap and ``labelmap`` is set.
        WriteError: the file cannot be written.
    """
    hd = highdicom()
    path = Path(path)
    segments, notes = segments_of(labels, names, path)
    covered = [name for name, identity in segments.items() if identity in labels.hidden]
    if labelmap and covered:
        raise DataError(
            f"{path}: structures overlap ({', '.join(covered[:4])}), and a label map holds one a voxel; write it as "
            "BINARY, without labelmap"
        )
    origin = source_of(source, _WHAT)
    frames = _Frames(labels.grid)
    numbered, first = _numbered(labels, segments)
    volume = hd.Volume(
        numbered,
        frames.affine(first),
        coordinate_system="PATIENT",
        frame_of_reference_uid=origin.series.frame,
    )
    algorithm = algorithm or Algorithm("DeepATLAS", "unknown")
    try:
        with warnings.catch_warnings():
            # The patient is named as the source does, which nobody here can cure where that is no usual name.
            warnings.filterwarnings("ignore", module=r"highdicom\.base$")
            dataset = hd.seg.Segmentation(
                source_images=origin.images,
                pixel_array=volume,
                segmentation_type="LABELMAP" if labelmap else "BINARY",
                segment_descriptions=_descriptions(hd, segments, algorithm),
                series_instance_uid=hd.UID(),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="DeepATLAS",
                manufacturer_model_name="deepatlas",
                software_versions=algorithm.version,
                device_serial_number=algorithm.model or "none",
                content_label="STRUCTURES",
                content_description="Structures found by DeepATLAS",
                series_description=algorithm.title,
                transfer_syntax_uid="1.2.840.10008.1.2.5" if labelmap else "1.2.840.10008.1.2.1",
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{origin.name}: a DICOM-SEG cannot refer to this series ({_line(error)}); export it again, or write NIfTI "
            "or NRRD"
        ) from error
    _add_to_segments(dataset, segments, remarks or {})
    if covered:
        _draw_whole_masks(dataset, labels, list(segments.values()), frames)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return notes


class _Frames:
    """Where the slices of a grid lie, as frames of a DICOM object: rows and columns, in LPS mm."""

    def __init__(self, grid: Grid) -> None:
        if (shear := axis_cosine(grid.affine)) > _SHEAR:
            raise DataError(
                f"grid axes are not at right angles (cosine {shear:.4f}), which DICOM cannot say; resample the labels "
                "to orthogonal axes first"
            )
        # What a header in float32 has rounded is more than highdicom takes.
        lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
        left, _, right = np.linalg.svd(grid.affine[:3, :3] / lengths)
        straight = np.array(grid.affine)
        straight[:3, :3] = left @ right * lengths
        self._lps = LPS_FROM_RAS @ straight

    def affine(self, first: int) -> NDArray[np.float64]:
        """4x4: from (slice, row, column), counted from the slice ``first``, to LPS mm."""
        found = self._lps[:, [2, 1, 0, 3]].copy()
        found[:3, 3] += first * found[:3, 0]
        return found

    def slice_at(self, position: NDArray[np.float64]) -> int:
        """The slice whose first pixel lies at ``position`` (LPS mm)."""
        return round(float((np.linalg.inv(self._lps) @ [*position, 1.0])[2]))


def _numbered(labels: Labels, segments: Mapping[str, int]) -> tuple[NDArray, int]:
    """The slices that hold structures, with the numbers of segments as values, and the first of these slices.

    Where structures overlap, a slice also holds at least one voxel of every structure that is hidden there, at some
    place: highdicom then makes a frame for it, whose pixels :func:`_draw_whole_masks` replaces.
    """
    kind = np.uint8 if len(segments) < 256 else np.uint16
    table = np.zeros(max(int(labels.array.max()), *segments.values()) + 1, dtype=kind)
    for number, identity in enumerate(segments.values(), 1):
        table[identity] = number
    used = np.array([table[plane].any() for plane in labels.array])
    for identity in segments.values():
        if (mask := labels.hidden.get(identity)) is not None:
            used[mask.box[0]] |= mask.array().any(axis=(1, 2))
    where = np.flatnonzero(used)
    first, last = int(where[0]), int(where[-1]) + 1
    return _with_hidden(table[labels.array[first:last]], labels, segments, first), first


def _with_hidden(numbered: NDArray, labels: Labels, segments: Mapping[str, int], first: int) -> NDArray:
    wanted: dict[int, set[int]] = {}
    for number, identity in enumerate(segments.values(), 1):
        if (mask := labels.hidden.get(identity)) is not None:
            for offset in np.flatnonzero(mask.array().any(axis=(1, 2))):
                wanted.setdefault(int(offset) + mask.start[0] - first, set()).add(number)
    for z, numbers in wanted.items():
        there = {int(n) for n in np.unique(numbered[z])} - {0}
        plane = numbered[z].ravel()
        if numbers - there:
            # Any place will do, since the pixels of all frames are replaced.
            both = sorted(there | numbers)
            plane[: len(both)] = both
            numbered[z] = plane.reshape(numbered[z].shape)
    return numbered


def _draw_whole_masks(dataset: Any, labels: Labels, identities: list[int], frames: _Frames) -> None:
    """Replace the pixels of every frame by the whole mask of its structure, overlaps included."""
    from pydicom.pixels import pack_bits

    hidden = {i: (labels.hidden[i], labels.hidden[i].array()) for i in identities if i in labels.hidden}
    parts: list[bytes] = []
    held: list[NDArray[np.bool_]] = []
    items = dataset.PerFrameFunctionalGroupsSequence
    for index, item in enumerate(items, 1):
        groups = (
            item if "SegmentIdentificationSequence" in item else dataset.SharedFunctionalGroupsSequence[0]
        )
        identity = identities[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber) - 1]
        position = item.PlanePositionSequence[0].ImagePositionPatient
        z = frames.slice_at(np.array([float(v) for v in position]))
        plane = np.asarray(labels.array[z] == identity)
        if identity in hidden:
            mask, below = hidden[identity]
            if 0 <= z - mask.start[0] < len(below):
                plane[mask.box[1:]] |= below[z - mask.start[0]]
        held.append(plane.ravel())
        # Eight frames end at a byte, whatever their size.
        if len(held) == 8 or index == len(items):
            parts.append(pack_bits(np.concatenate(held).view(np.uint8), pad=False))
            held = []
    packed = b"".join(parts)
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset.SegmentsOverlap = "YES"


def _descriptions(hd: Any, segments: Mapping[str, int], algorithm: Algorithm) -> list[Any]:
    from pydicom.sr.codedict import codes

    made_by = hd.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        parameters={"model": algorithm.model} if algorithm.model else None,
    )
    found = []
    for number, (name, identity) in enumerate(segments.items(), 1):
        meaning = coded(name)
        found.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=dicom_name(name),
                segmented_property_category=meaning.category,
                segmented_property_type=meaning.type,
                algorithm_type="AUTOMATIC",
                algorithm_identification=made_by,
                tracking_uid=hd.UID(),
                tracking_id=dicom_name(name),
                display_color=hd.color.CIELabColor.from_string(colour(identity)),
            )
        )
    return found


def _add_to_segments(dataset: Any, segments: Mapping[str, int], remarks: Mapping[str, str]) -> None:
    """Left and right, which belong into the item of the type, and the remarks; highdicom has no place for either."""
    items = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
    for number, name in enumerate(segments, 1):
        meaning: Coded = coded(name)
        if meaning.side is not None:
            kind = items[number].SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [sequence_item(meaning.side)]
        if name in remarks:
            items[number].SegmentDescription = remarks[name][:_LONGEST_TEXT]


def highdicom() -> Any:
    """The module highdicom; raises :class:`~deepatlas.errors.DeepAtlasError` where it is not installed."""
    try:
        import highdicom as module
    except ImportError as error:
        raise DeepAtlasError(
            "writing DICOM-SEG needs highdicom, which is not installed; pip install 'deepatlas[dicom]'"
        ) from error
    return module


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
