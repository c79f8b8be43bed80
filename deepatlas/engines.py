"""The engines that do the work on exams: processes of this machine, or a dask cluster through joblib.

Jobs and results are small and picklable; arrays are written to files. Every engine yields results as they are done,
takes no more jobs than its workers and their short queues need, and ends at once when its iterator is closed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from deepatlas.errors import DataError, DeepAtlasError, show_warning
from deepatlas.io.itk import simpleitk

Job = TypeVar("Job")
Result = TypeVar("Result")

ENGINES = ("processes", "dask")
# Jobs that a process does before a new one replaces it, so that memory leaks of C libraries do not accumulate.
_RECYCLE = 1000
# How long a process may take to import what it needs, on a slow disk.
_START_SECONDS = 300.0
# Enough for a thorax at 0.6 mm in float32, its copy in RAS order and its label image.
_BYTES_PER_WORKER = 3 << 30


@dataclass(frozen=True)
class Died:
    """Takes the place of a result if the process ended, or was ended, while it worked on the job."""

    reason: str


def default_workers() -> int:
    """The number of CPU cores that this process may use, at most one for every 3 GB of memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        cores = min(cores, memory // _BYTES_PER_WORKER)
    return max(1, cores)


def open_engine(
    engine: str = "processes",
    *,
    workers: int = 1,
    address: str | None = None,
    timeout: float | None = None,
    preload: str = "torch",
) -> Processes | Cluster:
    """Open an engine, a context manager whose processes live until its end.

    Its ``run(work, jobs)`` yields ``(job, result)`` in the order in which the jobs are done; ``work`` is a function at
    the top level of a module. A process that crashes (a fault in a C library, lack of memory) costs its job only,
    which yields :class:`Died`. Exceptions of ``work`` are raised.

    Args:
        engine: ``"processes"`` of this machine, or ``"dask"`` for the cluster whose scheduler is at ``address``.
        workers: the number of processes. A cluster has a size of its own.
        timeout: seconds that a process may take for a job before it is ended.
        preload: the module that ``work`` is in. It is imported once for all processes, where the system can fork them.

    Raises :class:`~deepatlas.errors.DataError` if dask is not installed, or its cluster cannot be reached.
    """
    if engine == "processes":
        return Processes(workers, timeout, preload)
    if engine == "dask":
        return Cluster(address)
    raise ValueError(f"open_engine: engine must be one of {ENGINES}, got {engine!r}")


# -- processes of this machine ------------------------------------------------------------------------


class _Worker:
    """A process with its own pipe, so that its death does not affect the job of another one."""

    def __init__(self, preload: str) -> None:
        context = _context(preload)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            self.process.start()
        finally:
            theirs.close()
        self.job: Any = None
        self.busy, self.ready, self.jobs = False, False, 0
        self.since = time.monotonic()

    def give(self, work: Callable[[Any], Any], job: Any) -> None:
        self.job, self.busy, self.since = job, True, time.monotonic()
        self.jobs += 1
        # If the process has died, take() will notice.
        with suppress(OSError):
            self.pipe.send((work, job))

    def take(self) -> tuple[bool, Any]:
        """``(True, result)``, or ``(False, reason)`` if the process died."""
        try:
            return True, self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return False, _how_it_ended(self.process.exitcode)

    def end(self) -> None:
        # An idle process ends when its pipe is closed.
        self.pipe.close()
        self.process.join(0 if self.busy or not self.ready else 2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Processes:
    """Processes of this machine, started when there is work for them; see :func:`open_engine`."""

    def __init__(self, workers: int = 1, timeout: float | None = None, preload: str = "torch") -> None:
        self._count, self._timeout, self._preload = max(1, workers), timeout, preload
        self._pool: list[_Worker] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        while self._pool:
            self._pool.pop().end()

    def run(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        queue = iter(jobs)
        try:
            while True:
                self._feed(work, queue)
                busy = [w for w in self._pool if w.busy]
                if not busy:
                    return
                done = wait([w.pipe for w in busy], timeout=None if self._timeout is None else 1.0)
                for worker in busy:
                    result = self._look(worker, worker.pipe in done)
                    if result is _NOTHING:
                        continue
                    job = worker.job
                    if isinstance(result, Died) or worker.jobs >= _RECYCLE:
                        self._pool.remove(worker)
                        worker.end()
                    if isinstance(result, _Raised):
                        raise result.error
                    # The workers get their next jobs before the caller deals with the result.
                    self._feed(work, queue)
                    yield job, result
        finally:
            # After an error, or if nobody wants the remaining results.
            for worker in [w for w in self._pool if w.busy]:
                self._pool.remove(worker)
                worker.end()

    def _feed(self, work: Callable[[Any], Any], queue: Iterator[Any]) -> None:
        """Give every idle process a job, and start further processes while there are jobs for them."""
        idle = [w for w in self._pool if not w.busy]
        while idle or len(self._pool) < self._count:
            try:
                job = next(queue)
            except StopIteration:
                return
            if not idle:
                self._pool.append(_Worker(self._preload))
            (idle.pop() if idle else self._pool[-1]).give(work, job)

    def _look(self, worker: _Worker, answered: bool) -> Any:
        """The result of a worker, :class:`Died`, or ``_NOTHING`` if it is still working."""
        if answered:
            ok, result = worker.take()
            if ok and not worker.ready:
                # The first message tells that the process has imported what it needs.
                worker.ready, worker.since = True, time.monotonic()
                return _NOTHING
        else:
            limit = self._timeout if worker.ready else _START_SECONDS
            if limit is None or time.monotonic() - worker.since < limit:
                return _NOTHING
            ok, result = False, f"not done after {limit:.0f} seconds"
        if not ok and not worker.ready:
            raise DataError(
                f"a worker process does not start ({result}); a script that calls this needs "
                "`if __name__ == '__main__':` around its call"
            )
        # A process that died or hangs cannot be asked to end.
        worker.busy = not ok
        return result if ok else Died(result)


_NOTHING = object()


def _context(preload: str) -> Any:
    """How processes start: without locks and open files of this one, and with all modules imported once for all."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        # On Windows.
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


@dataclass
class _Raised:
    error: BaseException


def _serve(pipe: Connection) -> None:
    """What a worker process does: take jobs from the pipe and return results until the pipe is closed."""
    # The parent answers Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    warnings.showwarning = show_warning
    one_thread()
    with suppress(OSError, EOFError):
        pipe.send("ready")
        while True:
            work, job = pipe.recv()
            try:
                result = work(job)
            except Exception as error:
                result = _Raised(_portable(error))
            pipe.send(result)


def _portable(error: Exception) -> Exception:
    """An error that can be sent to another process; what a user can solve stays one line there."""
    if isinstance(error, DeepAtlasError):
        return DataError(error)
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End this process as soon as its parent is killed, since nobody would take its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def one_thread() -> None:
    """Restrict the libraries to one thread, because there is a process for each core."""
    torch.set_num_threads(1)
    simpleitk().ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "its process does not answer"
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"its process was ended by {name}" + (", perhaps for lack of memory" if code == -9 else "")
    return f"its process ended with code {code}"


# -- cluster ------------------------------------------------------------------------------------------


class Cluster:
    """joblib with a dask cluster as its backend; see :func:`open_engine`."""

    def __init__(self, address: str | None = None) -> None:
        self._address, self._open = address, ExitStack()

    def __enter__(self) -> Cluster:
        self._joblib, self._slots = self._open.enter_context(_dask(self._address))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        parallel = self._joblib.Parallel(
            n_jobs=self._slots, pre_dispatch="2*n_jobs", batch_size=1, return_as="generator_unordered"
        )
        results = parallel(self._joblib.delayed(_remote)(work, job) for job in jobs)
        try:
            for job, result in results:
                if isinstance(result, _Raised):
                    raise result.error
                yield job, result
        except (KilledWorker, CommClosedError) as error:
            raise DataError(
                f"dask: a worker of the cluster died ({type(error).__name__}); run the same command "
                "again: it goes on where it stopped"
            ) from error
        finally:
            # The remaining jobs may fail, but nobody waits for them.
            with suppress(Exception):
                results.close()


def _remote(work: Callable[[Any], Any], job: Any) -> tuple[Any, Any]:
    one_thread()
    try:
        return job, work(job)
    except Exception as error:
        return job, _Raised(_portable(error))


@contextmanager
def _dask(address: str | None) -> Iterator[tuple[Any, int]]:
    """joblib with the cluster as its backend, and the number of jobs that it can do at once."""
    try:
        import joblib
        from distributed import Client
    except ImportError as error:
        raise DataError("--engine dask needs more packages; pip install 'deepatlas[dask]'") from error
    try:
        client = Client(address) if address else Client(processes=True, threads_per_worker=1)
    except (OSError, ValueError, TimeoutError) as error:
        raise DataError(f"--address {address}: no dask scheduler answers ({error}); check it") from error
    with client:
        slots = sum(client.nthreads().values())
        if not slots:
            raise DataError(f"--address {address}: the dask cluster has no workers; start some")
        with joblib.parallel_config("dask", wait_for_workers_timeout=60):
            yield joblib, slots
