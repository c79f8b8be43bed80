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
from deepatlas.localize.template.file import Template, volume_keeping
from deepatlas.space.check_input import check_input
from deepatlas.space.volume import Volume

# A blurred mask keeps its volume at this value at least.
_LEAST_LEVEL = 0.35


def with_appearance(template: Template, counts: Counts) -> Template:
    """A template that has just been solved for, with what was counted in its examples.

    Its masks become probabilities (see :func:`softened`), and ``meta["appearance"]`` says how they were made.
    """
    appearance = counts.appearance(template.names)
    masks = softened(template.masks, template.names, counts.exams, counts.error)
    about = {
        "error_mm": round(appearance.scale_mm, 3),
        "exams": {name: counts.exams.get(name, 0) for name in template.names},
    }
    return replace(template, masks=masks, meta=template.meta | {"appearance": about}, appearance=appearance)


def seen(volume: Volume, intensity: str) -> Volume:
    """An exam with values as the network takes them, for :meth:`Counts.add`. Whoever mapped it has told what is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return check_input(volume, intensity)[0]


def softened(
    masks: NDArray[np.float32], names: Sequence[str], exams: Mapping[str, int], error: float
) -> NDArray[np.float32]:
    """Masks as probabilities: blurred by the error of the coordinates, less so if they are the mean of many examples.

    A structure that is small against the error is blurred less. The mean of n examples is blurred by itself, and what
    is left is the error of a mean: less by the root of n.

    Args:
        masks: ``[K, D, H, W]`` on the corner-aligned grid of [-1, 1]^3.
        names: of the K structures.
        exams: the number of examples of each.
        error: of one example, in units of the coordinates.
    """
    voxel = 2 / (np.array(masks.shape[1:]) - 1)
    out = masks.copy()
    for row, name in enumerate(names):
        sigma = error / math.sqrt(max(1, exams.get(name, 1))) / voxel
        while (sigma > 0.25).any():
            ndimage.gaussian_filter(masks[row], sigma, output=out[row], mode="nearest")
            if volume_keeping(out[row]) >= _LEAST_LEVEL:
                break
            # A structure that is small against the error would vanish.
            sigma, out[row] = sigma / 2, masks[row]
    return out
