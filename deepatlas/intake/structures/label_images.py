"""Structures painted as label images: NIfTI, NRRD and MetaImage on the grid of the CT, in any order of the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.intake.privacy.names import clean_name
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.found import Found
from deepatlas.io.segments import Segments, read_segment_masks, read_segments
from deepatlas.io.structures.contents import Structure
from deepatlas.io.structures.drawing import (
    Drawing,
    LabelSource,
    Patch,
    place,
    shares_lattice,
    without_path,
)
from deepatlas.io.structures.ignored import EmptyStructure
from deepatlas.names.meet import compact
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask

# A label image with one of these words in its name is not named after a structure, but probably after a patient.
_GENERIC = frozenset(
    ("seg", "segmentation", "label", "labels", "mask", "masks", "annotation", "groundtruth", "gt")
)


class Naming(NamedTuple):
    """What the place of a label image tells of its names.

    ``structure`` is the one that the name of a mask states ("" if its name states none). ``alone``: the image is one of
    several masks, each in a file of its own, so that a label table does not number it.
    """

    structure: str
    alone: bool = False


class LabelImage:
    """A label image in NIfTI, NRRD or MetaImage. Its voxels are read when it is checked against the grid of the CT."""

    def __init__(self, file: Found) -> None:
        self.file = file
        self.table: dict[str, int] = {}
        self.segments: Segments | None = None

    def source(self, table: Mapping[str, int] | None, naming: Naming | None = None) -> LabelSource:
        """What the image holds according to ``table``, else to its header, else to the name of its file.

        ``naming`` is what its place tells; without it, the stem of a file without a word as "seg" is a structure.
        """
        stem = PurePath(self.file.name).name
        stem = stem[: len(stem) - len(image_suffix(stem))]
        if naming is None:
            naming = Naming(stem if _GENERIC.isdisjoint(clean_name(stem).split("_")) else "")
        self.table = dict(table or {})
        # liver.nii.gz beside heart.nii.gz: each is a mask, whose 1 is not the 1 of the table.
        known = {compact(name) for name in self.table}
        if naming.alone or not known.isdisjoint((compact(stem), compact(naming.structure))):
            self.table = {}
            table = None
            naming = naming if naming.structure else Naming(stem)
        self.segments = self._own_names(bool(self.table), bool(naming.structure))
        if self.segments is not None:
            named = zip(self.segments.segments, self.segments.numbers, strict=True)
            self.table, table = {segment.name: number for segment, number in named}, None
        if not self.table and not naming.structure:
            raise DataError(
                "no labels.json, dataset.json or dseg.tsv names its structures; write a labels.json, for example "
                '{"liver": 1}'
            )
        given = bool(self.table and table)
        drawings = [
            Drawing(Structure(name, value, given=given), partial(self.draw, value))
            for name, value in (self.table or {naming.structure: 0}).items()
        ]
        return LabelSource(drawings, check=self.check)

    def _own_names(self, table: bool, alone: bool) -> Segments | None:
        """The segments that the header names, unless a table, or the file's name if there is one segment, tell more.

        A header was written for its own file, so that it counts before the table of a folder and the file's name,
        unless it has nothing but names that 3D Slicer gives by itself.
        """
        try:
            found = read_segments(self.file.path)
        except DataError as error:
            raise DataError(without_path(error, self.file.path)) from error
        told = table or (alone and found is not None and len(found.segments) == 1)
        if found is None or found.layered or not told:
            return found
        return None if found.unnamed else found

    def check(self, grid: Grid) -> None:
        """Read the voxels; :class:`DataError` if they do not lie on ``grid``, or hold a label without a name."""
        try:
            if self.segments is not None:
                masks, self.grid, _ = read_segment_masks(self.file.path, self.segments.segments)
                numbered = zip(self.segments.numbers, masks, strict=True)
                self.masks = {number: mask for number, mask in numbered if mask.packed.size}
            else:
                self._read()
        except DataError as error:
            raise DataError(without_path(error, self.file.path)) from error
        if not shares_lattice(self.grid, grid):
            corners = self.grid.canonical()[0].corners(), grid.canonical()[0].corners()
            apart = float(np.linalg.norm(corners[0] - corners[1], axis=1).max())
            raise DataError(
                f"its geometry differs from the CT's (corners up to {apart:.1f} mm apart); "
                "draw or resample it on the CT's grid"
            )

    def _read(self) -> None:
        """Read a plain label image."""
        volume = read_volume(self.file.path, labels=True, notes=[])
        self.grid = volume.grid
        high = int(volume.array.max())
        if high > MAX_LABEL:
            raise DataError(f"holds the label {high}, larger than {MAX_LABEL}; renumber the labels")
        boxes = ndimage.find_objects(volume.array.astype(np.int32, copy=False))
        held = {value: box for value, box in enumerate(boxes, 1) if box is not None}
        if not self.table and len(held) > 1:
            raise DataError(f"holds {len(held)} structures that no labels.json names; write one")
        if self.table and (unknown := sorted(set(held) - set(self.table.values()))):
            some = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
            raise DataError(
                f"holds label ids that its label table does not name ({some}); add them or clear them"
            )
        # Packed into bits: if each structure has its own file, all masks are kept until the last one is painted.
        starts = {value: [side.start for side in box] for value, box in held.items()}
        self.masks = {
            value: BoxMask.of(volume.array[box] == value, starts[value]) for value, box in held.items()
        }

    def draw(self, value: int, grid: Grid, notes: list[str]) -> Patch:
        """The voxels of label ``value``, or of the only label in the image if ``value`` is 0."""
        value = value or next(iter(self.masks), 0)
        if value not in self.masks:
            raise EmptyStructure("empty: no voxel holds it")
        packed = self.masks[value]
        mask = packed.array()
        patch, _ = place(mask, self.grid.cropped(packed.start, packed.shape), grid)
        if lost := int(np.count_nonzero(mask)) - int(np.count_nonzero(patch.array)):
            notes.append(f"{lost:,} of its voxels lie beyond the CT; left out")
        return patch
