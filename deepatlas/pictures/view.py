"""Views: which slice of a volume is shown, and which way round.

Arrays are in canonical (closest RAS) order ``[D, H, W]``: z to the head, y to the front, x to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepatlas.errors import DeepAtlasError

PLANES = ("axial", "coronal", "sagittal")
# The array axis along which the slices of each plane follow each other.
FIXED_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
CONVENTIONS = ("radiological", "neurological")


@dataclass(frozen=True)
class View:
    """How a plane of a canonical volume is shown. Images, contours and side letters all use the same orientation.

    Raises :class:`~deepatlas.errors.DeepAtlasError` for an unknown plane or convention.
    """

    plane: str
    convention: str = "radiological"

    def __post_init__(self) -> None:
        if self.plane not in PLANES or self.convention not in CONVENTIONS:
            raise DeepAtlasError(
                f"View: plane must be one of {PLANES} and convention one of {CONVENTIONS}, "
                f"got {self.plane!r}, {self.convention!r}"
            )

    def slice(self, array: np.ndarray, index: int) -> np.ndarray:
        """Slice ``index`` of ``[..., D, H, W]`` as ``[..., rows, columns]``, from the top left of the picture."""
        return self.orient(np.take(array, index, axis=array.ndim - 3 + FIXED_AXIS[self.plane]))

    def orient(self, plane: np.ndarray) -> np.ndarray:
        """Turn a plane ``[..., rows, columns]`` in array order into the picture's order."""
        # The front (axial) or the head (coronal, sagittal) is at the top.
        plane = plane[..., ::-1, :]
        # Sagittal planes have the front on the left; the radiological convention has the patient's right on the left.
        flip = self.plane == "sagittal" or self.convention == "radiological"
        return plane[..., ::-1] if flip else plane

    def aspect(self, spacing: Sequence[float]) -> float:
        """The height of a pixel divided by its width; ``spacing`` is (x, y, z) in mm."""
        x, y, z = spacing
        return {"axial": y / x, "coronal": z / x, "sagittal": z / y}[self.plane]

    def letters(self) -> tuple[str, str]:
        """The letters of the left and the right edge of the picture."""
        if self.plane == "sagittal":
            return "A", "P"
        return ("R", "L") if self.convention == "radiological" else ("L", "R")


def choose_slices(labels: np.ndarray, ids: Sequence[int] | None = None) -> tuple[int, int, int]:
    """The slice of each plane (z, y, x) that crosses the most structures of a label image ``[D, H, W]``.

    Among equal slices it is the one that is nearest to the mean of the structures' centroids. ``ids`` restricts the
    choice to these structures. An image without labels gives the middle slices.
    """
    found = [i for i in (ids if ids is not None else np.unique(labels)) if i]
    centre = [(n - 1) / 2 for n in labels.shape]
    counts = [np.zeros(n) for n in labels.shape]
    centroids = []
    for identity in found:
        mask = labels == identity
        if not mask.any():
            continue
        profiles = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        centroids.append([float(p @ np.arange(len(p)) / p.sum()) for p in profiles])
        # A slice crosses a structure if it shows at least a third of the structure's largest cross-section.
        for axis in range(3):
            counts[axis] += profiles[axis] >= profiles[axis].max() / 3
    if centroids:
        centre = np.mean(centroids, axis=0).tolist()
    best = []
    for axis in range(3):
        rank = counts[axis] - np.abs(np.arange(labels.shape[axis]) - centre[axis]) / (2 * labels.shape[axis])
        best.append(int(np.argmax(rank)))
    return best[0], best[1], best[2]
