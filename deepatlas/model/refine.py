"""A few steps of registration to the atlas, for one exam and with the network frozen.

The network answers in one pass; what it leaves is a smooth error of about half a voxel of its input. The explicit
loss of section 2.3 is followed for the exam at hand, comparing images (``refine.similarity``) whatever the network was
trained with: a displacement on a coarse control grid is added to its coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.losses import FeatureSimilarity, RegistrationLoss, on_loss_grid
from deepatlas.nn import Atlas


def refine_coordinates(
    coords: Tensor, image: Tensor, mask: Tensor, atlas: Atlas, config: Config, steps: int
) -> Tensor:
    """The coordinates of one exam after ``steps`` steps of Adam on the explicit loss (eq. 3), images compared directly.

    Args:
        coords: ``[1, 3, s, s, s]``, the network's answer.
        image: ``[1, 1, S, S, S]`` in [0, 1], the network's input.
        mask: ``[1, 1, S, S, S]``, its foreground; an empty one leaves the coordinates as they are.
        atlas: the learned atlas, which stays as it is.
        config: of the model; ``config.refine`` holds the settings.
        steps: 0 returns ``coords``.

    Returns:
        ``[1, 3, m, m, m]`` in [-1, 1], m the larger of s and the control grid; ``coords`` themselves where the
        steps did not lower the loss.
    """
    if not steps or not mask.any():
        return coords
    refined = register_to_atlas(coords, image, mask, atlas, config, steps)
    loss = _objective(image, mask, atlas, config)
    with torch.no_grad():
        return refined if loss(refined) < loss(coords.float()) else coords


def register_to_atlas(
    coords: Tensor, image: Tensor, mask: Tensor, atlas: Atlas, config: Config, steps: int
) -> Tensor:
    """As :func:`refine_coordinates` for a batch of exams, whatever the loss does: ``[B, 3, m, m, m]``."""
    settings = config.refine
    size = (max(settings.control, coords.shape[-1]),) * 3
    start = ops.resize(coords.detach().float(), size)
    with torch.enable_grad():
        loss = _objective(image, mask, atlas, config)
        control = start.new_zeros(len(start), 3, *(settings.control,) * 3).requires_grad_()
        adam = torch.optim.Adam([control], settings.lr)
        for _ in range(steps):
            adam.zero_grad()
            # A sum over the exams: how far one of them moves does not depend on the others.
            (len(start) * loss(start + ops.resize(control, size))).backward()
            adam.step()
    return (start + ops.resize(control.detach(), size)).clamp(-1, 1)


def _objective(image: Tensor, mask: Tensor, atlas: Atlas, config: Config) -> Callable[[Tensor], Tensor]:
    """The explicit loss of coordinates of these exams, mean over them."""
    settings = config.refine
    losses = replace(
        config.loss, explicit=1.0, implicit=0.0, smoothness=settings.smoothness, prewitt=settings.prewitt
    )
    similarity = FeatureSimilarity(None, settings.similarity, settings.window)
    objective = RegistrationLoss(losses, similarity, image.shape[-1])
    small, weight = on_loss_grid(image, mask, config.loss.size)
    return lambda coords: objective(coords, small, weight, atlas).total
