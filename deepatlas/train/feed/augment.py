"""Random augmentation on the device (paper 5.5.2).

A ``theta`` [B, 3, 4] maps the normalised coordinates (x, y, z) of an augmented sample to those of its
original: ``augmented(v) = original(theta v)``, what ``ops.affine_resample`` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.affine import affine_coords, random_affine
from deepatlas.train.feed.device import upload

# Control points per axis of a random displacement, and their share of its strength.
ELASTIC = ((5, 1.0), (9, 0.5))


def random_displacement(
    batch: int,
    size: int | Sequence[int],
    strength: float,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw smooth displacements ``[B, 3, D, H, W]`` (normalised x, y, z), another body of the same plan.

    Normal noise of standard deviation ``strength`` on a coarse grid of control points, and a part of it on a
    finer one, linearly in between (:data:`ELASTIC`). About 0.1 is the difference between two people.
    """
    shape = (size,) * 3 if isinstance(size, int) else tuple(size)
    return ops.resize(_control_points(batch, strength, generator).to(device), shape)


@dataclass(frozen=True)
class Augmentation:
    """The random maps of a batch as they were drawn: small tensors, from which any of its exams can be made.

    ``theta`` ``[B, 3, 4]``; ``control`` ``[B, 3, c, c, c]``, control points of smooth displacements, or None.
    """

    theta: Tensor
    control: Tensor | None = None

    @classmethod
    def draw(cls, batch: int, generator: torch.Generator | None = None, *, elastic: float = 0.0, **ranges):
        """``ranges`` are those of :func:`random_affine`, ``elastic`` the strength of :func:`random_displacement`."""
        theta = random_affine(batch, generator, **ranges)
        return cls(theta, _control_points(batch, elastic, generator) if elastic else None)

    def rows(self, rows: Sequence[int]) -> Augmentation:
        """The maps of some exams of the batch."""
        index = torch.as_tensor(rows, device=self.theta.device)
        return Augmentation(self.theta[index], None if self.control is None else self.control[index])

    def coords(self, size: int | Sequence[int], device: torch.device | str) -> Tensor:
        """Where each augmented voxel lies in its original, ``[B, 3, D, H, W]``."""
        device = torch.device(device)
        coords = affine_coords(upload(self.theta, device), size)
        if self.control is None:
            return coords
        return coords + ops.resize(upload(self.control, device), coords.shape[2:])


@dataclass(frozen=True)
class Contrast:
    """Random intensity changes of a batch as they were drawn: contrast phases, scanners and kernels differ.

    ``curve`` ``[3, B, 1, 1, 1, 1]`` in [-1, 1] (gamma, gain, amount of noise); ``noise`` ``[B, 1, S, S, S]``.
    """

    curve: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, batch: int, size: int, generator: torch.Generator) -> Contrast:
        """The same numbers for the same state of the generator, on any machine."""
        source = generator.device
        curve = 2 * torch.rand((3, batch, 1, 1, 1, 1), generator=generator, device=source) - 1
        return cls(curve, torch.randn((batch, 1, *(size,) * 3), generator=generator, device=source))

    def rows(self, rows: Sequence[int]) -> Contrast:
        """The changes of some exams of the batch."""
        rows = list(rows)
        return Contrast(self.curve[:, rows], self.noise[rows])

    def apply(self, image: Tensor, mask: Tensor, strength: float) -> Tensor:
        """Gamma and gain of images ``[B, 1, S, S, S]`` in [0, 1], and noise inside the patient; 0 changes nothing."""
        if not strength:
            return image
        gamma, gain, amount = upload(self.curve, image.device)
        changed = image.clamp(0, 1) ** (1 + strength * gamma) * (1 + 0.5 * strength * gain)
        changed = changed + 0.1 * strength * (1 + amount) * upload(self.noise, image.device) * mask
        return changed.clamp(0, 1)


def _control_points(batch: int, strength: float, generator: torch.Generator | None) -> Tensor:
    source = generator.device if generator is not None else torch.device("cpu")
    # The coarser points are among the finer ones, so the sum on those is the sum everywhere.
    finest = max(control for control, _ in ELASTIC)
    total = torch.zeros((batch, 3, *(finest,) * 3), device=source)
    for control, share in ELASTIC:
        noise = torch.randn((batch, 3, *(control,) * 3), generator=generator, device=source)
        total += share * strength * ops.resize(noise, (finest,) * 3)
    return total
