"""What the structures of an exam measure: volume, values of the image inside, box and centre."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume

_PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class StructureStatistics:
    """One structure of an exam. Numbers that do not exist, because it has no voxel, are nan.

    Attributes:
        name: the structure.
        id: its id in the label image.
        voxels: the number of voxels of its whole mask, whatever overlaps it.
        ml: its volume.
        mean: the mean of the image inside it: Hounsfield units for a CT.
        p5, p50, p95: percentiles of the image inside it.
        centroid_mm: the mean of the centres of its voxels (x, y, z), RAS mm.
        low_mm: the lower corner of the box around its voxels, faces included, with edges along x, y and z; RAS mm.
        high_mm: the upper corner.
        coverage: the share of the structure, as the template has it, that lies in the field of view of the exam, in
            [0, 1]; None where nobody asked, or the model has no template.
    """

    name: str
    id: int
    voxels: int
    ml: float
    mean: float
    p5: float
    p50: float
    p95: float
    centroid_mm: tuple[float, float, float]
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    coverage: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them: a number that does not exist is null."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def statistics(
    labels: Labels,
    volume: Volume,
    names: Mapping[str, int] | None = None,
    coverage: Mapping[str, float] | None = None,
) -> list[StructureStatistics]:
    """Measure the structures of an exam, overlaps included.

    Args:
        labels: the structures; those that a model found know their names.
        volume: the exam, on the grid of ``labels``.
        names: ``{name: id}``; None takes those of ``labels``, or, where it has none, the ids.
        coverage: the share in the field of view of each structure, by its name.

    Returns one entry for each name, in the order of ``names``, also for structures without a voxel.

    Raises:
        DataError: the grids differ.
    """
    if not labels.grid.matches(volume.grid):
        raise DataError(
            f"{volume.name or 'exam'}: the labels are on another grid ({labels.grid}) than the exam ({volume.grid})"
        )
    if names is None:
        names = getattr(labels, "names", None) or {str(i): i for i in sorted(labels.ids())}
    boxes = labels.boxes()
    shares = coverage or {}
    return [
        _measured(name, identity, labels, volume, boxes.get(identity), shares.get(name))
        for name, identity in names.items()
    ]


def _measured(
    name: str,
    identity: int,
    labels: Labels,
    volume: Volume,
    box: tuple[slice, slice, slice] | None,
    coverage: float | None,
) -> StructureStatistics:
    nothing = (math.nan,) * 3
    share = None if coverage is None or not math.isfinite(coverage) else float(coverage)
    if box is None:
        return StructureStatistics(name, identity, 0, 0.0, *(math.nan,) * 4, nothing, nothing, nothing, share)
    # The box alone is looked at, so that the memory does not grow with the number of structures.
    mask = labels.mask_in(identity, box)
    values = volume.array[box][mask]
    low, middle, high = np.percentile(values, _PERCENTILES)
    centroid, corners = _places(mask, [side.start for side in box], labels.grid)
    return StructureStatistics(
        name,
        identity,
        len(values),
        len(values) * labels.grid.voxel_volume / 1000,
        float(values.mean(dtype=np.float64)),
        float(low),
        float(middle),
        float(high),
        centroid,
        *corners,
        share,
    )  # fmt: skip


def _places(
    mask: NDArray[np.bool_], start: Sequence[int], grid: Grid
) -> tuple[tuple[float, float, float], tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """The centroid of a mask that begins at the voxel ``start``, and the corners of the box around it, in RAS mm."""
    centre = []
    for axis in (2, 1, 0):
        profile = mask.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
        centre.append(start[axis] + float(profile @ np.arange(len(profile)) / profile.sum()))
    # The first and the last voxel of each row decide where an oblique box ends.
    z, y = np.nonzero(mask.any(axis=2))
    rows = mask[z, y]
    ends = [rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)]
    index = np.concatenate([np.stack([x, y, z], axis=1) for x in ends]) + np.array(start[::-1])
    places = grid.voxel_to_world(index)
    half = np.abs(grid.affine[:3, :3]).sum(axis=1) / 2
    centroid = grid.voxel_to_world(centre)
    return _three(centroid), (_three(places.min(axis=0) - half), _three(places.max(axis=0) + half))


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
