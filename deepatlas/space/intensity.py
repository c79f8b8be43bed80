"""Images whose values have no unit, such as MR: brought to one scale, and where they show the patient.

The scale is that of the network's input, so that everything behind it is the same as for CT: the window of
:func:`~deepatlas.space.preprocess.normalize` is -256 to 256, and what lies outside the field of view is -1024, which is
``AIR``, far below the darkest tissue.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.space.constants import AIR, HU_RANGE
from deepatlas.space.padding import at_surface, surface_constant
from deepatlas.space.volume import Volume

# The percentiles of the patient between which ``percentile`` stretches, and those that tell dark from bright.
_PERCENTILES = (1.0, 99.0)
# Half the width of the window of ``zscore``, in standard deviations.
_DEVIATIONS = 2.5
# Below this, on the scale of the network, a voxel lies outside the field of view.
_OUTSIDE = (AIR + HU_RANGE[0]) / 2
# The blur in voxels before the thresholds, which are fractions of the range of the percentiles: below the first a voxel
# may be air, and where there is air, above the second it is patient.
_SIGMA, _DARK, _TISSUE = 0.7, 0.1, 0.2
# An image shows air around the patient if this share of its surface is dark. Of the surface of 200 MR crops from
# inside the head, 2 to 11 % were; around a whole head it is more than half.
_AIR_SURFACE = 0.25
# Fewer different values are a label image or a mask, and no measured image.
_FEWEST_VALUES = 16
# Statistics are taken of about this many voxels along each axis.
_SAMPLES = 128


def to_scale(volume: Volume, kind: str) -> Volume:
    """An image on the scale of the network, float32 from -256 to 256, and -1024 where it is padded.

    Padding is a constant that covers a region at the surface of the image, as where it was resampled or masked.

    Args:
        volume: an image of finite numbers on any grid.
        kind: ``"percentile"`` maps the 1st and the 99th percentile of the patient to the ends of the window;
            ``"zscore"`` its mean to the middle, and 2.5 standard deviations to the ends. Values beyond are clipped.

    Raises:
        DataError: the values are not numbers, not finite, too few different ones, or the patient has no contrast.
    """
    name = volume.name or "image"
    array = _finite(volume.array, name)
    constant = surface_constant(array, float(array.max()))
    inside = np.ones(array.shape, dtype=bool) if constant is None else ~at_surface(array == constant)
    some = tuple(slice(None, None, max(1, n // _SAMPLES)) for n in array.shape)
    if (count := len(np.unique(array[some]))) < _FEWEST_VALUES:
        raise DataError(
            f"{name}: holds {count} different values, as a label image or a mask does; give the image"
        )
    body = tissue(array[some], inside[some])
    values = array[some][body].astype(np.float64)
    if kind == "percentile":
        low, high = np.percentile(values, _PERCENTILES)
    else:
        half = _DEVIATIONS * values.std()
        low, high = values.mean() - half, values.mean() + half
    if not high > low:
        raise DataError(
            f"{name}: nearly all voxels of the patient are {low:g}, so it has no contrast; export it again"
        )
    window = HU_RANGE[1] - HU_RANGE[0]
    scaled = ((array.astype(np.float64) - low) * (window / (high - low))).clip(0, window) + HU_RANGE[0]
    return replace(volume, array=np.where(inside, scaled, AIR).astype(np.float32))


def in_view(scaled: NDArray) -> NDArray[np.bool_]:
    """Where an image on the scale of the network lies in the field of view, and is not padding."""
    return scaled > _OUTSIDE


def tissue(array: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The patient in an image of any scale: all that is inside, or, where there is air around the patient, without it.

    There is air if much of the surface is dark. Then the patient is the largest region that is not, with its holes
    filled; the first and the last slice are treated as closed. A crop from within the body is patient everywhere.

    Args:
        array: ``[D, H, W]``.
        inside: what is not padding, of the same shape.
    """
    if not inside.any():
        return inside
    low, high = np.percentile(array[inside], _PERCENTILES)
    values = np.where(inside, array, low).astype(np.float32)
    level = ndimage.gaussian_filter(values, _SIGMA) - low
    surface = inside & ~ndimage.binary_erosion(inside)
    if (level[surface] < _DARK * (high - low)).mean() < _AIR_SURFACE:
        return inside
    return filled(largest(inside & (level >= _TISSUE * (high - low)))) & inside


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with its holes filled, where the first and the last slice of it are treated as closed."""
    mask = mask.copy()
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    for end in {int(slices[0]), int(slices[-1])} if len(slices) else ():
        mask[end] = ndimage.binary_fill_holes(mask[end])
    return ndimage.binary_fill_holes(mask)


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected region of a mask."""
    regions, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return regions == sizes.argmax()


def _finite(array: NDArray, name: str) -> NDArray:
    if array.dtype.kind not in "iuf" or not array.size:
        raise DataError(
            f"{name}: voxels of type {array.dtype} and shape {array.shape}; give an image of numbers"
        )
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}: holds voxels that are NaN or infinite; replace them, for example by 0")
    if low == high:
        raise DataError(f"{name}: every voxel is {low:g}, so the image is empty; export it again")
    return array
