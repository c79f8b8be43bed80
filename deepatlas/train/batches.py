"""Random augmented batches of exams, drawn as a whole and computed in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepatlas.config import DataConfig
from deepatlas.data.augment import Augmentation
from deepatlas.losses import on_loss_grid


@dataclass(frozen=True)
class Drawn:
    """A batch as its random numbers decide it: rows of the training array and how each is augmented."""

    indices: list[int]
    augmentation: Augmentation


class Batches:
    """Draws exams without replacement, each under its own random map.

    ``array`` is a :class:`deepatlas.data.dataset.TrainingArray` of network-sized volumes, ``loss_size`` the side of
    the loss grid.
    """

    def __init__(self, array, ids: list[str], data: DataConfig, loss_size: int):
        self.array, self.ids, self.data, self.loss_size = array, ids, data, loss_size

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """The random numbers of a batch: the same for the same state of the generator, on any machine."""
        indices = self._indices(count, generator)
        data = self.data
        augmentation = Augmentation.draw(
            count,
            generator,
            elastic=data.elastic,
            scale=data.scale,
            rotation=data.rotation,
            translation=data.translation,
        )
        return Drawn(indices, augmentation)

    def take(self, drawn: Drawn, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Some exams: network input ``[n, 1, S, S, S]``, image and mask on the loss grid, ``[n, 1, s, s, s]``."""
        x, mask = self.array.take([drawn.indices[r] for r in rows], drawn.augmentation.rows(rows))
        return x, *on_loss_grid(x, mask, self.loss_size)

    def record(self, count: int, generator: torch.Generator) -> dict:
        """The batch that ``draw`` gives with this generator, for a file: exam ids, maps, input, image, mask."""
        drawn = self.draw(count, generator)
        x, image, mask = self.take(drawn, range(count))
        maps = {"theta": drawn.augmentation.theta, "control": drawn.augmentation.control}
        exams = [self.ids[i] for i in drawn.indices]
        return {"exams": exams, **maps, "input": x, "image": image, "mask": mask}

    def _indices(self, count: int, generator: torch.Generator) -> list[int]:
        total = len(self.ids)
        picked: list[int] = []
        # A batch larger than the cohort repeats exams, each under an augmentation of its own.
        while len(picked) < count:
            order = torch.randperm(total, generator=generator, device=generator.device)
            picked += order[: count - len(picked)].tolist()
        return picked
