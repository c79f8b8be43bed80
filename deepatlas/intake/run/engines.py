"""Where the work on exams is done: in processes of this machine, or on a cluster through joblib.

Jobs and results are small and picklable; arrays go to files. Every engine yields results as they come, holds no more
jobs than it has workers to do them (and a few for their queues), and ends at once when its iterator is closed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from deepatlas.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")

ENGINES = ("processes", "dask", "ray")
_RECYCLE = 1000  # jobs of a process before a new one takes its place: what a C library leaks goes with it
_START_SECONDS = 300.0  # for a process to import what it needs, on a slow disk
_BYTES_PER_WORKER = 3 << 30  # a thorax at 0.6 mm in float32, its copy in RAS order and its label image


@dataclass(frozen=True)
class Died:
    """In place of a result: the process ended or was ended while it worked on the job."""

    reason: str


def default_workers() -> int:
    """One for each CPU core that this process may use, as far as 3 GB of memory each go."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        cores = min(cores, memory // _BYTES_PER_WORKER)
    return max(1, cores)


def open_engine(
    engine: str = "processes", *, workers: int = 1, address: str | None = None, timeout: float | None = None
) -> Processes | Cluster:
    """What jobs are run on; a context manager, whose processes live until its end.

    Its ``run(work, jobs)`` yields ``(job, result)`` in the order in which they are done; ``work`` is a function at a
    module's top level. A process that crashes (a fault in a C library, no memory) costs its job alone, which yields
    :class:`Died`. Exceptions of ``work`` are raised.

    Args:
        engine: ``"processes"`` of this machine, or ``"dask"`` or ``"ray"`` with the cluster at ``address``.
        workers: how many processes; a cluster's size is its own.
        timeout: seconds that a process may take for a job before it is ended.

    :class:`~deepatlas.errors.DataError` for a library that is not installed and a cluster that cannot be reached.
    """
    if engine == "processes":
        return Processes(workers, timeout)
    if engine in ENGINES:
        return Cluster(engine, address)
    raise ValueError(f"open_engine: engine must be one of {ENGINES}, got {engine!r}")


# -- processes of this machine ------------------------------------------------------------------------


class _Worker:
    """A process with a pipe of its own, so that its death cannot take another's job along."""

    def __init__(self) -> None:
        context = _context()
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
        with suppress(OSError):  # it died meanwhile, which taking the result will tell
            self.pipe.send((work, job))

    def take(self) -> tuple[bool, Any]:
        """``(True, result)``, or ``(False, how it died)``."""
        try:
            return True, self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return False, _how_it_ended(self.process.exitcode)

    def end(self) -> None:
        self.pipe.close()  # an idle process ends by itself
        self.process.join(0 if self.busy or not self.ready else 2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Processes:
    """Processes of this machine, started when there is work for them; see :func:`open_engine`."""

    def __init__(self, workers: int = 1, timeout: float | None = None) -> None:
        self._count, self._timeout = max(1, workers), timeout
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
                    self._feed(work, queue)  # before the caller looks at the result: nobody waits for that
                    yield job, result
        finally:
            for worker in [w for w in self._pool if w.busy]:  # an error, or nobody wants the rest
                self._pool.remove(worker)
                worker.end()

    def _feed(self, work: Callable[[Any], Any], queue: Iterator[Any]) -> None:
        """Give every idle process a job, and start processes as long as there are jobs for them."""
        idle = [w for w in self._pool if not w.busy]
        while idle or len(self._pool) < self._count:
            try:
                job = next(queue)
            except StopIteration:
                return
            if not idle:
                self._pool.append(_Worker())
            (idle.pop() if idle else self._pool[-1]).give(work, job)

    def _look(self, worker: _Worker, answered: bool) -> Any:
        """A worker's result, :class:`Died`, or nothing yet."""
        if answered:
            ok, result = worker.take()
            if ok and not worker.ready:  # its first word: it has imported all that it needs
                worker.ready, worker.since = True, time.monotonic()
                return _NOTHING
        else:
            limit = self._timeout if worker.ready else _START_SECONDS
            if limit is None or time.monotonic() - worker.since < limit:
                return _NOTHING
            ok, result = False, f"not done after {limit:.0f} seconds"
        if not ok and not worker.ready:
            raise DataError(
                f"a worker process does not start ({result}); a script that prepares needs "
                "`if __name__ == '__main__':` around its call"
            )
        worker.busy = not ok  # one that died or hangs is not to be asked to end
        return result if ok else Died(result)


_NOTHING = object()


def _context() -> Any:
    """Processes that inherit neither threads' locks nor open files, and that do not each import what they all need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepatlas.intake.run.work"])
    return context


@dataclass
class _Raised:
    error: BaseException


def _serve(pipe: Connection) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _end_with_parent()
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
    """An error that survives the way to another process."""
    if type(error) is DataError:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End this process when its parent is killed, whatever it is doing: nobody would take its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def one_thread() -> None:
    """Keep the libraries' threads out of each other's way where there is a process for each core."""
    import torch

    torch.set_num_threads(1)
    with suppress(ImportError):
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        sitk.ProcessObject.SetGlobalWarningDisplay(False)


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "its process does not answer"
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"its process was ended by {name}" + (", perhaps for lack of memory" if code == -9 else "")
    return f"its process ended with code {code}"


# -- clusters -----------------------------------------------------------------------------------------


class Cluster:
    """joblib with a dask or ray cluster as its backend; see :func:`open_engine`."""

    def __init__(self, engine: str, address: str | None = None) -> None:
        self._engine, self._open = engine, ExitStack()
        self._address = address

    def __enter__(self) -> Cluster:
        self._joblib, self._slots = self._open.enter_context(_cluster(self._engine, self._address))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        results = self._results(self._joblib.delayed(_remote)(work, job) for job in jobs)
        try:
            for job, result in results:
                if isinstance(result, _Raised):
                    raise result.error
                yield job, result
        except Exception as error:
            if type(error).__name__ in _LOST:
                raise DataError(
                    f"{self._engine}: a worker of the cluster died ({type(error).__name__}); run the same command "
                    "again: it goes on where it stopped"
                ) from error
            raise
        finally:
            results.close()

    def _results(self, calls: Iterator[Any]) -> Iterator[Any]:
        options = {"n_jobs": self._slots, "pre_dispatch": "2*n_jobs", "batch_size": 1}
        if self._engine == "dask":
            results = self._joblib.Parallel(**options, return_as="generator_unordered")(calls)
            try:
                yield from results
            finally:
                with suppress(Exception):  # of jobs that nobody waits for any more
                    results.close()
            return
        parallel = self._joblib.Parallel(
            **options
        )  # ray's backend gives lists alone: a few jobs for each slot
        while some := list(islice(calls, 4 * self._slots)):
            yield from parallel(some)


_LOST = ("KilledWorker", "RayActorError", "ActorDiedError", "WorkerCrashedError", "CommClosedError")


def _remote(work: Callable[[Any], Any], job: Any) -> tuple[Any, Any]:
    one_thread()
    try:
        return job, work(job)
    except Exception as error:
        return job, _Raised(_portable(error))


@contextmanager
def _cluster(engine: str, address: str | None) -> Iterator[tuple[Any, int]]:
    """joblib with the cluster as its backend, and the number of jobs that it can do at once."""
    try:
        import joblib

        if engine == "dask":
            from distributed import Client
        else:
            import ray
            from ray.util.joblib import register_ray
    except ImportError as error:
        raise DataError(
            f"--engine {engine} needs more packages; pip install 'deepatlas[{engine}]'"
        ) from error
    if engine == "dask":
        try:
            client = (
                Client(address, timeout="20s") if address else Client(processes=True, threads_per_worker=1)
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise DataError(f"--address {address}: no dask scheduler answers ({error}); check it") from error
        with client:
            slots = sum(client.nthreads().values())
            if not slots:
                raise DataError(f"--address {address}: the dask cluster has no workers; start some")
            with joblib.parallel_config("dask", wait_for_workers_timeout=60):
                yield joblib, slots
        return
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(f"--address {address}: no ray cluster answers ({error}); check it") from error
    try:
        register_ray()
        with joblib.parallel_config("ray"):
            yield joblib, max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
