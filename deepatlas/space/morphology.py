"""Erosion, dilation and opening of masks by their direct neighbours along some axes.

They give what ``scipy.ndimage`` gives for a cross of three voxels, in a fraction of its time: whole arrays are shifted
by a voxel, where it looks up the neighbours of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# The neighbourhood of a voxel in its axial slice.
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)

Mask = NDArray[np.bool_]


def eroded(mask: Mask, axes: Sequence[int] = (0, 1, 2)) -> Mask:
    """The voxels all of whose neighbours along ``axes`` are in the mask; beyond the array nothing is."""
    out = mask.copy()
    for axis in axes:
        there, here = np.moveaxis(mask, axis, 0), np.moveaxis(out, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[0] = here[-1] = False
    return out


def dilated(mask: Mask, axes: Sequence[int] = (0, 1, 2)) -> Mask:
    """The voxels that are in the mask, or next to it along one of ``axes``."""
    out = mask.copy()
    for axis in axes:
        there, here = np.moveaxis(mask, axis, 0), np.moveaxis(out, axis, 0)
        here[1:] |= there[:-1]
        here[:-1] |= there[1:]
    return out


def opened(mask: Mask, axes: Sequence[int] = (0, 1, 2)) -> Mask:
    """The mask without what is too thin to be left by an erosion."""
    return dilated(eroded(mask, axes), axes)


def filled_slices(mask: Mask) -> Mask:
    """The mask ``[D, H, W]`` with the holes of every axial slice filled: what is not joined to the border of its slice.

    It gives what ``scipy.ndimage.binary_fill_holes`` gives of each slice, which spreads from the border step by step.
    """
    regions, count = ndimage.label(~mask, _IN_PLANE)
    outer = np.zeros(count + 1, dtype=bool)
    for axis in (1, 2):
        for face in (0, -1):
            outer[regions.take(face, axis)] = True
    # The mask itself.
    outer[0] = False
    found: Mask = ~outer[regions]
    return found
