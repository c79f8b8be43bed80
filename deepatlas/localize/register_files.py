"""The files of a registration: moved exams, overlaps, transforms of ITK and determinants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deepatlas.io.codec import write_volume
from deepatlas.io.export.transform import write_displacements, write_transform
from deepatlas.io.values import whole_hounsfield
from deepatlas.localize.register import Moved, Registration
from deepatlas.space.volume import Volume

SIDES = ("on_fixed", "on_moving")


def registration_paths(folder: Path, displacements: bool = False) -> list[Path]:
    """The files that :func:`write_registration` may write."""
    names = ["moved.nii.gz", "overlap.nii.gz", "jacobian.nii.gz", "transform.h5"]
    names += ["displacements.nii.gz"] if displacements else []
    return [folder / side / name for side in SIDES for name in names]


def write_registration(folder: Path, found: Registration, displacements: bool = False) -> dict[str, str]:
    """Write both directions into ``folder/on_fixed`` and ``folder/on_moving``.

    Each gets ``moved.nii.gz``, the other exam on its own grid; ``overlap.nii.gz``, 1 where it means something;
    ``transform.h5``, the transform that pulls it, of ITK; ``jacobian.nii.gz``, the determinant of a deformation on the
    grid of its residual; and with ``displacements`` a NIfTI of intent 1007 on that grid.

    Returns:
        The path of each file, by a name such as ``"on_fixed/moved"``.
    """
    written: dict[str, str] = {}
    for side, moved in zip(SIDES, (found.on_fixed, found.on_moving), strict=True):
        place, transform = folder / side, moved.transform
        volume = moved.volume
        if found.intensity == "hu":
            volume = replace(volume, array=whole_hounsfield(volume.array))
        written[f"{side}/moved"] = str(write_volume(place / "moved.nii.gz", volume))
        overlap = Volume(moved.overlap.astype(np.uint8), moved.volume.grid)
        written[f"{side}/overlap"] = str(write_volume(place / "overlap.nii.gz", overlap))
        path = write_transform(place / "transform.h5", transform.matrix, transform.residual, transform.grid)
        written[f"{side}/transform"] = str(path)
        if transform.grid is not None:
            written[f"{side}/jacobian"] = str(write_volume(place / "jacobian.nii.gz", moved.jacobian))
        if displacements:
            written[f"{side}/displacements"] = str(_displacements(place / "displacements.nii.gz", moved))
    return written


def _displacements(path: Path, moved: Moved) -> Path:
    """Displacements on the grid of the deformation; those of an affine map on a coarse grid of the exam, exactly."""
    transform = moved.transform
    grid = transform.grid or moved.volume.grid.resized([min(n, 8) for n in moved.volume.grid.shape])
    places = grid.places()
    there = transform.apply(places.reshape(-1, 3)).reshape(places.shape)
    return write_displacements(path, np.moveaxis(there - places, -1, 0), grid)
