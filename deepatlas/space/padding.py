"""Constants around an image, which a program put there: no single value covers a region of a measured image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# The share of the surface of the image that a constant must cover to be padding.
SURFACE = 0.005


def surface_constant(array: NDArray, high: float, above: float | None = None) -> float | None:
    """The value that covers a region at the surface of an image, if there is one.

    Args:
        array: the image, of at least one axis with two voxels.
        high: the highest value of the image. It is bright tissue where an image was clipped, and padding only if it
            covers much of the surface.
        above: values up to this are left out.
    """
    flat, total = [], 0
    for axis, length in enumerate(array.shape):
        if length < 2:
            continue
        for outer, inner in ((0, 1), (-1, -2)):
            face, below = array.take(outer, axis), array.take(inner, axis)
            total += face.size
            same = face == below
            # The neighbours within the face are the same, too.
            for along in (0, 1):
                same[(slice(None),) * along + (slice(1, None),)] &= np.diff(face, axis=along) == 0
            flat.append(face[same if above is None else same & (face > above)])
    if not total:
        return None
    found, counts = np.unique(np.concatenate(flat), return_counts=True)
    for index in np.argsort(-counts)[:2]:
        if counts[index] >= total * (0.1 if found[index] == high else SURFACE):
            return float(found[index])
    return None


def at_surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The regions of a mask that reach the surface of the array."""
    regions, count = ndimage.label(mask)
    touching = np.zeros(count + 1, dtype=bool)
    for axis in range(mask.ndim):
        touching[regions.take(0, axis)] = touching[regions.take(-1, axis)] = True
    touching[0] = False
    return touching[regions]
