"""A few steps of registration to the atlas, for one exam and with the network frozen.

The network answers in one pass; what it leaves is a smooth error of about half a voxel of its input. The explicit
loss of section 2.3 is followed for the exam at hand, comparing images (``refine.similarity``) whatever the network was
trained with: a displacement on a coarse control grid is added to its coordinates.
"""

from __future__ import annotations

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
    """Coordinates after ``steps`` steps of Adam on the explicit loss (eq. 3), images compared directly.

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
    settings = config.refine
    small, weight = on_loss_grid(image, mask, config.loss.size)
    if not steps or not weight.any():
        return coords
    objective = RegistrationLoss(
        replace(config.loss, explicit=1.0, implicit=0.0, smoothness=settings.smoothness),
        FeatureSimilarity(None, settings.similarity, settings.window),
        image.shape[-1],
    )
    size = (max(settings.control, coords.shape[-1]),) * 3
    start = ops.resize(coords.detach().float(), size)
    with torch.enable_grad():
        control = start.new_zeros(1, 3, *(settings.control,) * 3).requires_grad_()
        adam = torch.optim.Adam([control], settings.lr)

        def loss() -> Tensor:
            return objective(start + ops.resize(control, size), small, weight, atlas).total

        before = None
        for _ in range(steps):
            adam.zero_grad()
            value = loss()
            before = value.item() if before is None else before
            value.backward()
            adam.step()
        with torch.no_grad():
            better = loss().item() < before
    return (start + ops.resize(control.detach(), size)).clamp(-1, 1) if better else coords
