"""Segments of 3D Slicer: a ``.seg.nrrd`` names them in its header, and puts those that overlap on layers of their own.

A file of one layer is a 3-D label image. A file of several is 4-D: each voxel has one label value for each layer, and
the same value may mean another segment on another layer (``Segment0_Layer``, ``Segment0_LabelValue``,
``Segment0_Name``). Files of before layers have one layer for each segment, and state neither layer nor value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.codec import image_suffix, read_layers
from deepatlas.io.itk import itk_reads, simpleitk
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask

_NUMBER = re.compile(r"[0-9]{1,6}")
# What 3D Slicer calls a segment to which nobody has given a name.
_UNNAMED = re.compile(r"Segment[ _]\d+")
_AGAIN = "save it again with 3D Slicer"


@dataclass(frozen=True)
class Segment:
    """One segment of a header: its name, and the label value that its voxels have on its layer."""

    name: str
    layer: int
    value: int


@dataclass(frozen=True)
class Segments:
    """The segments of a file. ``layers`` is the number of values of each voxel."""

    segments: tuple[Segment, ...]
    layers: int

    @property
    def layered(self) -> bool:
        """Whether the file is no plain label image."""
        return self.layers > 1

    @property
    def unnamed(self) -> bool:
        """Whether nobody has given any of them a name."""
        return all(_UNNAMED.fullmatch(segment.name) for segment in self.segments)

    @property
    def numbers(self) -> list[int]:
        """An id for each segment: its label value, or, where several layers use one value, its place from 1 on."""
        values = [segment.value for segment in self.segments]
        return values if len(set(values)) == len(values) else list(range(1, len(values) + 1))


def read_segments(path: Path) -> Segments | None:
    """The segments that the header of an NRRD names; None for other files, and without a named segment.

    Raises :class:`~deepatlas.errors.DataError` if the header contradicts itself.
    """
    suffix = image_suffix(path)
    if suffix not in (".nrrd", ".nhdr"):
        return None
    reader = simpleitk().ImageFileReader()
    try:
        with itk_reads(path, suffix) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except (RuntimeError, OSError):
        # Reading the voxels will report what is wrong.
        return None
    fields = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
    layers = reader.GetNumberOfComponents()
    found: list[Segment] = []
    numbers = sorted(int(m[1]) for key in fields if (m := re.fullmatch(r"Segment([0-9]{1,6})_Name", key)))
    for number in numbers:
        prefix = f"Segment{number}_"
        name = fields[f"{prefix}Name"]
        value, layer = fields.get(f"{prefix}LabelValue"), fields.get(f"{prefix}Layer")
        if value is None and layers == 1:
            # Not of 3D Slicer, or of a version whose files of one segment are plain masks.
            continue
        # Without layers in the header, each segment has one.
        layer = layer or (str(number) if value is None else "0")
        value = value or "1"
        if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= MAX_LABEL:
            raise DataError(f"{path}: its header gives a segment a label value that is no id; {_AGAIN}")
        if not _NUMBER.fullmatch(layer) or not int(layer) < layers:
            raise DataError(f"{path}: its header puts a segment on a layer that it does not have; {_AGAIN}")
        segment = Segment(name, int(layer), int(value))
        if any(s.name == name or (s.layer, s.value) == (segment.layer, segment.value) for s in found):
            raise DataError(f"{path}: its header names a segment twice; rename it and save it again")
        found.append(segment)
    if layers > 1 and not found:
        # A colour or vector image, which its reader will refuse.
        return None
    return Segments(tuple(found), layers) if found else None


def read_segment_masks(path: Path, segments: Sequence[Segment]) -> tuple[list[BoxMask], Grid, list[str]]:
    """The whole mask of each segment, the grid of the file, and a line for each oddity.

    Raises :class:`~deepatlas.errors.DataError` if the voxels cannot be read, or hold a value that no segment has.
    """
    layers, grid, notes = read_layers(path)
    for index, layer in enumerate(layers):
        known = {segment.value for segment in segments if segment.layer == index}
        if unknown := sorted({int(v) for v in np.unique(layer)} - known - {0}):
            some = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
            where = f" on layer {index}" if len(layers) > 1 else ""
            raise DataError(
                f"{path}: holds label ids{where} that its header does not name ({some}); {_AGAIN}"
            )
    return [BoxMask.of(layers[s.layer] == s.value) for s in segments], grid, notes
