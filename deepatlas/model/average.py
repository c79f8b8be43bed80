"""Coordinates averaged over slightly moved views of one exam (test-time averaging; not in the paper).

The network answers each view for itself and its answers differ by a smooth error of a fraction of a voxel. A view is
the exam under a known affine map, so its answer is an answer for the exam too, once the map is taken back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.affine import affine_coords, random_affine

# Milder than the training's augmentation: views that the network has seen often.
VIEWS = {"scale": (0.94, 1.06), "rotation": 0.08, "translation": 0.05}
_SEED = 0  # the same views for every exam: results repeat


def averaged_coordinates(predict: Callable[[Tensor], Tensor], image: Tensor, views: int) -> Tensor:
    """Mean of the coordinates that ``predict`` gives for ``views`` views of an exam, the exam itself among them.

    Args:
        predict: the network, ``[B, 1, S, S, S] -> [B, 3, s, s, s]``.
        image: ``[1, 1, S, S, S]``.
        views: 1 or more; 1 is ``predict(image)``.

    Returns:
        ``[1, 3, s, s, s]`` float32 for ``views`` 1, otherwise ``[1, 3, S, S, S]``. Where a view does not show a place
        of the exam it has no say there.
    """
    if views == 1:
        return predict(image)
    size = image.shape[2:]
    theta = random_affine(
        views - 1, torch.Generator().manual_seed(_SEED), device=image.device, dtype=image.dtype, **VIEWS
    )
    moved = ops.affine_resample(image.expand(views - 1, -1, -1, -1, -1), theta, size, padding="zeros")
    total = ops.resize(predict(image).float(), size)
    weight = torch.ones_like(total[:, :1])
    for view, back in zip(moved.split(1), _inverse(theta).split(1), strict=True):
        place = affine_coords(back, size)  # where a voxel of the exam lies in this view
        seen = (place.abs().amax(1, keepdim=True) <= 1).to(total)
        total = total + ops.resample(predict(view).float(), place) * seen
        weight = weight + seen
    return total / weight


def _inverse(theta: Tensor) -> Tensor:
    """The inverse affine maps ``[B, 3, 4]``."""
    linear = torch.linalg.inv(theta[:, :, :3])
    return torch.cat([linear, -linear @ theta[:, :, 3:]], dim=2)
