"""What the network's grid shows of the inside of structures: their values where nothing of the surface is mixed in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.at_points import at_points


@torch.no_grad()
def inner_values(
    found: ExamMap, template: Template, rows: Iterable[int], shown: NDArray[np.bool_]
) -> dict[int, float]:
    """The mean value of the exam in the inner half of some masks of a template, as coordinates alone carry them.

    The voxels of the network mix what lies at the surface.

    Args:
        found: the coordinates of the exam, and what the network saw.
        template: the masks.
        rows: the masks that are looked at.
        shown: ``[S, S, S]``, the voxels that count, from :func:`~deepatlas.index.in_view.in_view`.

    Returns the means by row; a mask without a voxel has none.
    """
    counts = torch.from_numpy(shown)
    coords = found.field.on(found.grid).clamp(-1, 1)
    array = np.asarray(found.hu.array, dtype=np.float64)
    last = np.array(template.masks.shape[:0:-1]) - 1
    means = {}
    for row in rows:
        level = template.thresholds[row]
        low, high = torch.from_numpy(template.supports[row] / last * 2 - 1).to(coords)
        near = ((coords >= low[:, None, None, None]) & (coords <= high[:, None, None, None])).all(0)
        near &= counts.to(near.device)
        if not near.any():
            continue
        mask = torch.from_numpy(template.masks[row]).to(coords)[None, None]
        value = at_points(mask, coords[:, near][None]).flatten().cpu().numpy()
        inside = value >= level
        if not inside.any():
            continue
        inner = value >= max(level, float(np.median(value[inside])))
        means[row] = float(array[near.cpu().numpy()][inner].mean())
    return means
