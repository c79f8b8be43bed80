"""The structures of one exam on one grid: a label image, and the masks that it has no room for.

A label image holds one structure a voxel. Where structures overlap, it shows the one on top, and :class:`Labels` keeps
what it hides of the others: for each such structure the hidden voxels, one bit each, in the smallest box around them.
Nothing is kept where nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import ndimage

from deepatlas.space.grid import Grid, Shape
from deepatlas.space.volume import Volume

# Planning volumes that contain healthy tissue around what is seen.
_MARGINS = ("ptv", "ctv", "itv")


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A mask in a box of a larger array: the first voxel and the shape of the box (z, y, x), and one bit a voxel."""

    start: Shape
    shape: Shape
    packed: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], start: Sequence[int] = (0, 0, 0)) -> BoxMask:
        """``mask``, which begins at the voxel ``start`` of the larger array, in the smallest box around it."""
        box = []
        for axis in range(3):
            used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
        inner = mask[tuple(box)]
        first = tuple(int(s) + b.start for s, b in zip(start, box, strict=True))
        return cls(first, inner.shape, np.packbits(inner))  # type: ignore[arg-type]

    @classmethod
    def union(cls, masks: Sequence[BoxMask]) -> BoxMask:
        """The voxels that belong to any of ``masks``, of which there is at least one."""
        if len(masks) == 1:
            return masks[0]
        low = np.min([m.start for m in masks], axis=0)
        high = np.max([np.add(m.start, m.shape) for m in masks], axis=0)
        whole = np.zeros(high - low, dtype=bool)
        for mask in masks:
            whole[mask.shifted(low).box] |= mask.array()
        return cls.of(whole, low.tolist())

    @property
    def box(self) -> tuple[slice, ...]:
        """The index of the box in the larger array."""
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))

    def array(self) -> NDArray[np.bool_]:
        """The voxels of the box."""
        bits = np.unpackbits(self.packed, count=math.prod(self.shape))
        return bits.view(bool).reshape(self.shape)

    def count(self) -> int:
        """The number of voxels of the mask."""
        return int(np.unpackbits(self.packed).sum(dtype=np.int64))

    def shifted(self, origin: Sequence[int]) -> BoxMask:
        """The same mask in an array whose first voxel is the voxel ``origin`` of this one."""
        z, y, x = (int(s - o) for s, o in zip(self.start, origin, strict=True))
        return replace(self, start=(z, y, x))

    def within(self, start: Sequence[int], shape: Sequence[int]) -> BoxMask | None:
        """The part in a box of the larger array, as a mask of an array of that box; None without a voxel there."""
        low = [max(a, b) for a, b in zip(self.start, start, strict=True)]
        high = [min(a + n, b + m) for a, n, b, m in zip(self.start, self.shape, start, shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        box = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
        part = BoxMask.of(self.array()[box], low).shifted(start)
        return part if part.packed.size else None


@dataclass(repr=False)
class Labels(Volume):
    """A label image ``array`` (integer ids, 0 is the background) and the masks of structures that overlap.

    ``hidden`` maps the id of a structure to its voxels that have another id in ``array``. :meth:`mask` gives the whole
    mask of a structure, whether it overlaps others or not.
    """

    hidden: dict[int, BoxMask] = field(default_factory=dict)

    @classmethod
    def of(cls, volume: Volume) -> Labels:
        """``volume`` itself if it is one, otherwise its label image, in which nothing overlaps."""
        return volume if isinstance(volume, Labels) else cls(volume.array, volume.grid, volume.name)

    @classmethod
    def painted(
        cls, masks: Iterable[tuple[int, BoxMask]], grid: Grid, dtype: DTypeLike, name: str = ""
    ) -> Labels:
        """The structures ``(id, mask)``, each id once: in the label image, a later one lies on those before it."""
        masks = list(masks)
        array = np.zeros(grid.shape, dtype=dtype)
        for identity, mask in masks:
            array[mask.box][mask.array()] = identity
        hidden = {}
        for identity, mask in masks:
            lost = mask.array() & (array[mask.box] != identity)
            if lost.any():
                hidden[identity] = BoxMask.of(lost, mask.start)
        return cls(array, grid, name, hidden)

    def mask(self, identity: int) -> NDArray[np.bool_]:
        """The whole mask ``[D, H, W]`` of a structure, which is empty if it was not drawn."""
        mask = np.asarray(self.array == identity)
        if (hidden := self.hidden.get(identity)) is not None:
            mask[hidden.box] |= hidden.array()
        return mask

    def boxes(self) -> dict[int, tuple[slice, slice, slice]]:
        """The smallest box (z, y, x) around the label of each structure and its hidden part, by ascending id.

        Structures without a voxel have none.
        """
        found = {
            identity: box
            for identity, box in enumerate(ndimage.find_objects(self.array), 1)
            if box is not None
        }
        for identity, mask in self.hidden.items():
            box = found.get(identity, mask.box)
            z, y, x = (
                slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, mask.box, strict=True)
            )
            found[identity] = (z, y, x)
        return dict(sorted(found.items()))

    def mask_in(self, identity: int, box: Sequence[slice]) -> NDArray[np.bool_]:
        """The whole mask of a structure within its box, as :meth:`boxes` gives it."""
        mask = np.asarray(self.array[tuple(box)] == identity)
        if (hidden := self.hidden.get(identity)) is not None:
            mask[hidden.shifted([side.start for side in box]).box] |= hidden.array()
        return mask

    def ids(self) -> set[int]:
        """The ids of the structures that have at least one voxel."""
        if self.array.dtype.itemsize > 2:
            return ({int(i) for i in np.unique(self.array)} | set(self.hidden)) - {0}
        # Counting slice by slice takes a tenth of the time of sorting all voxels.
        counts = np.zeros(int(self.array.max(initial=0)) + 1, dtype=np.int64)
        for plane in self.array:
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return ({int(i) for i in np.flatnonzero(counts)} | set(self.hidden)) - {0}

    def shared(self) -> dict[tuple[int, int], int]:
        """``{(lower, upper): voxels}`` that belong to both structures; the label image shows more of ``upper``."""
        on_top: dict[tuple[int, int], int] = {}
        both: dict[tuple[int, int], int] = {}
        for identity, mask in self.hidden.items():
            shown = np.bincount(self.array[mask.box][mask.array()])
            for other in np.flatnonzero(shown):
                on_top[identity, int(other)] = int(shown[other])
        for a, b in combinations(sorted(self.hidden), 2):
            part = self.hidden[b].within(self.hidden[a].start, self.hidden[a].shape)
            if part is not None:
                both[a, b] = int(np.count_nonzero(self.hidden[a].array()[part.box] & part.array()))
        found = {}
        for a, b in sorted({(min(p), max(p)) for p in (*on_top, *both)} - {(0, 0)}):
            a_below, b_below = on_top.get((a, b), 0), on_top.get((b, a), 0)
            if count := a_below + b_below + both.get((a, b), 0):
                found[(a, b) if a_below >= b_below else (b, a)] = count
        return found

    def canonical(self) -> Labels:
        """As :meth:`Volume.canonical <deepatlas.space.volume.Volume.canonical>`."""
        whole, (_, axes, flips) = super().canonical(), self.grid.canonical()
        hidden = {}
        for identity, mask in self.hidden.items():
            start = [
                whole.grid.shape[new] - mask.start[old] - mask.shape[old] if new in flips else mask.start[old]
                for new, old in enumerate(axes)
            ]
            hidden[identity] = BoxMask.of(np.flip(mask.array().transpose(axes), flips), start)
        return replace(self, array=whole.array, grid=whole.grid, hidden=hidden)

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Labels:
        """As :meth:`Volume.cropped <deepatlas.space.volume.Volume.cropped>`."""
        whole = super().cropped(start, shape)
        hidden = hidden_within(self.hidden, start, shape)
        return replace(self, array=whole.array, grid=whole.grid, hidden=hidden)

    def subsampled(self, step: Sequence[int]) -> Labels:
        """Every ``step``-th voxel along z, y and x, from the first one."""
        array = np.ascontiguousarray(self.array[tuple(slice(None, None, s) for s in step)])
        grid = Grid(array.shape, self.grid.affine @ np.diag([*step[::-1], 1.0]))
        hidden = {}
        for identity, mask in self.hidden.items():
            skip = [-first % s for first, s in zip(mask.start, step, strict=True)]
            kept = mask.array()[tuple(slice(o, None, s) for o, s in zip(skip, step, strict=True))]
            if kept.any():
                start = [(first + o) // s for first, o, s in zip(mask.start, skip, step, strict=True)]
                hidden[identity] = BoxMask.of(kept, start)
        return replace(self, array=array, grid=grid, hidden=hidden)


def hidden_within(
    hidden: Mapping[int, BoxMask], start: Sequence[int], shape: Sequence[int]
) -> dict[int, BoxMask]:
    """The part of ``hidden`` in a box, for a label image of that box."""
    parts = {identity: mask.within(start, shape) for identity, mask in hidden.items()}
    return {identity: part for identity, part in parts.items() if part is not None}


def is_margin(name: str) -> bool:
    """Whether a structure is a planning volume that contains healthy tissue by design: PTV, CTV or ITV."""
    return name.casefold().startswith(_MARGINS)


def stacked(sizes: Mapping[str, int], outlines: Collection[str] = ()) -> list[str]:
    """The order in which structures are painted into a label image, the lowest first.

    The smaller one lies on top, so that a tumour is seen in the lung in which it grows; of two equal ones, the later.
    Planning volumes that contain healthy tissue by design (PTV, CTV, ITV) lie below the anatomy, and ``outlines`` of
    the whole body below everything.

    Args:
        sizes: the number of voxels of each structure, by its name.
        outlines: names of structures that enclose all others.
    """

    def place(name: str) -> tuple[int, int]:
        return 0 if name in outlines else 1 if is_margin(name) else 2, -sizes[name]

    return sorted(sizes, key=place)
