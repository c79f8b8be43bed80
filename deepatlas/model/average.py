"""Coordinates averaged over slightly moved views of one exam (test-time averaging; not in the paper).

The coordinates that the network predicts for different views of an exam differ by a smooth error of a fraction of a
voxel. A view is the exam under a known affine map, so undoing the map turns its coordinates into coordinates of the
exam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.affine import affine_coords, random_affine


class _Affine(TypedDict):
    scale: tuple[float, float]
    rotation: float
    translation: float


# Milder than the augmentation of the training, so that the network has seen such views often.
VIEWS: _Affine = {"scale": (0.94, 1.06), "rotation": 0.08, "translation": 0.05}
# Every exam has the same views, so that results are reproducible.
_SEED = 0


def averaged_coordinates(predict: Callable[[Tensor], Tensor], image: Tensor, views: int) -> Tensor:
    """The mean of the coordinates that the network predicts for several views of an exam.

    Args:
        predict: the network, ``[B, 1, S, S, S] -> [B, 3, s, s, s]``, or one with another number of channels, such as
            the probabilities of structures.
        image: ``[1, 1, S, S, S]``, the input of the network.
        views: the number of views, 1 or more. The exam itself is the first of them.

    Returns:
        float32 coordinates, ``[1, 3, s, s, s]`` for one view and ``[1, 3, S, S, S]`` for more. A view contributes only
        to the places of the exam that it shows.
    """
    if views == 1:
        return predict(image)
    size = image.shape[2:]
    total = weight = None
    for coords, seen in views_of(predict, image, views, size):
        total = coords if total is None else total + coords * seen
        weight = seen if weight is None else weight + seen
    assert total is not None and weight is not None
    return total / weight


def views_of(
    predict: Callable[[Tensor], Tensor], image: Tensor, views: int, size: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the network predicts for each of several views, carried back to the exam.

    Args:
        predict: as for :func:`averaged_coordinates`.
        image: ``[1, 1, S, S, S]``, the input of the network.
        views: the number of views, 1 or more. The exam itself is the first of them.
        size: the voxels (z, y, x) of the results over the exam.

    Yields:
        ``(prediction, seen)``, float32 ``[1, C, *size]`` and ``[1, 1, *size]``. ``seen`` is 1 where the view shows the
        place of the exam, and 0 elsewhere, where the prediction is that of the border of the view.
    """
    own = ops.resize(predict(image).float(), tuple(size))
    yield own, torch.ones_like(own[:, :1])
    if views == 1:
        return
    theta = random_affine(
        views - 1, torch.Generator().manual_seed(_SEED), device=image.device, dtype=image.dtype, **VIEWS
    )
    moved = ops.affine_resample(
        image.expand(views - 1, -1, -1, -1, -1), theta, image.shape[2:], padding="zeros"
    )
    for view, back in zip(moved.split(1), _inverse(theta).split(1), strict=True):
        # Where the voxels of the exam lie in this view.
        place = affine_coords(back, size)
        seen = (place.abs().amax(1, keepdim=True) <= 1).to(own)
        yield ops.resample(predict(view).float(), place), seen


def _inverse(theta: Tensor) -> Tensor:
    """The inverses ``[B, 3, 4]`` of affine maps ``[B, 3, 4]``."""
    linear = torch.linalg.inv(theta[:, :, :3])
    return torch.cat([linear, -linear @ theta[:, :, 3:]], dim=2)
