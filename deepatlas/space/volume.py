"""A voxel array together with its position in physical space."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deepatlas.space.grid import Grid


@dataclass(repr=False)
class Volume:
    """``array`` (D, H, W) on ``grid``: Hounsfield units for a CT, integer ids for a label image.

    ``name`` is the file or exam of its origin, which messages name. ``modality`` is ``"CT"`` or ``"MR"`` where the
    DICOM header or the name of the file says it.

    Raises ValueError if the shapes of array and grid differ.
    """

    array: NDArray
    grid: Grid
    name: str = ""
    modality: str = field(default="", kw_only=True)
    # Writes a volume to a path. Image files are the subject of deepatlas.io, which sets this when it is imported.
    writer: ClassVar[Callable[[str | os.PathLike[str], Volume], Path] | None] = None

    def __post_init__(self) -> None:
        self.array = np.asarray(self.array)
        if tuple(self.array.shape) != self.grid.shape:
            raise ValueError(
                f"Volume: array of shape {self.array.shape} on a grid of shape {self.grid.shape}"
            )

    def __repr__(self) -> str:
        name = f", {self.name!r}" if self.name else ""
        return f"{type(self).__name__}({self._facts()}{name})"

    def _facts(self) -> str:
        return f"{self.array.dtype} on {self.grid!r}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the volume as an image file: ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.

        Returns the path. Raises :class:`~deepatlas.errors.DataError` for another suffix, or if it cannot be written.
        """
        if Volume.writer is None:
            raise RuntimeError("Volume.save: import deepatlas.io.codec first, which writes image files")
        return Volume.writer(path, self)

    def canonical(self) -> Volume:
        """The same voxels in the closest RAS+ order: axes are permuted and flipped, and nothing is resampled."""
        grid, axes, flips = self.grid.canonical()
        array = np.ascontiguousarray(self.array.transpose(axes))
        if flips:
            # Copied explicitly: NumPy takes a flipped axis of one voxel for contiguous, but PyTorch does not.
            array = np.flip(array, flips).copy()
        return replace(self, array=array, grid=grid)

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Volume:
        """The box of ``shape`` at voxel ``start`` (both z, y, x); ValueError if it is not inside the array."""
        box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        if any(b.start < 0 or b.stop > n for b, n in zip(box, self.grid.shape, strict=True)):
            raise ValueError(
                f"Volume: crop {tuple(start)} + {tuple(shape)} leaves the array {self.grid.shape}"
            )
        return replace(
            self, array=np.ascontiguousarray(self.array[box]), grid=self.grid.cropped(start, shape)
        )
