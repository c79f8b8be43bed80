"""The structures that a supervised model finds by itself, where a model of coordinates needs a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.model.fit import Fit
from deepatlas.names.meet import chosen
from deepatlas.space.grid import Grid
from deepatlas.space.stack import overlap_matrix, rows_of, stack_order
from deepatlas.space.volume import Volume

# The probability from which a voxel belongs to a structure.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Structures:
    """The channels of a supervised model.

    Attributes:
        names: the names of the K structures.
        ids: their ids in label images.
        sizes: the part of an exam that each of them fills on average.
        overlaps: the pairs of structures that were drawn over each other, ``[lower, upper]``.
        channels: their channels in the network's answer; None where these are all of them in order.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    sizes: tuple[float, ...]
    overlaps: tuple[tuple[str, str], ...] = ()
    channels: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Structures:
        """Inverse of :meth:`to_dict`."""
        pairs = tuple((str(a), str(b)) for a, b in values["overlaps"])
        return cls(tuple(values["names"]), tuple(values["ids"]), tuple(values["sizes"]), pairs)

    def to_dict(self) -> dict[str, Any]:
        """The form in which a model file holds all structures of a model."""
        facts = {key: list(value) for key, value in asdict(self).items() if key != "channels"}
        return facts | {"overlaps": [list(pair) for pair in self.overlaps]}

    @property
    def labels(self) -> dict[str, int]:
        """``{name: id}``, as in ``labels.json``."""
        return dict(zip(self.names, self.ids, strict=True))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability from which a voxel belongs to each structure."""
        return (THRESHOLD,) * len(self.names)

    @cached_property
    def overlapping(self) -> NDArray[np.bool_]:
        """Bool ``[K, K]``: which structures may have a voxel in common."""
        return overlap_matrix(len(self.names), rows_of(self.overlaps, self.names))

    @cached_property
    def stack(self) -> tuple[int, ...]:
        """The rows of the structures in the order in which a label image shows them, the lowest first."""
        return stack_order(self.sizes, rows_of(self.overlaps, self.names))

    def select(self, names: Sequence[str], name: str = "model") -> Structures:
        """Some of the structures, in the order of ``names``, which may be spelled otherwise or be synonyms.

        ``name`` is what a message calls the model, for example its file.

        Raises :class:`~deepatlas.errors.DataError` for a name that the model does not have.
        """
        found = chosen(names, self.names, name)
        rows = [self.names.index(structure) for structure in found]
        channels = self.channels or tuple(range(len(self.names)))
        return Structures(
            tuple(found),
            tuple(self.ids[row] for row in rows),
            tuple(self.sizes[row] for row in rows),
            self.overlaps,
            tuple(channels[row] for row in rows),
        )


@dataclass(frozen=True)
class ExamProbabilities:
    """What a supervised model says about one exam, on the grid of the network's input.

    Attributes:
        probabilities: ``[K, S, S, S]``, float32 on the model's device: for each of the model's structures, the
            probability that a voxel belongs to it.
        grid: the grid of these S^3 voxels: RAS+, cropped as in training.
        hu: the exam on that grid, in Hounsfield units or on the scale of :mod:`deepatlas.space.intensity`.
        body: ``[S, S, S]``, the foreground of the exam.
        fit: null, with the reason; and what is unusual about the exam's voxels.
        image: the whole exam with values as the network takes them, on its own grid; None where it was not kept.
    """

    probabilities: Tensor
    grid: Grid
    hu: Volume
    body: NDArray[np.bool_]
    fit: Fit
    image: Volume | None = None
