"""The training cohort as augmented exams on the device. Here all exams are held there; streaming.py reads ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import INPUT_SIZES
from deepatlas.space.constants import MODEL_SIZE
from deepatlas.space.preprocess import normalize
from deepatlas.store.store import Store
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.device import upload

# Number of exams that are read from the store at once.
BLOCK = 64


class ExamArray:
    """Exams of a store at one size, addressed by their position.

    Attributes:
        ids: exam ids, in the order of the positions.
        size: side length in voxels.
        device: the device of the tensors that are returned.
        ahead: number of future batches that :meth:`expect` should announce.

    Args:
        store: the prepared cohort.
        size: 16, 32 or 64. Smaller sizes average Hounsfield units before clipping, as preprocessing to that size
            does; a mask voxel is foreground if at least half of it is.
        device: the device of the tensors that are returned.
        exams: positions in the store; all of them by default.

    Raises:
        ValueError: another size.
    """

    ahead = 0

    def __init__(
        self,
        store: Store,
        size: int = MODEL_SIZE,
        device: torch.device | str = "cpu",
        *,
        exams: Sequence[int] | None = None,
    ) -> None:
        if size not in INPUT_SIZES:
            raise ValueError(f"{type(self).__name__}: size must be one of {INPUT_SIZES}, got {size}")
        self.rows = list(range(len(store)) if exams is None else exams)
        self.size, self.device = size, torch.device(device)
        self.ids = [store.ids[i] for i in self.rows]
        self._open(store)

    def _open(self, store: Store) -> None:
        """Load the exams, or prepare to read them."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Float16 volumes in [0, 1] (a step of at most 0.25 HU) and uint8 masks, ``[n, 1, s, s, s]``."""
        raise NotImplementedError

    def expect(self, parts: Iterable[Sequence[int]]) -> None:
        """Announce the indices of the next calls of :meth:`take`. This is a hint that changes no result."""

    def close(self) -> None:
        """Close files and end threads; no exam can be taken afterwards."""

    def __enter__(self) -> ExamArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        generator: torch.Generator | None = None,
        augment: bool = True,
        elastic: float = 0.0,
        **ranges: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exams as float32 ``(x, mask, theta)`` of shapes ``[B, 1, s, s, s]`` (twice) and ``[B, 3, 4]``.

        With ``augment`` each exam is moved by its own random affine map (``ranges`` are passed to
        :func:`~deepatlas.space.affine.random_affine`) and, if ``elastic`` is above 0, by a smooth displacement of that
        strength (:class:`~deepatlas.train.feed.augment.Augmentation`). Beyond the original grid there is air
        (0), which is not foreground. Without ``augment`` theta is the identity. The same generator state gives the
        same batch.
        """
        drawn = Augmentation.draw(len(indices), generator, elastic=elastic, **ranges) if augment else None
        theta = torch.eye(3, 4).repeat(len(indices), 1, 1) if drawn is None else drawn.theta
        return *self.take(indices, drawn), theta.to(self.device)

    def take(
        self, indices: Sequence[int] | Tensor, augmentation: Augmentation | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(x, mask)`` of :meth:`batch` under the given maps, or without augmentation."""
        x, mask = (tensor.float() for tensor in self.load(indices))
        if augmentation is None:
            return x, mask
        if augmentation.control is not None:
            coords = augmentation.coords(self.size, self.device)
            x = ops.resample(x, coords, padding="zeros")
            return x, ops.resample(mask, coords, mode="nearest", padding="zeros")
        theta, size = upload(augmentation.theta, self.device), (self.size,) * 3
        x = ops.affine_resample(x, theta, size, padding="zeros")
        return x, ops.affine_resample(mask, theta, size, mode="nearest", padding="zeros")


class TrainingArray(ExamArray):
    """All exams held on the device: 0.75 MiB for each exam of 64^3.

    Further attributes:
        volumes: float16 ``[N, 1, s, s, s]`` in [0, 1].
        masks: uint8 ``[N, 1, s, s, s]``, 1 in the foreground.
    """

    def _open(self, store: Store) -> None:
        size = self.size
        shape = (len(self.rows), 1, size, size, size)
        self.volumes = torch.empty(shape, dtype=torch.float16, device=self.device)
        self.masks = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(self.rows), BLOCK):
            rows = self.rows[start : start + BLOCK]
            hu, mask = (torch.from_numpy(array[rows]).to(self.device) for array in (store.hu, store.mask))
            place = slice(start, start + len(rows))
            self.volumes[place], self.masks[place] = network_input(hu, mask, size)

    @staticmethod
    def nbytes(exams: int, size: int) -> int:
        """Bytes of memory for a number of exams of one size."""
        return 3 * exams * size**3

    def load(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = upload(torch.as_tensor(indices, dtype=torch.long), self.device)
        return self.volumes[index], self.masks[index]


def network_input(hu: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Volumes and masks as :meth:`ExamArray.load` returns them, from int16 and uint8 ``[n, 64, 64, 64]``.

    The result is the same to the last bit on any device and for any number of exams, because averages of up to 64
    integers of 16 bits and the division by a power of two are exact in float32.
    """
    hu, mask = hu[:, None], mask[:, None]
    if size != MODEL_SIZE:
        hu = torch.nn.functional.avg_pool3d(hu.float(), MODEL_SIZE // size)
        mask = (torch.nn.functional.avg_pool3d(mask.float(), MODEL_SIZE // size) >= 0.5).to(torch.uint8)
    return normalize(hu).half(), mask
