"""Overlaps of structures in HDF5: what a label image hides, as a table of boxes and their bits.

A group holds ``boxes``, int64 [n, 7]: for each structure its id, and the first voxel and the shape (z, y, x) of the box
around the voxels that the label image beside it hides; and ``bits``, uint8: these voxels in C order, one bit each,
padded to whole bytes for every structure (``numpy.packbits``). Both carry the checksums of HDF5. A group is absent
where nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from deepatlas.space.labels import BoxMask

# Bits are mostly compressed to a hundredth, so that a chunk is a few kilobytes in the file.
_CHUNK = 1 << 18


def write_hidden(parent: h5py.Group, name: str, hidden: Mapping[int, BoxMask]) -> None:
    """Write ``hidden`` as the group ``name`` of ``parent``, unless it is empty. The same masks give the same bytes."""
    if not hidden:
        return
    group = parent.create_group(name)
    ids = sorted(hidden)
    boxes = np.array([[i, *hidden[i].start, *hidden[i].shape] for i in ids], dtype=np.int64)
    bits = np.concatenate([hidden[i].packed for i in ids])
    for key, data, chunks in (("boxes", boxes, boxes.shape), ("bits", bits, (min(len(bits), _CHUNK),))):
        group.create_dataset(
            key, data=data, chunks=chunks, compression="gzip", compression_opts=1, fletcher32=True
        )
        # Otherwise the order of the chunks in the file would depend on when Python deletes the dataset objects.
        parent.file.flush()


def read_hidden(parent: h5py.Group, name: str, shape: Sequence[int]) -> dict[int, BoxMask]:
    """What :func:`write_hidden` wrote, or nothing if there is no such group.

    ``shape`` is that of the label image. Raises :class:`ValueError` where the boxes do not lie in it, or do not have
    the number of bits that is there, apart from the errors of h5py.
    """
    if name not in parent:
        return {}
    boxes, bits = parent[name]["boxes"][:], parent[name]["bits"][:]
    hidden, place = {}, 0
    for identity, *numbers in boxes.tolist():
        start, size = tuple(numbers[:3]), tuple(numbers[3:])
        length = -(-math.prod(size) // 8)
        if any(a < 0 or n < 1 or a + n > side for a, n, side in zip(start, size, shape, strict=True)):
            raise ValueError(f"{name}: a box leaves the label image")
        if identity in hidden or place + length > len(bits):
            raise ValueError(f"{name}: boxes and bits contradict each other")
        hidden[identity] = BoxMask(start, size, bits[place : place + length])
        place += length
    if place != len(bits):
        raise ValueError(f"{name}: boxes and bits contradict each other")
    return hidden
