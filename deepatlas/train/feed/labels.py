"""The drawn structures of the training exams, read from the store when they are first needed.

An exam's labels are held as the store has them, one number a voxel of the 64^3 grid (0.25 MiB) or of the 128^3 grid
(2 MiB), and what they hide where structures overlap. They become masks only on the loss grid, for the structures that
were drawn in the exam, under the map by which the exam was augmented.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.store.store import Store
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.device import upload


class LabelMaps:
    """Labels of the exams of a training array, addressed by their position in it.

    Attributes:
        names: the structures that were drawn in at least one of the exams; they are the channels of all masks.
        ids: their ids in the labels of the store.
        missing: the other structures of the store that are to be used.
        labelled: positions of the exams in which any structure was drawn.
        device: the device of the masks.
        keep: number of exams whose labels are held; None holds all.

    Args:
        store: the prepared cohort.
        rows: positions of the exams in the store, in the order of the training array.
        size: side of the network's input in voxels, on whose grid augmentation is defined.
        loss_size: side of the loss grid in voxels.
        device: the device of the masks.
        exams: ids of the exams whose labels may be used; None allows all.
        keep: as the attribute.
        structures: names of the structures to use; None takes all.
        source: side of the grid of the store from which masks are made: 64, or 128, by which a mask on a grid of 64^3
            is the part of each voxel that the structure fills, and not all or nothing.
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
        structures: Collection[str] | None = None,
        source: int = MODEL_SIZE,
    ) -> None:
        self.source = source
        self.store, self.rows, self.size, self.loss_size = store, list(rows), size, loss_size
        self.device, self.keep = torch.device(device), keep
        allowed = [exams is None or store.ids[row] in exams for row in self.rows]
        drawn = store.has_label[self.rows] & np.array(allowed, dtype=bool)[:, None]
        names = list(store.labels)
        if structures is not None:
            drawn &= np.isin(names, list(structures))
        columns = np.flatnonzero(drawn.any(axis=0)).tolist()
        self.names = [names[column] for column in columns]
        self.ids = [store.labels[name] for name in self.names]
        wanted = names if structures is None else [name for name in names if name in structures]
        self.missing = [name for name in wanted if name not in self.names]
        self.labelled: list[int] = np.flatnonzero(drawn.any(axis=1)).tolist()
        self._drawn = drawn[:, columns]
        self._held: OrderedDict[int, _Exam] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, position: int) -> Labels:
        """The structures of an exam on the grid of the store that masks are made from, with their overlaps."""
        row = self.rows[position]
        store = self.store
        if self.source == FINE_SIZE:
            return store.drawn(row)
        return Labels(store.labels_64[row], store.grid(row), store.ids[row], store.hidden_64(row))

    def drawn(self, position: int) -> NDArray[np.bool_]:
        """Bool ``[K]``: which structures were drawn in an exam and have a voxel on the grid of the store.

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
        if self.keep is not None and len(self._held) > self.keep:
            self._held.popitem(last=False)
        return exam

    def _read(self, position: int) -> _Exam:
        drawn = self._drawn[position].copy()
        if not drawn.any():
            return _Exam(drawn, [], None, [])
        labels = self.labels(position)
        hidden = {self.ids.index(i): mask for i, mask in labels.hidden.items() if i in self.ids}
        shown = np.isin(self.ids, np.unique(labels.array))
        shown[list(hidden)] = True
        drawn &= shown
        structures = np.flatnonzero(drawn).tolist()
        slot = np.zeros(max(self.store.labels.values()) + 1, np.uint8 if len(structures) < 255 else np.int16)
        slot[[self.ids[k] for k in structures]] = np.arange(1, len(structures) + 1)
        # An id that labels.json does not name is in no store.
        slots = torch.from_numpy(slot[labels.array])
        overlaps = [
            (structures.index(k), mask, self._upload(mask.array())) for k, mask in hidden.items() if drawn[k]
        ]
        return _Exam(drawn, structures, upload(slots, self.device), overlaps)

    def _upload(self, array: NDArray[np.bool_]) -> Tensor:
        return upload(torch.from_numpy(array), self.device)


@dataclass(frozen=True)
class _Exam:
    """Labels of one exam on the device."""

    drawn: NDArray[np.bool_]  # [K]
    # The structures that were drawn.
    structures: list[int]
    # The place of each voxel's structure among them, from 1 on, [64, 64, 64]; None without labels.
    slots: Tensor | None
    # What that hides: the place of the structure from 0 on, the box, and the voxels in the box.
    overlaps: list[tuple[int, BoxMask, Tensor]]


@dataclass
class BatchMasks:
    """The masks of a batch on the loss grid (:class:`~deepatlas.losses.ExamMasks`), computed when asked for."""

    exams: list[_Exam]
    augmentation: Augmentation
    maps: LabelMaps
    drawn: NDArray[np.bool_] = field(init=False)
    # The masks of the structures that were drawn in each exam, [k, s, s, s]; both tasks use them.
    _masks: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.drawn = np.stack([exam.drawn for exam in self.exams])

    @torch.no_grad()
    def masks(self, exams: list[int], structures: list[int]) -> Tensor:
        """Masks ``[len(exams), len(structures), s, s, s]`` of float32 in [0, 1], 0 beyond the original exam.

        They are linear interpolations. All structures must have been drawn in all of these exams.
        """
        found = []
        for exam in exams:
            if exam not in self._masks:
                self._masks[exam] = self._interpolated(exam)
            of, structures_of = self._masks[exam], self.exams[exam].structures
            if structures != structures_of:
                own = torch.tensor([structures_of.index(k) for k in structures])
                of = of.index_select(0, self.put(own))
            found.append(of)
        return torch.stack(found)

    def put(self, tensor: Tensor) -> Tensor:
        return upload(tensor, self.maps.device)

    @torch.no_grad()
    def seen(self) -> Tensor:
        """The part of each voxel that lies in the field of view of its original exam, ``[n, 1, s, s, s]``."""
        # Beyond the outermost centres of the store's voxels, image and masks fade to 0. A little is for rounding.
        inside = self._places.abs().amax(1, keepdim=True) <= 1.001
        pooled = inside.shape[-1] // self.maps.loss_size
        return F.avg_pool3d(inside.float(), pooled) if pooled > 1 else inside.float()

    def _interpolated(self, exam: int) -> Tensor:
        """The masks of an exam, ``[k, s, s, s]``, without a mask of each structure at full size.

        The weight of each of the eight neighbours goes to the structure that the neighbour belongs to.
        """
        of, loss, source = self.exams[exam], self.maps.loss_size, self.maps.source
        assert of.slots is not None
        # A sample in the middle of eight voxels is their mean, so that half as many samples as voxels are enough.
        place = self._places[exam]
        fine = place.shape[-1]
        index = (place.flatten(1) + 1) * ((source - 1) / 2)
        low = index.floor()
        upper = index - low
        # Along each axis, the weights and the offsets of the two neighbours.
        sides = [
            [
                (weight * ((at >= 0) & (at < source)), at.clamp(0, source - 1).long() * source**axis)
                for weight, at in ((1 - upper[axis], low[axis]), (upper[axis], low[axis] + 1))
            ]
            for axis in range(3)
        ]
        labels = of.slots.flatten()
        values = place.new_zeros(len(of.structures) + 1, low.shape[1])
        for (by_z, z), (by_y, y) in product(sides[2], sides[1]):
            by_row, row = by_z * by_y, z + y
            for by_x, x in sides[0]:
                # Within one corner no two voxels of the result meet, so that the sum has one order.
                values.scatter_add_(0, labels[row + x].long()[None], (by_row * by_x)[None])
        values = values[1:].view(len(of.structures), *(fine,) * 3)
        if of.overlaps:
            hidden = place.new_zeros(1, len(of.overlaps), *(source,) * 3)
            for row, (_, mask, voxels) in enumerate(of.overlaps):
                hidden[(0, row, *mask.box)] = voxels.to(hidden)
            slots = self.put(torch.tensor([slot for slot, *_ in of.overlaps]))
            values.index_add_(0, slots, ops.resample(hidden, place[None], padding="zeros")[0])
        return values if fine == loss else F.avg_pool3d(values[None], fine // loss)[0]

    @cached_property
    def _places(self) -> Tensor:
        """Where voxels lie in the exams as the store has them, ``[n, 3, f, f, f]``, normalised.

        They are the voxels of the loss grid, or of a finer grid from whose means the loss grid is made.
        """
        size, source = self.maps.size, self.maps.source
        fine = max(self.maps.loss_size, source // 2)
        extent = pooled_extent(size, source)
        place = self.augmentation.coords(fine, self.maps.device, extent=pooled_extent(fine, source) / extent)
        return place * extent


def pooled_extent(size: int, source: int) -> float:
    """How far out the outermost means over blocks of voxels lie, as a fraction of where the outermost voxels lie.

    ``size`` blocks lie along each axis of ``source`` voxels.
    """
    return 1 - (source // size - 1) / (source - 1)
