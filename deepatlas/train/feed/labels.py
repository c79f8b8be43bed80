"""The drawn structures of the training exams, read from the store when they are first needed.

An exam's labels are held as the store has them, one id a voxel of the 64^3 grid (0.25 MiB), and what they hide where
structures overlap. They become masks only on the loss grid, for the structures that a loss asks for, under the map by
which the exam was augmented.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.constants import MODEL_SIZE
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.store.store import Store
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.device import upload


class LabelMaps:
    """Labels of the exams of a training array, addressed by their position in it.

    Attributes:
        names: the structures that were drawn in at least one of the exams; they are the channels of all masks.
        ids: their ids in the labels of the store.
        missing: the other structures of the store.
        labelled: positions of the exams in which any structure was drawn.
        device: the device of the masks.

    Args:
        store: the prepared cohort.
        rows: positions of the exams in the store, in the order of the training array.
        size: side of the network's input in voxels, on whose grid augmentation is defined.
        loss_size: side of the loss grid in voxels.
        device: the device of the masks.
        exams: ids of the exams whose labels may be used; None allows all.
        keep: number of exams whose labels are held; None holds all.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        size: int,
        loss_size: int,
        device: torch.device | str = "cpu",
        *,
        exams: Collection[str] | None = None,
        keep: int | None = None,
    ) -> None:
        self.store, self.rows, self.size, self.loss_size = store, list(rows), size, loss_size
        self.device, self._keep = torch.device(device), keep
        allowed = [exams is None or store.ids[row] in exams for row in self.rows]
        drawn = store.has_label[self.rows] & np.array(allowed, dtype=bool)[:, None]
        columns = np.flatnonzero(drawn.any(axis=0)).tolist()
        names = list(store.labels)
        self.names = [names[column] for column in columns]
        self.ids = [store.labels[name] for name in self.names]
        self.missing = [name for name in names if name not in self.names]
        self.labelled: list[int] = np.flatnonzero(drawn.any(axis=1)).tolist()
        self._drawn = drawn[:, columns]
        # The place of each id among the channels, from 1 on.
        self._channel = np.zeros(
            max(store.labels.values(), default=0) + 1, np.uint8 if len(columns) < 255 else np.int16
        )
        self._channel[self.ids] = np.arange(1, len(columns) + 1)
        self._held: OrderedDict[int, _Exam] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, position: int) -> Labels:
        """The structures of an exam on the 64^3 grid of the store, with their overlaps."""
        row = self.rows[position]
        store = self.store
        return Labels(store.labels_64[row], store.grid(row), store.ids[row], store.hidden_64(row))

    def drawn(self, position: int) -> NDArray[np.bool_]:
        """Bool ``[K]``: which structures were drawn in an exam and have a voxel on the 64^3 grid.

        One that was cropped away, or is smaller than a voxel, is not absent, so it counts as not drawn.
        """
        return self._exam(position).drawn

    def take(self, positions: Sequence[int], augmentation: Augmentation | None = None) -> BatchMasks:
        """The masks of a batch of exams under the given maps, or without augmentation. Nothing is computed yet."""
        if augmentation is None:
            augmentation = Augmentation(torch.eye(3, 4).repeat(len(positions), 1, 1))
        return BatchMasks([self._exam(p) for p in positions], augmentation, self)

    def _exam(self, position: int) -> _Exam:
        if position in self._held:
            self._held.move_to_end(position)
            return self._held[position]
        exam = self._held[position] = self._read(position)
        if self._keep is not None and len(self._held) > self._keep:
            self._held.popitem(last=False)
        return exam

    def _read(self, position: int) -> _Exam:
        drawn = self._drawn[position].copy()
        if not drawn.any():
            return _Exam(drawn, None, [])
        labels = self.labels(position)
        channels = self._channel[labels.array]
        hidden = {
            self.ids.index(identity): mask for identity, mask in labels.hidden.items() if identity in self.ids
        }
        present = np.bincount(channels.ravel(), minlength=len(drawn) + 1)[1 : len(drawn) + 1] > 0
        present[list(hidden)] = True
        overlaps = [
            (channel, mask, upload(torch.from_numpy(mask.array()), self.device))
            for channel, mask in hidden.items()
        ]
        return _Exam(drawn & present, upload(torch.from_numpy(channels), self.device), overlaps)


@dataclass(frozen=True)
class _Exam:
    """Labels of one exam on the device."""

    drawn: NDArray[np.bool_]  # [K]
    # The place of the structure of each voxel among the channels, from 1 on, [64, 64, 64]; None without labels.
    channels: Tensor | None
    # What it hides: the channel, the box, and the voxels in the box.
    overlaps: list[tuple[int, BoxMask, Tensor]]


@dataclass
class BatchMasks:
    """The masks of a batch on the loss grid (:class:`~deepatlas.losses.ExamMasks`), computed when asked for."""

    exams: list[_Exam]
    augmentation: Augmentation
    maps: LabelMaps
    drawn: NDArray[np.bool_] = field(init=False)
    _place: Tensor | None = None

    def __post_init__(self) -> None:
        self.drawn = np.stack([exam.drawn for exam in self.exams])

    @torch.no_grad()
    def masks(self, exams: list[int], structures: list[int]) -> Tensor:
        """Masks ``[len(exams), len(structures), s, s, s]`` of float32 in [0, 1], 0 beyond the original exam."""
        device = self.maps.device
        found = [self.exams[exam] for exam in exams]
        ids = torch.stack([exam.channels for exam in found if exam.channels is not None])[:, None]
        wanted = self.put(torch.tensor([k + 1 for k in structures], dtype=ids.dtype)).view(1, -1, 1, 1, 1)
        inside = ids == wanted
        for row, exam in enumerate(found):
            for channel, mask, voxels in exam.overlaps:
                if channel in structures:
                    inside[(row, structures.index(channel), *mask.box)] |= voxels
        # Twice as fine as the loss grid: a sample in the middle of eight voxels is their mean.
        block = MODEL_SIZE // min(MODEL_SIZE, 2 * self.maps.loss_size)
        values = inside.float() if block == 1 else F.avg_pool3d(inside.float(), block)
        place = self._places(block).index_select(0, upload(torch.as_tensor(exams), device))
        return ops.resample(values, place, padding="zeros")

    def put(self, tensor: Tensor) -> Tensor:
        return upload(tensor, self.maps.device)

    def _places(self, block: int) -> Tensor:
        """Where each voxel of the loss grid lies in the exam, ``[n, 3, s, s, s]``, on the grid of blocks of voxels."""
        if self._place is None:
            size, loss = self.maps.size, self.maps.loss_size
            place = self.augmentation.coords(size, self.maps.device)
            if size > loss:
                place = F.avg_pool3d(place, size // loss)
            # From the corners of the input to those of the store, and on to those of the blocks.
            self._place = place * (_extent(MODEL_SIZE // size) / _extent(block))
        return self._place


def _extent(block: int) -> float:
    """Where the outermost of the means over blocks of voxels lie, as a fraction of the outermost voxels."""
    return 1 - (block - 1) / (MODEL_SIZE - 1)
