"""Supervised pretraining on known crops of the template exam (section 5.2.5), of the coarsest head or of more.

The atlas starts as the template exam, so a crop is drawn as a map into coordinate space: looked up in the
atlas it gives the image, and it is itself the answer the network should give. Beside the affine crops of the
paper the maps bend smoothly and the intensities change, since one exam has to stand in for all anatomy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

import deepatlas_ops as ops
from deepatlas.config import CoarseConfig, DataConfig
from deepatlas.data.augment import affine_coords, random_affine, random_displacement
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.nn.atlas import sample_shared
from deepatlas.train.loop import Phase, Schedule, Session


class TemplateCrops:
    """Draws (image, coordinates, mask) from the seeded atlas; all on the atlas' device."""

    def __init__(
        self, atlas: Atlas, mask: Tensor, size: int, extent: float, coarse: CoarseConfig, data: DataConfig
    ):
        """``mask [1, 1, N, N, N]``: foreground of the template exam, which fills [-extent, extent]^3."""
        self.atlas, self.mask, self.size, self.extent = atlas, mask, size, extent
        self.coarse, self.data = coarse, data
        filled = mask[0, 0] > 0.5
        self._rows, self._columns = filled.any(2), filled.any(1)  # [z, y] and [z, x]: where the patient is
        if not bool(filled.any()):
            raise ValueError("TemplateCrops: mask is empty, so the template exam shows nothing to learn from")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Image ``[B, 1, S, S, S]`` in [0, 1], coordinates ``[B, 3, S, S, S]``, mask ``[B, 1, S, S, S]``."""
        device = self.mask.device
        boxes = torch.stack([self._box(generator) for _ in range(count)]).to(device)  # [B, 3, 2] x, y, z
        centre, half = boxes.mean(2), (boxes[..., 1] - boxes[..., 0]) / 2
        theta = random_affine(
            count,
            generator,
            scale=self.data.scale,
            rotation=self.data.rotation,
            translation=self.data.translation,
            device=device,
        )
        field = affine_coords(theta, self.size)
        coords = centre[..., None, None, None] + half[..., None, None, None] * field
        if self.coarse.elastic:
            coords += random_displacement(count, self.size, self.coarse.elastic, generator, device=device)
        with torch.no_grad():
            image = self.atlas(coords)
            mask = sample_shared(self.mask, coords, padding="zeros")
            # Beyond the box of the crop there is nothing: a real exam ends there, and augmentation shows its end.
            inside = field.abs().amax(1, keepdim=True) <= 1
            image, mask = image * inside, (mask > 0.5) * inside
            image = self._recolour(image, mask, generator)
        return image, coords, mask.to(image.dtype)

    def _box(self, generator: torch.Generator) -> Tensor:
        """A random range of the body axis, cut to the patient where exams are: bounds [3, 2], x, y, z."""
        low, high = _bounds(self._rows.any(1))
        keep = self.coarse.crop + (1 - self.coarse.crop) * _uniform(generator)
        length = (high - low) * min(1.0, 1.15 * keep)
        start = low + (high - low - length) * _uniform(generator)
        n = len(self._rows)
        first, last = (int(round((v + 1) / 2 * (n - 1))) for v in (start, start + length))
        y = x = (-self.extent, self.extent)
        if self.data.crop:
            y, x = (_bounds(side[first : last + 1].any(0)) for side in (self._rows, self._columns))
        return torch.tensor([x, y, (start, start + length)])

    def _recolour(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Random gamma and gain, and noise inside the patient: contrast phases, scanners and kernels differ."""
        strength = self.coarse.contrast
        if not strength:
            return image
        shape = (3, image.shape[0], 1, 1, 1, 1)
        draw = (2 * torch.rand(shape, generator=generator, device=generator.device) - 1).to(image)
        noise = torch.randn(image.shape, generator=generator, device=generator.device).to(image)
        changed = image.clamp(0, 1) ** (1 + strength * draw[0]) * (1 + 0.5 * strength * draw[1])
        changed = changed + 0.1 * strength * (1 + draw[2]) * noise * mask
        return changed.clamp(0, 1)


def coarse_phase(session: Session, crops: TemplateCrops) -> Phase:
    """The coarsest heads learn the coordinates of known crops: Huber loss over the foreground."""
    config = session.config.coarse
    network: CoordinateNetwork = session.modules["network"]
    finest = session.config.network.finest_level if config.levels is None else network.levels - config.levels
    grid = (
        session.config.loss.size,
    ) * 3  # maps are smooth: no need to compare them on every voxel of the input

    def step(_: int):
        image, coords, mask = crops.draw(config.batch, session.generator)
        target, mask = ops.resize(coords.clamp(-1, 1), grid), ops.resize(mask, grid)
        losses = []
        for predicted in network.pyramid(image, finest):
            predicted = ops.resize(predicted, grid)
            difference = huber_loss(predicted, target, reduction="none", delta=0.1)
            losses.append(masked_mean(difference, mask).mean())
        error = (predicted.detach() - target).abs()
        return 10 * sum(losses), lambda: {"coarse_error": masked_mean(error, mask).mean().item()}

    return Phase(
        name="coarse",
        steps=config.steps,
        parameters=[(list(network.parameters()), 1.0)],
        schedule=Schedule(config.lr, session.config.train.decay, session.config.train.warmup),
        step=step,
        clip=session.config.train.clip,
    )


def _bounds(filled: Tensor) -> tuple[float, float]:
    """First and last filled voxel of an axis, as corner-aligned coordinates."""
    index = filled.nonzero()
    scale = 2 / max(1, len(filled) - 1)
    return float(index[0]) * scale - 1, float(index[-1]) * scale - 1


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator, device=generator.device).item()
