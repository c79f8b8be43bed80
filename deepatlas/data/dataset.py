"""The training cohort as tensors on the device, with augmentation in batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.data.augment import Augmentation
from deepatlas.data.preprocess import normalize
from deepatlas.data.store import SIZE, Store

SIZES = (16, 32, 64)


class TrainingArray:
    """All exams of a store at one size, held on the device.

    Attributes:
        volumes: float16 ``[N, 1, s, s, s]`` in [0, 1] (a step of at most 0.25 HU; 0.5 MiB an exam at 64).
        masks: uint8 ``[N, 1, s, s, s]``, 1 in the foreground.
        ids: exam ids, in the order of the first axis.
        size, device.

    Args:
        store: the prepared cohort.
        size: 16, 32 or 64. Smaller sizes average Hounsfield units before the clipping, as preprocessing to
            that size would; a mask voxel counts when at least half of it is foreground.
        device: where the tensors live.
        exams: positions in the store to take, all by default.
    """

    def __init__(
        self,
        store: Store,
        size: int = SIZE,
        device: torch.device | str = "cpu",
        *,
        exams: Sequence[int] | None = None,
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"TrainingArray: size must be one of {SIZES}, got {size}")
        chosen = range(len(store)) if exams is None else list(exams)
        self.size, self.device = size, torch.device(device)
        self.ids = [store.ids[i] for i in chosen]
        shape = (len(chosen), 1, size, size, size)
        self.volumes = torch.empty(shape, dtype=torch.float16, device=self.device)
        self.masks = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for row, i in enumerate(chosen):
            hu = torch.from_numpy(store.hu[i].astype(np.float32))[None]
            mask = torch.from_numpy(store.mask[i].astype(np.float32))[None]
            if size != SIZE:
                hu = torch.nn.functional.avg_pool3d(hu, SIZE // size)
                mask = torch.nn.functional.avg_pool3d(mask, SIZE // size)
            self.volumes[row] = normalize(hu)
            self.masks[row] = mask >= 0.5

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        generator: torch.Generator | None = None,
        augment: bool = True,
        elastic: float = 0.0,
        **ranges: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exams as float32 ``(x, mask, theta)``: ``[B, 1, s, s, s]`` twice and ``[B, 3, 4]``.

        With ``augment`` each exam goes through its own random affine map (see
        :func:`~deepatlas.data.augment.random_affine`, which ``ranges`` are passed to) and, with ``elastic``
        above 0, a smooth displacement of that strength
        (:func:`~deepatlas.data.augment.random_displacement`); what comes in from outside is air (0) and not
        foreground. Without it theta is the identity. The same generator state gives the same batch.
        """
        drawn = Augmentation.draw(len(indices), generator, elastic=elastic, **ranges) if augment else None
        theta = torch.eye(3, 4).repeat(len(indices), 1, 1) if drawn is None else drawn.theta
        return *self.take(indices, drawn), theta.to(self.device)

    def take(
        self, indices: Sequence[int] | Tensor, augmentation: Augmentation | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(x, mask)`` of :meth:`batch` under maps that were drawn before; as they are without."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        x, mask = self.volumes[index].float(), self.masks[index].float()
        if augmentation is None:
            return x, mask
        if augmentation.control is not None:
            coords = augmentation.coords(self.size, self.device)
            x = ops.resample(x, coords, padding="zeros")
            return x, ops.resample(mask, coords, mode="nearest", padding="zeros")
        theta, size = augmentation.theta.to(self.device), (self.size,) * 3
        x = ops.affine_resample(x, theta, size, padding="zeros")
        return x, ops.affine_resample(mask, theta, size, mode="nearest", padding="zeros")
