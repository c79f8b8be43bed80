"""The structures of an exam as the page holds them: drawn once on the exam's own grid, which is what is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deepatlas.localize.template.file import Template
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.view.pack import pack


@dataclass(frozen=True)
class OwnStructures:
    """The structures of a template in one exam, packed, since label images of a dozen large exams are gigabytes.

    Attributes:
        grid: the exam's own grid.
        masks: the id and the whole mask of each structure, the lowest first.
        dtype: the type of the label image.
        notes: what was odd about them.
    """

    grid: Grid
    masks: tuple[tuple[int, BoxMask], ...]
    dtype: DTypeLike
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Labels, template: Template, notes: Sequence[str] = ()) -> OwnStructures:
        """The structures of a label image of the exam."""
        ids = [template.ids[row] for row in template.stack]
        masks = tuple((i, BoxMask.of(labels.mask(i))) for i in ids)
        return cls(labels.grid, masks, labels.array.dtype, tuple(notes))

    def labels(self, name: str = "") -> Labels:
        """The label image on the exam's own grid."""
        return Labels.painted(self.masks, self.grid, self.dtype, name)

    def millilitres(self) -> dict[int, float]:
        """The volumes of whole masks by the ids of their structures; those that were not found are missing."""
        counts = {identity: mask.count() for identity, mask in self.masks}
        return {i: n * self.grid.voxel_volume / 1000 for i, n in counts.items() if n}

    def body(self, shown: Grid, shares: Mapping[int, float]) -> bytes:
        """The structures on the grid of the picture, for the page.

        Args:
            shown: the grid of the picture. Volumes are those on the exam's own grid.
            shares: how much of each structure the exam shows, by its id.
        """
        header = {
            "millilitres": {str(i): v for i, v in self.millilitres().items()},
            "shares": {str(i): round(v, 3) for i, v in shares.items()},
            "notes": list(self.notes),
        }
        return labels_body(labels_to_grid(self.labels(), shown), header)


def labels_body(labels: Labels, header: Mapping[str, Any]) -> bytes:
    """A label image for the page, and the masks that it hides where structures overlap, one bit a voxel."""
    hidden = {str(identity): box_dict(mask) for identity, mask in labels.hidden.items()}
    arrays: dict[str, NDArray[np.generic]] = {"labels": labels.array}
    for identity, mask in labels.hidden.items():
        arrays[f"hidden{identity}"] = mask.packed
    return pack({"hidden": hidden, **header}, arrays)


def box_dict(mask: BoxMask) -> dict[str, Any]:
    """Where the box of a mask is, as JSON values."""
    return {"start": list(mask.start), "shape": list(mask.shape)}
