"""Phase ``coarse``: supervised pretraining on known crops of the exam that seeds the atlas (section 5.2.5).

The atlas starts as that exam, so a crop is drawn as a map into coordinate space: the atlas sampled by the map is the
image, and the map itself is the network's target. The paper draws affine crops. With ``coarse.elastic`` the maps also
bend smoothly, and with ``coarse.contrast`` intensities change, because one exam has to represent all anatomy.
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
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


@dataclass(frozen=True)
class DrawnCrops:
    """The random decisions of a batch of crops."""

    # Bounds of each crop in coordinate space, in the order x, y, z.
    boxes: Tensor  # [B, 3, 2]
    augmentation: Augmentation
    contrast: Contrast


class TemplateCrops:
    """Draws crops of the seeded atlas as (image, coordinates, mask), on the atlas' device.

    Args:
        atlas: the atlas after it was seeded.
        mask: ``[1, 1, N, N, N]``, foreground of the seed exam, which fills [-extent, extent]^3; on the host.
        size: side of the network's input in voxels.
        extent: ``train.extent``.
        coarse: crops, displacements and intensity changes.
        data: ranges of the affine augmentation.

    Raises:
        ValueError: the mask is empty.
    """

    def __init__(
        self, atlas: Atlas, mask: Tensor, size: int, extent: float, coarse: CoarseConfig, data: DataConfig
    ):
        self.atlas, self.mask, self.size, self.extent = atlas, mask.to(atlas.values.device), size, extent
        self.coarse, self.data = coarse, data
        filled = mask[0, 0] > 0.5
        # Where the patient is, projected along x and along y.
        self._rows, self._columns = filled.any(2), filled.any(1)  # [z, y] and [z, x]
        if not bool(filled.any()):
            raise ValueError("TemplateCrops: the mask is empty, so the seed exam shows nothing to learn from")

    def draw(self, count: int, generator: torch.Generator) -> DrawnCrops:
        """Draw a batch of ``count`` crops. The same generator state gives the same batch on any machine."""
        boxes = torch.stack([self._box(generator) for _ in range(count)])
        augmentation = Augmentation.from_settings(count, generator, self.data, self.coarse.elastic)
        return DrawnCrops(boxes, augmentation, Contrast.draw(count, self.size, generator))

    def take(self, drawn: DrawnCrops, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the given crops: image ``[n, 1, S, S, S]`` in [0, 1], coordinates ``[n, 3, S, S, S]``, mask."""
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
            # A real exam ends at the faces of the crop, and augmentation shows air beyond them.
            inside = field.abs().amax(1, keepdim=True) <= 1
            image, mask = image * inside, (mask > 0.5) * inside
            image = drawn.contrast.rows(rows).apply(image, mask, self.coarse.contrast)
        return image, coords, mask.to(image.dtype)

    def _box(self, generator: torch.Generator) -> Tensor:
        """The bounds ``[3, 2]`` (x, y, z) of a random range of the body axis.

        In x and y they enclose the patient in that range if the exams of the run are cropped to it too.
        """
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
    """The coarsest heads learn the coordinates of known crops, by a Huber loss over the foreground."""
    config = session.config.coarse
    network: CoordinateNetwork = session.modules["network"]
    finest = session.config.network.finest_level if config.levels is None else network.levels - config.levels
    # Maps are smooth, so comparing them on the loss grid is enough.
    grid = (session.config.loss.size,) * 3
    assert session.facts is not None
    seed_exam = session.facts.seed_exam

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
        return {"exams": [seed_exam], "input": image, "coords": coords, "mask": mask}

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
    """Corner-aligned coordinates of the first and the last filled voxel of an axis."""
    index = filled.nonzero()
    scale = 2 / max(1, len(filled) - 1)
    return float(index[0]) * scale - 1, float(index[-1]) * scale - 1


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator, device=generator.device).item()
