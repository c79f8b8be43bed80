"""Random augmented batches of exams: the random numbers are drawn for the full batch, exams are computed in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepatlas.config import DataConfig
from deepatlas.losses import on_loss_grid
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.labels import BatchMasks, LabelMaps
from deepatlas.train.feed.resident import ExamArray


@dataclass(frozen=True)
class Drawn:
    """The random decisions of a batch: positions in the training array, and the augmentation of each exam."""

    indices: list[int]
    augmentation: Augmentation


@dataclass(frozen=True)
class _Foreseen:
    """A batch that was drawn in advance, and the states of the generator before and after it."""

    before: Tensor
    drawn: Drawn
    after: Tensor

    def begins(self, count: int, state: Tensor) -> bool:
        """Whether drawing ``count`` exams from this state of the generator gives this batch."""
        return len(self.drawn.indices) == count and torch.equal(self.before, state)


class Batches:
    """Draws exams without replacement, each under its own random map.

    An array that reads ahead needs to know the next batches. They are drawn in advance from a copy of the generator,
    and used only if the generator has reached exactly the state that they were drawn from; so the random sequence and
    checkpoints are the same with and without reading ahead. The rows that this process will take of a batch, and in
    what parts, are predicted to be those that it took of the last batch of the same size.

    Args:
        array: the training exams at the size of the network's input.
        ids: their exam ids, in the order of the array.
        data: ranges of the augmentation.
        loss_size: side of the loss grid in voxels.
        labels: the labels of the exams; at least ``data.labelled_share`` of every batch is then labelled.
    """

    def __init__(
        self,
        array: ExamArray,
        ids: list[str],
        data: DataConfig,
        loss_size: int,
        labels: LabelMaps | None = None,
    ):
        self.array, self.ids, self.data, self.loss_size = array, ids, data, loss_size
        self.labels = labels
        self._next: deque[_Foreseen] = deque()
        # The parts in which this process took the last batch of each size.
        self._parts: dict[int, list[list[int]]] = {}
        self._current: Drawn | None = None

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw a batch of ``count`` exams. The same generator state gives the same batch on any machine."""
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
        return Drawn(indices, Augmentation.from_settings(count, generator, self.data))

    def take(self, drawn: Drawn, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the given rows of a batch.

        Returns network input ``[n, 1, S, S, S]``, and image and mask on the loss grid ``[n, 1, s, s, s]``, float32 on
        the array's device.
        """
        if drawn is self._current:
            self._parts[len(drawn.indices)].append(list(rows))
        x, mask = self.array.take([drawn.indices[r] for r in rows], drawn.augmentation.rows(rows))
        return x, *on_loss_grid(x, mask, self.loss_size)

    def masks(self, drawn: Drawn, rows: Sequence[int]) -> BatchMasks:
        """The masks of the given rows of a batch, which move with its images.

        Raises:
            ValueError: the batches have no labels.
        """
        if self.labels is None:
            raise ValueError("Batches.masks: made without labels")
        return self.labels.take([drawn.indices[r] for r in rows], drawn.augmentation.rows(rows))

    def record(self, count: int, generator: torch.Generator) -> dict:
        """The batch that :meth:`draw` gives with this generator, as a dict of tensors for a file, with exam ids."""
        drawn = self._draw(count, generator)
        x, image, mask = self.take(drawn, range(count))
        maps = {"theta": drawn.augmentation.theta, "control": drawn.augmentation.control}
        exams = [self.ids[i] for i in drawn.indices]
        return {"exams": exams, **maps, "input": x, "image": image, "mask": mask}

    def _indices(self, count: int, generator: torch.Generator) -> list[int]:
        everyone = list(range(len(self.ids)))
        if self.labels is None or not self.data.labelled_share:
            return _picked(everyone, count, generator)
        # The labelled exams come first: neighbours are compared in the implicit task, which needs labels in both.
        first = _picked(self.labels.labelled, round(self.data.labelled_share * count), generator)
        taken = set(first)
        others = [i for i in everyone if i not in taken]
        return first + _picked(others or everyone, count - len(first), generator)


def _picked(exams: list[int], count: int, generator: torch.Generator) -> list[int]:
    """``count`` of the exams in random order; each once, unless there are fewer."""
    picked: list[int] = []
    # A batch larger than the cohort repeats exams, each under an augmentation of its own.
    while len(picked) < count:
        order = torch.randperm(len(exams), generator=generator, device=generator.device)
        picked += order[: count - len(picked)].tolist()
    return [exams[i] for i in picked]
