"""One run in several processes (torchrun): which process computes which exams, and how gradients are summed.

Every process draws the random numbers of the full batch from the same generator and computes its own rows, so that a
run does not depend on the number of processes. Gradients are summed in one all-reduce per step, after the backward
pass. They are only a few megabytes, so that overlapping it with the backward pass would save little; and unlike
DistributedDataParallel, this allows heads that do not learn yet and batches computed in parts.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepatlas.errors import DeepAtlasError
from deepatlas.train.feed.device import upload

# The time for which the other processes wait while the first one prepares the data.
_PATIENCE = datetime.timedelta(days=2)


class World:
    """The processes of a run. Without torchrun there is one, and all methods return at once.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        device: the device of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        self._waiting = None
        self._lost = False
        if self.size == 1:
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        if device.type == "cuda":
            if device.index is None:
                local = int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count()
                self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        with self._peers():
            if not dist.is_initialized():
                dist.init_process_group(backend)
            self._waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    def parts(self, count: int, accumulate: int = 1) -> list[range]:
        """The rows of a batch of ``count`` exams that this process computes, in at most ``accumulate`` parts."""
        mine = _split(range(count), self.size)[self.rank]
        return [part for part in _split(mine, accumulate) if len(part)]

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the first process and then in all others, which find what the first one has made."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def sum_gradients(self, parameters: Sequence[nn.Parameter], *numbers: Tensor) -> list[Tensor]:
        """Replace every gradient by its sum over the processes; returns the sums of ``numbers`` (0-d tensors)."""
        if self.size == 1:
            return list(numbers)
        grads = [p.grad for p in parameters if p.grad is not None]
        tail = torch.stack([upload(n.detach().float(), self.device) for n in numbers])
        flat = torch.cat([*(g.reshape(-1) for g in grads), tail])
        self._all_reduce(flat)
        place = 0
        for grad in grads:
            grad.copy_(flat[place : place + grad.numel()].view_as(grad))
            place += grad.numel()
        return list(flat[place:].unbind())

    def sum_tensors(self, *tensors: Tensor) -> None:
        """Replace float32 tensors of one device by their sums over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_scalars(self, values: dict[str, float]) -> dict[str, float]:
        """The sums over the processes of numbers that all of them hold."""
        if self.size == 1:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        self._all_reduce(flat)
        return dict(zip(values, flat.tolist(), strict=True))

    def close(self) -> None:
        """End the communication, after which the first process works alone."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            with self._peers():
                dist.barrier(group=self._waiting)

    def _all_reduce(self, flat: Tensor) -> None:
        with self._peers():
            dist.all_reduce(flat)

    def _terminated(self, number: int, frame) -> None:
        """The handler of SIGTERM outside the phases.

        torchrun sends SIGTERM to all processes that are left as soon as one has failed, and waits half a minute. A
        process that has noticed the loss is ending already, and ignores the signal so that it can report the error.
        """
        if not self._lost:
            raise KeyboardInterrupt(f"process {self.rank} of {self.size} was told to end (SIGTERM)")

    @contextlib.contextmanager
    def _peers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # torch.distributed has no exception type of its own for a lost connection.
            self._lost = True
            reason = str(error).strip().splitlines()[0][:160]
            raise DeepAtlasError(
                f"process {self.rank} of {self.size} lost the others ({reason}); --resume continues the run from its "
                "last checkpoint, on any number of processes"
            ) from None


def _split(rows: range, pieces: int) -> list[range]:
    """Consecutive pieces whose lengths differ by at most one."""
    bounds = [rows.start + len(rows) * i // pieces for i in range(pieces + 1)]
    return [range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
