"""How the network looks at a whole exam: upright, and at the part of it that the network knows (not in the paper).

The network has learned exams that lie straight in the scanner and show about as much of the body as its training
cohort. An exam that is turned, or that goes far beyond that cohort, is looked at again: turned upright by the affine
map of its own first coordinates, and in windows along the body. The look whose warped atlas fits best is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.errors import DataError
from deepatlas.space.fit_affine import fit_affine
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_mask, normalize, to_model_grid
from deepatlas.space.turned import turned_to_model_grid
from deepatlas.space.upright import upright
from deepatlas.space.volume import Volume

# Networks bear small angles, which their augmentation holds, and every turn takes a pass.
LEAST_DEGREES = 8.0
# No patient lies like that; such coordinates mean nothing.
MOST_DEGREES = 75.0
# By how much the fit may fall when an exam is turned upright: the fit of good exams varies by that much between views.
SLACK = 0.05
# An exam longer than the longest of the training cohort by this factor is looked at in windows as well.
LONGER = 1.15
# By how much neighbouring windows overlap.
OVERLAP = 0.5


@dataclass(frozen=True)
class Look:
    """The exam as the network's input.

    Attributes:
        hu: the exam on the grid of the input, which may be oblique.
        x: ``[1, 1, S, S, S]`` in [0, 1].
        body: ``[S, S, S]``, the foreground (section 5.5.3).
    """

    hu: Volume
    x: Tensor
    body: NDArray[np.bool_]

    @classmethod
    def of(cls, hu: Volume, intensity: str, device: torch.device) -> Look:
        """The look at an exam that is on the grid of the input already."""
        x = normalize(torch.as_tensor(np.ascontiguousarray(hu.array), dtype=torch.float32))
        return cls(hu, x[None, None].to(device), foreground_mask(hu.array, intensity))

    @property
    def mask(self) -> Tensor:
        """``[1, 1, S, S, S]``, the foreground as a weight."""
        return torch.as_tensor(self.body, dtype=self.x.dtype, device=self.x.device)[None, None]


@dataclass(frozen=True)
class Seen:
    """A look and what the network says.

    Attributes:
        look: what the network saw.
        coords: ``[1, 3, s, s, s]``.
        fit: how well the atlas fits that is warped by them (see :func:`deepatlas.model.fit.fit`).
    """

    look: Look
    coords: Tensor
    fit: float


def best_look(
    volume: Volume,
    see: Callable[[Look], Seen],
    *,
    size: int,
    crop: str | None,
    intensity: str,
    device: torch.device,
    longest_mm: float | None = None,
    known: float | None = None,
) -> Seen:
    """Look at an exam, and again where it is turned or far longer than those that the network knows.

    Args:
        volume: the exam, as :func:`~deepatlas.space.check_input.check_input` returns it.
        see: one pass of the network.
        size: voxels along each side of the input.
        crop: how exams are cropped (see :func:`~deepatlas.space.preprocess.to_model_grid`). Without a crop, exams are
            boxes that were cut around one part of the body by whoever made them, and are taken as they are.
        intensity: what the values are (``data.intensity``).
        device: the device of the network.
        longest_mm: the height of the longest exam of the training cohort after cropping; None looks at no windows.
        known: the fit from which the network knows an exam. An exam below it is looked at in windows even if the part
            that was taken for the patient is no longer than ``longest_mm``, since it may be the wrong part.

    Returns:
        The look whose fit is best, with what the network says there.

    Raises:
        DataError: the image shows no patient.
    """

    def seen(hu: Volume) -> Seen:
        return see(Look.of(hu, intensity, device))

    best, part = seen(to_model_grid(volume, size, crop, intensity)), volume
    if crop is None:
        return best
    doubtful = known is not None and not best.fit >= known
    for window in _windows(volume, best.look.hu.grid, longest_mm, doubtful):
        try:
            found = seen(to_model_grid(window, size, crop, intensity))
        except DataError:
            # A window that shows no patient, such as one beyond the feet.
            continue
        if found.fit > best.fit:
            best, part = found, window
    rotation = tilt(best)
    if rotation is None:
        return best
    try:
        turned = seen(turned_to_model_grid(part, rotation, size, crop, intensity))
    except DataError:
        # No patient is found along these axes, so that they are not those of one.
        return best
    return turned if turned.fit >= best.fit - SLACK else best


def tilt(seen: Seen) -> NDArray[np.float64] | None:
    """The axes of a patient, from coordinates: columns (right, front, head) in RAS+ millimetres, ``[3, 3]``.

    They are the rotation of the polar decomposition of the robust affine map from coordinates to millimetres. None
    where the patient lies straight, or where coordinates give no such map.
    """
    grid, body = seen.look.hu.grid, seen.look.body
    coarse = grid.resized(tuple(seen.coords.shape[2:]))
    places = coarse.normalized_to_world(np.moveaxis(coarse.identity(), 0, -1)).reshape(-1, 3)
    coords = seen.coords[0].flatten(1).T.double().cpu().numpy()
    last = np.array(grid.shape[::-1]) - 1
    x, y, z = np.clip(np.rint(grid.world_to_voxel(places)), 0, last).astype(int).T
    held = body[z, y, x]
    try:
        linear = fit_affine(coords[held], places[held])[:3, :3]
    except DataError:
        return None
    left, _, right = np.linalg.svd(linear)
    rotation: NDArray[np.float64] = left @ right
    degrees = math.degrees(math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    if np.linalg.det(rotation) < 0 or not LEAST_DEGREES <= degrees <= MOST_DEGREES:
        return None
    return rotation


def _windows(volume: Volume, seen: Grid, longest_mm: float | None, doubtful: bool) -> Iterator[Volume]:
    """The parts of an exam along the body that are as long as the longest of the training cohort, from the head down.

    None where what was ``seen`` is not longer than that, unless it is ``doubtful`` and the exam is longer.
    """
    if longest_mm is None:
        return
    limit = LONGER * longest_mm
    if seen.extent[2] <= limit and not (doubtful and max(volume.grid.extent) > limit):
        return
    body = upright(volume)
    depth, height, width = body.grid.shape
    keep = min(depth, round(longest_mm / body.grid.spacing[2]))
    count = 1 + math.ceil((depth - keep) / max(1, round(keep * (1 - OVERLAP))))
    for start in np.linspace(depth - keep, 0, count).round().astype(int):
        yield body.cropped((int(start), 0, 0), (keep, height, width))
