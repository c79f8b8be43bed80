"""Random augmented batches for the two kinds of phases."""

from __future__ import annotations

import torch
from torch import Tensor

from deepatlas.losses import on_loss_grid
from deepatlas.train.loop import Session


class Batches:
    """Draws exams without replacement, epoch after epoch, augmented on the device.

    ``array`` is a :class:`deepatlas.data.dataset.TrainingArray` of network-sized volumes.
    """

    def __init__(self, session: Session, array, ids: list[str]):
        self.session, self.array, self.ids = session, array, ids

    def __call__(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Network input ``[n, 1, S, S, S]``, and image and mask on the loss grid, ``[n, 1, s, s, s]``."""
        data, generator = self.session.config.data, self.session.generator
        indices = self._indices(count, generator)
        self.session.last_batch = [self.ids[i] for i in indices]
        x, mask, _theta = self.array.batch(
            indices,
            generator,
            elastic=data.elastic,
            scale=data.scale,
            rotation=data.rotation,
            translation=data.translation,
        )
        return x, *on_loss_grid(x, mask, self.session.config.loss.size)

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Image and mask on the loss grid only."""
        return self(count)[1:]

    def _indices(self, count: int, generator: torch.Generator) -> list[int]:
        total = len(self.ids)
        picked: list[int] = []
        # A batch larger than the cohort repeats exams, each under an augmentation of its own.
        while len(picked) < count:
            order = torch.randperm(total, generator=generator, device=generator.device)
            picked += order[: count - len(picked)].tolist()
        return picked
