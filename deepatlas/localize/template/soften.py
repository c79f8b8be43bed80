"""A template that also knows what its structures look like: masks as probabilities, and the values of the image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.errors import DataWarning
from deepatlas.localize.template.appearance import Counts
from deepatlas.localize.template.file import Template
from deepatlas.space.check_input import check_input
from deepatlas.space.volume import Volume

# The error of the coordinates, by which a mask of one example is blurred to be a probability. It is that of one pass
# of the shipped model. The mean of n examples is blurred by itself, and needs less.
ERROR_MM = 3.0


def with_appearance(
    template: Template, counts: Counts, mm_per_unit: Sequence[float] | None = None
) -> Template:
    """A template that has just been solved for, with what was counted in its examples.

    ``mm_per_unit`` are the millimetres of a unit of the coordinates; None takes those of the template's ``meta``.

    Its masks become probabilities (see :func:`softened`), and ``meta["appearance"]`` says how they were made.
    """
    scale: Sequence[float] = template.meta["mm_per_unit"] if mm_per_unit is None else mm_per_unit
    masks = softened(template.masks, template.names, counts.exams, scale)
    about = {"error_mm": ERROR_MM, "exams": {n: counts.exams.get(n, 0) for n in template.names}}
    meta = template.meta | {"appearance": about}
    return replace(template, masks=masks, meta=meta, appearance=counts.appearance(template.names))


def seen(volume: Volume, intensity: str) -> Volume:
    """An exam with values as the network takes them, for :meth:`Counts.add`. Whoever mapped it has told what is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return check_input(volume, intensity)[0]


def softened(
    masks: NDArray[np.float32], names: Sequence[str], exams: Mapping[str, int], mm_per_unit: Sequence[float]
) -> NDArray[np.float32]:
    """Masks as probabilities: blurred by the error of the coordinates, less so if they are the mean of many examples.

    Args:
        masks: ``[K, D, H, W]`` on the corner-aligned grid of [-1, 1]^3.
        names: of the K structures.
        exams: the number of examples of each.
        mm_per_unit: millimetres of a unit of the coordinates along x, y and z.
    """
    voxel = 2 / (np.array(masks.shape[:0:-1]) - 1) * np.asarray(mm_per_unit, dtype=np.float64)
    out = masks.copy()
    for row, name in enumerate(names):
        sigma = ERROR_MM / math.sqrt(max(1, exams.get(name, 1))) / voxel[::-1]
        if (sigma > 0.25).any():
            ndimage.gaussian_filter(masks[row], sigma, output=out[row], mode="nearest")
    return out
