"""Refinement of the coordinates of one exam: a few steps of registration to the atlas, with the network frozen.

One pass of the network leaves a smooth error of about half a voxel of its input. Refinement adds a displacement on a
coarse control grid, which minimises the explicit loss of section 2.3 for this exam. It compares images (see
``refine.similarity`` in the settings), whatever the network was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.losses import FeatureSimilarity, LabelTask, RegistrationLoss, on_loss_grid
from deepatlas.nn import Atlas


def refine_coordinates(
    coords: Tensor, image: Tensor, mask: Tensor, atlas: Atlas, config: Config, steps: int
) -> Tensor:
    """The coordinates of one exam after some steps of Adam on the explicit loss of its image (eq. 3).

    Args:
        coords: ``[1, 3, s, s, s]``, the coordinates that the network predicts.
        image: ``[1, 1, S, S, S]`` in [0, 1], the input of the network.
        mask: ``[1, 1, S, S, S]``, the foreground of the image. With an empty mask ``coords`` are returned.
        atlas: the learned atlas, which is not changed.
        config: the settings of the model; those of refinement are ``config.refine``.
        steps: the number of steps. With 0 ``coords`` are returned.

    Returns:
        ``[1, 3, m, m, m]`` in [-1, 1], where m is the larger of s and the size of the control grid; or ``coords``
        themselves where the steps did not lower the loss.
    """
    if not steps or not mask.any():
        return coords
    refined = register_to_atlas(coords, image, mask, atlas, config, steps)
    loss = _objective(image, mask, atlas, config)
    with torch.no_grad():
        return refined if loss(refined) < loss(coords.float()) else coords


def register_to_atlas(
    coords: Tensor,
    image: Tensor,
    mask: Tensor,
    atlas: Atlas,
    config: Config,
    steps: int,
    labels: LabelTask | None = None,
) -> Tensor:
    """Like :func:`refine_coordinates`, for a batch of exams and without a look at the loss: ``[B, 3, m, m, m]``.

    ``labels`` are the masks of these exams, if they are known, and those of the atlas; they count with the weight
    ``loss.labels``. The exam at use has none.
    """
    settings = config.refine
    size = (max(settings.control, coords.shape[-1]),) * 3
    start = ops.resize(coords.detach().float(), size)
    with torch.enable_grad():
        loss = _objective(image, mask, atlas, config, labels)
        control = start.new_zeros(len(start), 3, *(settings.control,) * 3).requires_grad_()
        adam = torch.optim.Adam([control], settings.lr)
        for _ in range(steps):
            adam.zero_grad()
            # The losses are summed over the exams, so that the step of one exam does not depend on the others.
            (len(start) * loss(start + ops.resize(control, size))).backward()
            adam.step()
    return (start + ops.resize(control.detach(), size)).clamp(-1, 1)


def _objective(
    image: Tensor, mask: Tensor, atlas: Atlas, config: Config, labels: LabelTask | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of the coordinates of these exams: the mean of their explicit losses."""
    settings = config.refine
    losses = replace(
        config.loss, explicit=1.0, implicit=0.0, smoothness=settings.smoothness, prewitt=settings.prewitt
    )
    similarity = FeatureSimilarity(None, settings.similarity, settings.window)
    objective = RegistrationLoss(losses, similarity, image.shape[-1])
    small, weight = on_loss_grid(image, mask, config.loss.size)
    return lambda coords: objective(coords, small, weight, atlas, labels=labels).total
