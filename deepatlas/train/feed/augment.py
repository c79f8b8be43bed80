"""Random augmentation (section 5.5.2): drawn on the host as small tensors, applied on the device.

A ``theta`` [B, 3, 4] maps the normalised coordinates (x, y, z) of an augmented sample to those of its
original: ``augmented(v) = original(theta v)``, which is the argument of ``ops.affine_resample``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import DataConfig
from deepatlas.space.affine import affine_coords, random_affine
from deepatlas.train.feed.device import upload

# The grids of a random displacement: control points per axis, and standard deviation as a fraction of the strength. A
# strength of about 0.1 gives the difference between two people.
ELASTIC = ((5, 1.0), (9, 0.5))


@dataclass(frozen=True)
class Augmentation:
    """The random maps of a batch as small tensors, from which any of its exams can be computed."""

    theta: Tensor  # [B, 3, 4]
    # Control points of smooth displacements, [B, 3, c, c, c]; None without them.
    control: Tensor | None = None

    @classmethod
    def draw(
        cls, batch: int, generator: torch.Generator | None = None, *, elastic: float = 0.0, **ranges: Any
    ) -> Augmentation:
        """Draw the maps of a batch.

        ``ranges`` are passed to :func:`~deepatlas.space.affine.random_affine`; ``elastic`` is the strength of
        the smooth displacements. The same generator state gives the same maps on any machine.
        """
        theta = random_affine(batch, generator, **ranges)
        return cls(theta, _control_points(batch, elastic, generator) if elastic else None)

    @classmethod
    def from_settings(
        cls, batch: int, generator: torch.Generator, data: DataConfig, elastic: float | None = None
    ) -> Augmentation:
        """:meth:`draw` with the ranges of the settings; ``elastic`` replaces their strength of displacements."""
        return cls.draw(
            batch,
            generator,
            elastic=data.elastic if elastic is None else elastic,
            scale=data.scale,
            rotation=data.rotation,
            translation=data.translation,
        )

    def rows(self, rows: Sequence[int]) -> Augmentation:
        """The maps of the given exams of the batch."""
        index = torch.as_tensor(rows, device=self.theta.device)
        return Augmentation(self.theta[index], None if self.control is None else self.control[index])

    def coords(self, size: int | Sequence[int], device: torch.device | str, extent: float = 1.0) -> Tensor:
        """The position of each augmented voxel in its original, ``[B, 3, D, H, W]``, normalised, on ``device``.

        ``extent`` is how far out the outermost voxels lie, where 1 is the corners of the augmented exam.
        """
        device = torch.device(device)
        theta, control = upload(self.theta, device), self.control
        if extent != 1:
            theta = torch.cat([theta[:, :, :3] * extent, theta[:, :, 3:]], 2)
        coords = affine_coords(theta, size)
        if control is None:
            return coords
        control = upload(control, device)
        if extent == 1:
            return coords + ops.resize(control, coords.shape[2:])
        inner = extent * torch.eye(3, 4, device=device).expand(len(control), 3, 4)
        return coords + ops.affine_resample(control, inner, coords.shape[2:], padding="border")


@dataclass(frozen=True)
class Contrast:
    """Random intensity changes of a batch, because contrast phases, scanners and reconstruction kernels differ."""

    # Gamma, gain and amount of noise in [-1, 1].
    curve: Tensor  # [3, B, 1, 1, 1, 1]
    noise: Tensor  # [B, 1, S, S, S]

    @classmethod
    def draw(cls, batch: int, size: int, generator: torch.Generator) -> Contrast:
        """Draw the changes of a batch. The same generator state gives the same numbers on any machine."""
        source = generator.device
        curve = 2 * torch.rand((3, batch, 1, 1, 1, 1), generator=generator, device=source) - 1
        return cls(curve, torch.randn((batch, 1, *(size,) * 3), generator=generator, device=source))

    def rows(self, rows: Sequence[int]) -> Contrast:
        """The changes of the given exams of the batch."""
        rows = list(rows)
        return Contrast(self.curve[:, rows], self.noise[rows])

    def apply(self, image: Tensor, mask: Tensor, strength: float) -> Tensor:
        """Change gamma and gain of images ``[B, 1, S, S, S]`` in [0, 1], and add noise inside ``mask`` (same shape).

        ``strength`` scales all three changes; 0 returns the images as they are.
        """
        if not strength:
            return image
        gamma, gain, amount = upload(self.curve, image.device)
        changed = image.clamp(0, 1) ** (1 + strength * gamma) * (1 + 0.5 * strength * gain)
        changed = changed + 0.1 * strength * (1 + amount) * upload(self.noise, image.device) * mask
        return changed.clamp(0, 1)


def _control_points(batch: int, strength: float, generator: torch.Generator | None) -> Tensor:
    """Normal noise on all grids of :data:`ELASTIC`, interpolated linearly to the finest one and added."""
    source = generator.device if generator is not None else torch.device("cpu")
    # The coarser points are among the finer ones, so adding both grids on the finer points adds them everywhere.
    finest = max(control for control, _ in ELASTIC)
    total = torch.zeros((batch, 3, *(finest,) * 3), device=source)
    for control, share in ELASTIC:
        noise = torch.randn((batch, 3, *(control,) * 3), generator=generator, device=source)
        total += share * strength * ops.resize(noise, (finest,) * 3)
    return total
