"""Supervised pretraining on known crops of the template exam (section 5.2.5), of the coarsest head or of more.

The atlas starts as the template exam, so a crop is drawn as a map into coordinate space: looked up in the
atlas it gives the image, and it is itself the answer the network should give. Beside the affine crops of the
paper the maps bend smoothly and the intensities change, since one exam has to stand in for all anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

import deepatlas_ops as ops
from deepatlas.config import CoarseConfig, DataConfig
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.nn.atlas import sample_shared
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.augment import Augmentation, Contrast
from deepatlas.train.feed.device import upload
from deepatlas.train.loop import Phase, Schedule, Session


@dataclass(frozen=True)
class DrawnCrops:
    """A batch of crops as its random numbers decide it."""

    boxes: Tensor  # [B, 3, 2]: bounds in coordinate space, x, y, z
    augmentation: Augmentation
    contrast: Contrast


class TemplateCrops:
    """Draws (image, coordinates, mask) from the seeded atlas; all on the atlas' device."""

    def __init__(
        self, atlas: Atlas, mask: Tensor, size: int, extent: float, coarse: CoarseConfig, data: DataConfig
    ):
        """``mask [1, 1, N, N, N]``: foreground of the template exam, which fills [-extent, extent]^3; on the host."""
        self.atlas, self.mask, self.size, self.extent = atlas, mask.to(atlas.values.device), size, extent
        self.coarse, self.data = coarse, data
        filled = mask[0, 0] > 0.5
        self._rows, self._columns = filled.any(2), filled.any(1)  # [z, y] and [z, x]: where the patient is
        if not bool(filled.any()):
            raise ValueError("TemplateCrops: mask is empty, so the template exam shows nothing to learn from")

    def draw(self, count: int, generator: torch.Generator) -> DrawnCrops:
        """The random numbers of a batch: the same for the same state of the generator, on any machine."""
        boxes = torch.stack([self._box(generator) for _ in range(count)])
        data = self.data
        augmentation = Augmentation.draw(
            count,
            generator,
            elastic=self.coarse.elastic,
            scale=data.scale,
            rotation=data.rotation,
            translation=data.translation,
        )
        return DrawnCrops(boxes, augmentation, Contrast.draw(count, self.size, generator))

    def take(self, drawn: DrawnCrops, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Image ``[n, 1, S, S, S]`` in [0, 1], coordinates ``[n, 3, S, S, S]``, mask ``[n, 1, S, S, S]``."""
        device, rows = self.mask.device, list(rows)
        boxes, augmentation = upload(drawn.boxes[rows], device), drawn.augmentation.rows(rows)
        centre, half = boxes.mean(2), (boxes[..., 1] - boxes[..., 0]) / 2
        field = affine_coords(upload(augmentation.theta, device), self.size)
        coords = centre[..., None, None, None] + half[..., None, None, None] * field
        if augmentation.control is not None:
            coords += ops.resize(upload(augmentation.control, device), (self.size,) * 3)
        with torch.no_grad():
            image = self.atlas(coords)
            mask = sample_shared(self.mask, coords, padding="zeros")
            # Beyond the box of the crop there is nothing: a real exam ends there, and augmentation shows its end.
            inside = field.abs().amax(1, keepdim=True) <= 1
            image, mask = image * inside, (mask > 0.5) * inside
            image = drawn.contrast.rows(rows).apply(image, mask, self.coarse.contrast)
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


def coarse_phase(session: Session, crops: TemplateCrops) -> Phase:
    """The coarsest heads learn the coordinates of known crops: Huber loss over the foreground."""
    config = session.config.coarse
    network: CoordinateNetwork = session.modules["network"]
    finest = session.config.network.finest_level if config.levels is None else network.levels - config.levels
    grid = (
        session.config.loss.size,
    ) * 3  # maps are smooth: no need to compare them on every voxel of the input

    def step(_: int):
        drawn = crops.draw(config.batch, session.generator)
        for rows in session.parts(config.batch):
            image, coords, mask = crops.take(drawn, rows)
            target, mask = ops.resize(coords.clamp(-1, 1), grid), ops.resize(mask, grid)
            losses = []
            with session.autocast():
                pyramid = network.pyramid(image, finest)
            for predicted in pyramid:
                predicted = ops.resize(predicted, grid)
                difference = huber_loss(predicted, target, reduction="none", delta=0.1)
                losses.append(masked_mean(difference, mask).sum() / config.batch)
            error = masked_mean((predicted.detach() - target).abs(), mask).sum() / config.batch
            yield 10 * sum(losses), lambda error=error: {"coarse_error": error.item()}

    def record(generator: torch.Generator) -> dict:
        image, coords, mask = crops.take(crops.draw(config.batch, generator), range(config.batch))
        return {"exams": [session.facts["seed_exam"]], "input": image, "coords": coords, "mask": mask}

    return Phase(
        name="coarse",
        steps=config.steps,
        parameters=[(list(network.parameters()), 1.0)],
        schedule=Schedule(config.lr, session.config.train.decay, session.config.train.warmup),
        step=step,
        batch=record,
        clip=session.config.train.clip,
    )


def _bounds(filled: Tensor) -> tuple[float, float]:
    """First and last filled voxel of an axis, as corner-aligned coordinates."""
    index = filled.nonzero()
    scale = 2 / max(1, len(filled) - 1)
    return float(index[0]) * scale - 1, float(index[-1]) * scale - 1


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator, device=generator.device).item()
