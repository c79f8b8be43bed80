"""Structures painted as segments: DICOM Segmentation (SEG), binary, fractional and label map.

Frames come in any order and cover any subset of the slices; each states its position. The frames of a segment are
stacked into a volume of their own, which is brought to the grid of the CT voxel by voxel if the two share a lattice,
and by nearest neighbour with a warning otherwise. A fractional segment consists of the voxels with at least half of its
maximum value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels
from scipy import ndimage

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
    place,
)
from deepatlas.io.structures.ignored import EmptyStructure
from deepatlas.space.constants import LPS_SIGNS
from deepatlas.space.grid import Grid

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
# Voxels of the stack of one segment; if there were more, a position would be damaged.
_MAX_VOXELS = 1 << 30
# Frames closer than this (mm) lie in one plane.
_SAME_PLANE = 0.02
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")


def segmentation_contents(dataset: Any) -> LabelContents:
    """The segments of a DICOM-SEG (a pydicom data set, pixels not needed) and what they were drawn on.

    Raises :class:`~deepatlas.errors.DataError` if the file is not a stack of planes, has no segment, or is damaged.
    """
    return _contents(dataset)[0]


def read_dicom_seg(dataset: Any, series: DicomSeries | None = None) -> LabelSource:
    """The segments of a DICOM-SEG (a pydicom data set with its pixels), ready to be drawn.

    ``series`` is the CT's; without it, neither frame of reference nor series is compared. Raises
    :class:`~deepatlas.errors.DataError` if the file was drawn on another series or frame of reference, is not a stack
    of planes, or is damaged.
    """
    contents, stack = _contents(dataset)
    return LabelSource([Drawing(s, partial(stack.draw, s.number)) for s in contents.drawn_on(series)])


def _contents(dataset: Any) -> tuple[LabelContents, _Stack]:
    with dicom_errors("the DICOM-SEG"):
        kind = str(dataset.get("SegmentationType") or "")
        if kind not in _KINDS:
            raise DataError("the DICOM-SEG has no known SegmentationType; export it as BINARY or FRACTIONAL")
        referenced = dataset.get("ReferencedSeriesSequence") or []
        reference = Reference(
            str(dataset.get("FrameOfReferenceUID") or ""),
            frozenset(str(item.SeriesInstanceUID) for item in referenced if item.get("SeriesInstanceUID")),
            frozenset(
                str(image.ReferencedSOPInstanceUID)
                for item in referenced
                for image in item.get("ReferencedInstanceSequence") or []
            ),
        )
        segments = {int(item.SegmentNumber): item for item in dataset.get("SegmentSequence") or []}
        structures = tuple(
            Structure(str(item.get("SegmentLabel") or ""), number)
            for number, item in segments.items()
            # The background of a label map may be described as a segment.
            if not (kind == "LABELMAP" and number == 0)
        )
        stack = _Stack(dataset, kind)
    if not structures:
        raise DataError("the DICOM-SEG describes no segment; export it again")
    return LabelContents(structures, (reference,)), stack


@dataclass
class _Frame:
    """One frame: the number of its segment (0 in a label map), and the position of its first voxel in RAS mm."""

    index: int
    segment: int
    position: NDArray[np.float64]


class _Stack:
    """The frames of a DICOM-SEG in space."""

    def __init__(self, dataset: Any, kind: str) -> None:
        self.dataset = dataset
        self.kind = kind
        self.shape = (int(dataset.Rows), int(dataset.Columns))
        # The voxels of a label map, decoded once, and the boxes of its labels.
        self._labels: tuple[NDArray, list] | None = None
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        orientations, spacings, self.frames = [], [], []
        for index, own in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or []):
            orientation = _group("PlaneOrientationSequence", own, shared)
            position = _group("PlanePositionSequence", own, shared)
            measures = _group("PixelMeasuresSequence", own, shared)
            if orientation is None or position is None or measures is None:
                raise DataError(
                    "frames of the DICOM-SEG have no position, orientation or spacing (as on microscope slides); "
                    "give one that was drawn on the CT"
                )
            segment = 0
            if kind != "LABELMAP":
                named = _group("SegmentIdentificationSequence", own, shared)
                segment = int(named.ReferencedSegmentNumber)
            orientations.append([float(v) for v in orientation.ImageOrientationPatient])
            spacings.append([float(v) for v in measures.PixelSpacing])
            self.frames.append(
                _Frame(
                    index, segment, np.array([float(v) for v in position.ImagePositionPatient]) * LPS_SIGNS
                )
            )
            self.step = abs(float(measures.get("SpacingBetweenSlices") or 0))
            self.thickness = abs(float(measures.get("SliceThickness") or 0))
        if not self.frames:
            raise DataError("the DICOM-SEG has no frame; export it again")
        stated = int(dataset.get("NumberOfFrames") or 0)
        if stated != len(self.frames):
            raise DataError(
                f"the DICOM-SEG states {stated} frames and describes {len(self.frames)}; export it again"
            )
        if np.ptp(orientations, axis=0).max() > 1e-4 or np.ptp(spacings, axis=0).max() > 1e-4:
            raise DataError("frames of the DICOM-SEG differ in orientation or spacing; export one volume")
        cosines = np.array(orientations[0]).reshape(2, 3) * LPS_SIGNS
        # The distances between rows and between columns.
        rows, columns = spacings[0]
        self.along_x, self.along_y = cosines[0] * columns, cosines[1] * rows
        self.normal = np.cross(cosines[0], cosines[1])
        places = np.array([frame.position for frame in self.frames])
        if not (np.isfinite(places).all() and np.isfinite(cosines).all() and rows > 0 and columns > 0):
            raise DataError("the DICOM-SEG's geometry is damaged; export it again")
        if np.abs(np.linalg.norm([*cosines, self.normal], axis=1) - 1).max() > 1e-3:
            raise DataError("the DICOM-SEG's rows and columns are not at right angles; export it again")
        aside = (places - places[0]) - np.outer((places - places[0]) @ self.normal, self.normal)
        # The slices of a CT with a tilted gantry are shifted too.
        self.shifted = bool(np.linalg.norm(aside, axis=1).max() > ON_GRID * min(rows, columns))

    def draw(self, number: int, grid: Grid, notes: list[str]) -> Patch:
        """The voxels of segment ``number`` on ``grid``."""
        with dicom_errors("the pixel data of the DICOM-SEG"):
            frames = [frame for frame in self.frames if frame.segment in (0, number)]
            if not frames:
                raise EmptyStructure("empty: no frame holds it")
            own = None if self.shifted else self._own_grid(self.frames if self._all_in_one else frames, grid)
            if own is None:
                return self._frame_by_frame(number, frames, grid, notes)
            if self._all_in_one:
                return self._from_label_map(number, own, grid, notes)
            volume = np.zeros(own.shape, dtype=bool)
            for index, frame in zip(self._slices(frames, own), self._decoded(frames), strict=True):
                # Two frames at one position are joined.
                volume[index] |= self._inside(frame, number)
            return _onto(volume, own, grid, notes)

    @property
    def _all_in_one(self) -> bool:
        return self.kind == "LABELMAP"

    def _inside(self, frame: NDArray, number: int) -> NDArray[np.bool_]:
        if self._all_in_one:
            return frame == number
        if self.kind == "FRACTIONAL":
            return frame >= float(self.dataset.get("MaximumFractionalValue") or 255) / 2
        return frame > 0

    def _frame_by_frame(self, number: int, frames: list[_Frame], grid: Grid, notes: list[str]) -> Patch:
        """Draw frames that are no regular stack: each on the nearest slice of the CT, voxel by voxel if it fits."""
        cosines = np.abs(grid.affine[:3, :3].T / np.array(grid.spacing)[:, None] @ self.normal)
        if cosines.max() < 0.999:
            raise DataError("its frames are unevenly spaced and not parallel to the CT's slices; resample it")
        affine = np.eye(4)
        affine[:3, :3] = np.stack(
            [self.along_x, self.along_y, self.normal * grid.spacing[int(cosines.argmax())]], axis=1
        )
        drawn, held, same = np.zeros(grid.shape, dtype=bool), 0, True
        for frame, pixels in zip(frames, self._decoded(frames), strict=True):
            mask = self._inside(pixels, number)
            if mask.any():
                affine[:3, 3] = frame.position
                patch, exact = place(mask[None], Grid((1, *self.shape), affine), grid)
                drawn[patch.box] |= patch.array
                held, same = held + int(np.count_nonzero(mask)), same and exact
        if not held:
            raise EmptyStructure("empty: no voxel holds it")
        if not same:
            notes.append("drawn on uneven or shifted slices; taken on the CT's nearest voxels")
        elif (lost := held - int(np.count_nonzero(drawn))) > 0:
            notes.append(f"{lost:,} of its voxels lie beyond the CT; left out")
        return Patch((0, 0, 0), drawn)

    def _from_label_map(self, number: int, own: Grid, grid: Grid, notes: list[str]) -> Patch:
        if self._labels is None:
            volume = np.zeros(own.shape, dtype=np.uint16)
            background = self.dataset.get("PixelPaddingValue") or 0
            for index, frame in zip(self._slices(self.frames, own), self._decoded(self.frames), strict=True):
                volume[index] = np.where(frame == background, volume[index], frame)
            self._labels = volume, ndimage.find_objects(volume.astype(np.int32))
        volume, boxes = self._labels
        if number > len(boxes) or boxes[number - 1] is None:
            raise EmptyStructure("empty: no voxel holds it")
        box = boxes[number - 1]
        part = own.cropped([side.start for side in box], [side.stop - side.start for side in box])
        return _onto(volume[box] == number, part, grid, notes)

    def _own_grid(self, frames: list[_Frame], target: Grid) -> Grid | None:
        """A regular grid that holds all ``frames`` and any slices missing between them; None if there is none."""
        along = np.array([frame.position @ self.normal for frame in frames])
        first, depth, step = frames[int(along.argmin())].position, 1, 0.0
        offsets = along - along.min()
        for step in self._steps(target):
            if (depth := round(float(offsets.max()) / step) + 1) > 1:
                # A stated distance is rounded.
                step = float(offsets.max()) / (depth - 1)
            if np.abs(offsets / step - np.round(offsets / step)).max() <= ON_GRID:
                break
        else:
            return None
        if depth * self.shape[0] * self.shape[1] > _MAX_VOXELS:
            raise DataError("its frames lie too far apart for one volume; export it again")
        affine = np.eye(4)
        affine[:3, :3] = np.stack([self.along_x, self.along_y, self.normal * step], axis=1)
        affine[:3, 3] = first
        return Grid((depth, *self.shape), affine)

    def _steps(self, target: Grid) -> list[float]:
        """Distances between slices that the frames may have, the most likely first.

        A file may leave out empty frames, so that the smallest distance between its frames is a multiple of the true
        one, and may state the spacing of another series. A distance that is both stated and observed goes first, then
        the CT's own.
        """
        along = np.sort([frame.position @ self.normal for frame in self.frames])
        gaps = np.diff(along)
        seen = float(min(gaps[gaps > _SAME_PLANE], default=0))
        cosines = np.abs(target.affine[:3, :3].T / np.array(target.spacing)[:, None] @ self.normal)
        across = target.spacing[int(cosines.argmax())]
        steps = [self.step] if seen and abs(self.step / seen - 1) < ON_GRID else []
        steps += [across] if cosines.max() > 0.999 else []
        return [step for step in (*steps, seen, self.step, self.thickness, across) if step > _SAME_PLANE]

    def _slices(self, frames: list[_Frame], own: Grid) -> list[int]:
        return [
            round(float((frame.position - own.affine[:3, 3]) @ self.normal) / own.spacing[2])
            for frame in frames
        ]

    def _decoded(self, frames: list[_Frame]) -> Iterator[NDArray]:
        """The pixels (rows, columns) of every frame."""
        if self.packed is None:
            yield from iter_pixels(self.dataset, indices=[frame.index for frame in frames], raw=True)
            return
        size = self.shape[0] * self.shape[1]
        for frame in frames:
            # pydicom cannot read single frames that do not begin at a byte.
            begin, end = frame.index * size, (frame.index + 1) * size
            bits = np.unpackbits(self.packed[begin // 8 : -(-end // 8)], bitorder="little")
            yield bits[begin % 8 : begin % 8 + size].reshape(self.shape)

    @cached_property
    def packed(self) -> NDArray[np.uint8] | None:
        """The pixel bytes of an uncompressed one-bit SEG; None for every other file."""
        syntax = str(self.dataset.file_meta.TransferSyntaxUID)
        if int(self.dataset.BitsAllocated) != 1 or syntax not in _NATIVE:
            return None
        data = np.frombuffer(self.dataset.PixelData, dtype=np.uint8)
        needed = -(-len(self.frames) * self.shape[0] * self.shape[1] // 8)
        if len(data) < needed:
            raise DataError(f"the DICOM-SEG is truncated, {len(data)} of {needed} bytes of pixels are there")
        return data


def _group(name: str, own: Any, shared: Any) -> Any:
    """The item of a functional group, of the frame or shared by all; None where neither has it."""
    for groups in (own, shared):
        if groups is not None and (items := groups.get(name)):
            return items[0]
    return None


def _onto(volume: NDArray[np.bool_], own: Grid, grid: Grid, notes: list[str]) -> Patch:
    patch, exact = place(volume, own, grid)
    if not volume.any():
        raise EmptyStructure("empty: no voxel holds it")
    if not exact:
        notes.append("drawn on another grid than the CT's; resampled with nearest neighbour")
    elif lost := int(np.count_nonzero(volume)) - int(np.count_nonzero(patch.array)):
        notes.append(f"{lost:,} of its voxels lie beyond the CT; left out")
    return patch if patch.array.size else empty_patch()
