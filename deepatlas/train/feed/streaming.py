"""A cohort larger than memory: threads read exams from the store before the batches need them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from deepatlas.space.constants import MODEL_SIZE
from deepatlas.store.packed import ROWS, PackedReader
from deepatlas.store.store import Store
from deepatlas.train.feed.memory import available_bytes
from deepatlas.train.feed.resident import ExamArray, TrainingArray, network_input

# Number of batches that are read in advance; each of 64 exams takes 36 MB.
AHEAD = 4
THREADS = 4
# Fraction of the free memory that exams may fill; networks and losses need the rest.
SHARE = 0.5


@dataclass(frozen=True)
class _Part:
    """The exams of one future call of ``take``, while threads read them into ``hu`` and ``bits``."""

    indices: tuple[int, ...]
    hu: Tensor  # int16 [n, 64, 64, 64]
    bits: Tensor  # uint8 [n, 32768]
    jobs: list[Future[None]]

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancel()


class StreamingArray(ExamArray):
    """Exams that stay in the store and are read when they are needed, or in advance (:meth:`expect`).

    Its batches equal those of :class:`~deepatlas.train.feed.resident.TrainingArray` bit for bit. It holds only the
    announced exams, 0.53 MiB each, in page-locked memory if the device is a GPU. Every exam is checked against its
    checksum; :meth:`take` raises :class:`~deepatlas.errors.DataError` for one that cannot be read.

    Args:
        threads: number of reading threads; by default up to 4. The other arguments are those of
            :class:`~deepatlas.train.feed.resident.ExamArray`.
    """

    ahead = AHEAD

    def __init__(
        self,
        store: Store,
        size: int = MODEL_SIZE,
        device: torch.device | str = "cpu",
        *,
        exams: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        self.threads = threads or min(THREADS, os.cpu_count() or 1)
        super().__init__(store, size, device, exams=exams)

    def _open(self, store: Store) -> None:
        self._reader = PackedReader(store.path, store.ids)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="exams")
        self._coming: list[_Part] = []

    def expect(self, parts: Iterable[Sequence[int]]) -> None:
        """Start to read these exams in this order; exams of earlier calls that are not among them are dropped."""
        before, self._coming = self._coming, []
        for indices in parts:
            part = _pop(before, tuple(indices))
            self._coming.append(part or self._start(tuple(indices)))
        for part in before:
            part.cancel()

    def load(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        wanted = tuple(indices.tolist() if isinstance(indices, Tensor) else indices)
        part = _pop(self._coming, wanted) or self._start(wanted)
        for job in part.jobs:
            job.result()
        hu, bits = (tensor.to(self.device, non_blocking=True) for tensor in (part.hu, part.bits))
        return network_input(hu, unpack_bits(bits), self.size)

    def close(self) -> None:
        self.expect([])
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _start(self, indices: tuple[int, ...]) -> _Part:
        # PyTorch does not reuse page-locked memory before the copy out of it has ended.
        pin = self.device.type == "cuda"
        hu = torch.empty(
            (len(indices), MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), dtype=torch.int16, pin_memory=pin
        )
        bits = torch.empty((len(indices), ROWS["mask"][1]), dtype=torch.uint8, pin_memory=pin)
        rows = [self.rows[i] for i in indices]
        jobs = [
            self._pool.submit(
                self._fill, rows, hu.numpy(), bits.numpy(), range(first, len(rows), self.threads)
            )
            for first in range(min(self.threads, len(rows)))
        ]
        return _Part(indices, hu, bits, jobs)

    def _fill(self, rows, hu, bits, places: range) -> None:
        for place in places:
            self._reader.read_into("hu", rows[place], hu[place])
            self._reader.read_into("mask", rows[place], bits[place])


def _pop(parts: list[_Part], indices: tuple[int, ...]) -> _Part | None:
    for place, part in enumerate(parts):
        if part.indices == indices:
            return parts.pop(place)
    return None


def unpack_bits(bits: Tensor) -> Tensor:
    """Unpack uint8 ``[n, 32768]`` to uint8 ``[n, 64, 64, 64]`` of 0 and 1, as ``numpy.unpackbits``, on any device."""
    shift = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (bits[..., None] >> shift).bitwise_and_(1).view(-1, MODEL_SIZE, MODEL_SIZE, MODEL_SIZE)


def training_array(
    store: Store,
    size: int,
    device: torch.device | str,
    *,
    exams: Sequence[int] | None = None,
    resident: str | bool = "auto",
) -> ExamArray:
    """The training exams, held on the device or streamed from the store.

    ``resident`` true holds them and false streams them; ``"auto"`` holds them if they fill at most half of the
    device's free memory. The other arguments are those of :class:`~deepatlas.train.feed.resident.ExamArray`.
    """
    if resident == "auto":
        needed = TrainingArray.nbytes(len(store) if exams is None else len(exams), size)
        free = available_bytes(torch.device(device))
        resident = free is None or needed <= SHARE * free
    return (TrainingArray if resident else StreamingArray)(store, size, device, exams=exams)
