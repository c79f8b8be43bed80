"""Random augmented batches of exams, drawn as a whole and computed in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepatlas.config import DataConfig
from deepatlas.losses import on_loss_grid
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.resident import ExamArray


@dataclass(frozen=True)
class Drawn:
    """A batch as its random numbers decide it: rows of the training array and how each is augmented."""

    indices: list[int]
    augmentation: Augmentation


@dataclass(frozen=True)
class _Foreseen:
    """A batch drawn before it is asked for, between two states of the generator."""

    before: Tensor
    drawn: Drawn
    after: Tensor

    def begins(self, count: int, state: Tensor) -> bool:
        return len(self.drawn.indices) == count and torch.equal(self.before, state)


class Batches:
    """Draws exams without replacement, each under its own random map.

    ``array`` holds network-sized volumes, ``loss_size`` is the side of the loss grid. An array that reads ahead is
    told what the next batches take: they are drawn early, from a copy of the generator, and count only if that has
    come to the very state that they were drawn from. So neither the random sequence nor a checkpoint knows of it.
    Which rows of a batch this process takes, and in what parts, is what it took of the last batch of that size.
    """

    def __init__(self, array: ExamArray, ids: list[str], data: DataConfig, loss_size: int):
        self.array, self.ids, self.data, self.loss_size = array, ids, data, loss_size
        self._next: deque[_Foreseen] = deque()
        self._parts: dict[int, list[list[int]]] = {}  # by the size of the batch
        self._current: Drawn | None = None

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """The random numbers of a batch: the same for the same state of the generator, on any machine."""
        if not self.array.ahead:
            return self._draw(count, generator)
        state = generator.get_state()
        if self._next and not self._next[0].begins(count, state):
            self._next.clear()
        copy = torch.Generator(generator.device)
        while len(self._next) <= self.array.ahead:
            before = self._next[-1].after if self._next else state
            copy.set_state(before)
            self._next.append(_Foreseen(before, self._draw(count, copy), copy.get_state()))
        now = self._next.popleft()
        generator.set_state(now.after)
        parts = self._parts.get(count, [])
        coming = [now.drawn, *(batch.drawn for batch in self._next)]
        self.array.expect([[drawn.indices[r] for r in rows] for drawn in coming for rows in parts])
        self._current, self._parts[count] = now.drawn, []
        return now.drawn

    def _draw(self, count: int, generator: torch.Generator) -> Drawn:
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
        if drawn is self._current:
            self._parts[len(drawn.indices)].append(list(rows))
        x, mask = self.array.take([drawn.indices[r] for r in rows], drawn.augmentation.rows(rows))
        return x, *on_loss_grid(x, mask, self.loss_size)

    def record(self, count: int, generator: torch.Generator) -> dict:
        """The batch that ``draw`` gives with this generator, for a file: exam ids, maps, input, image, mask."""
        drawn = self._draw(count, generator)
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
