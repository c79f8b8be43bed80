"""Reading exams for training: exams per second and core, whether a fast GPU waits, and whether memory grows."""

from __future__ import annotations

import functools
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from deepatlas.config import DataConfig
from deepatlas.exams.build_store import prepare_exam
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.files import atomic_h5
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.space.constants import MODEL_SIZE
from deepatlas.store.packed import ROWS
from deepatlas.store.rows import Row, assemble
from deepatlas.store.store import Store
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.resident import ExamArray, TrainingArray
from deepatlas.train.feed.streaming import StreamingArray

# The GPU that should not wait takes 20 batches of 64 exams a second.
BATCH, RATE = 64, 20
ROUNDS = 5
FOLDER = functools.cache(lambda: Path(tempfile.mkdtemp(prefix="deepatlas-loading-")))


@functools.cache
def store(count: int) -> Store:
    """A store of ``count`` exams, which are copies of four phantoms."""
    root, path = FOLDER() / "data", FOLDER() / f"{count}.h5"
    if not root.exists():
        write_phantoms(PhantomCohort(seed=0), root, range(4), progress=False)
    cohort = find_exams(root)
    made = [Row("", prepare_exam(exam, cohort.labels), cohort.labels) for exam in cohort.exams]
    meta = {"labels": cohort.labels, "crop": None, "root": str(root), "sources": {}, "fingerprint": ""}
    rows = (made[i % len(made)]._replace(id=f"exam_{i}") for i in range(count))
    with atomic_h5(path) as file:
        assemble(file, count, rows, meta | {"skipped": {}, "notes": {}})
    return Store(path)


def in_hdf5(cohort: Store, **filters) -> Callable[[list[int], np.ndarray], None]:
    """A function that reads exams through HDF5, from chunks of one exam stored with these filters."""
    path = FOLDER() / f"{'-'.join(map(str, filters.values())) or 'plain'}.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "hu", cohort.hu.shape, "<i2", chunks=(1, MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), **filters
        )
        for row in range(len(cohort)):
            data[row] = cohort.hu[row]
    data = h5py.File(path, "r")["hu"]

    def read(rows: list[int], out: np.ndarray) -> None:
        for place, row in enumerate(rows):
            data.read_direct(out, np.s_[row], np.s_[place])

    return read


def sources(cohort: Store) -> dict[str, Callable[[list[int], np.ndarray], None]]:
    reader = cohort.packed()
    place = reader._offsets["hu"]
    mapped = np.memmap(cohort.path, "<i2", "r", place, cohort.hu.shape)

    def packed(rows, out):
        for k, row in enumerate(rows):
            reader.read_into("hu", row, out[k])

    def memory_map(rows, out):
        for k, row in enumerate(rows):
            out[k] = mapped[row]

    return {
        "plain, read and checksum (format 2)": packed,
        "plain, mapped into memory, no checksum": memory_map,
        "HDF5, LZF, shuffle, checksum (format 1)": in_hdf5(
            cohort, compression="lzf", shuffle=True, fletcher32=True
        ),
        "HDF5, gzip 1, shuffle, checksum": in_hdf5(
            cohort, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True
        ),
        "HDF5, not compressed, checksum": in_hdf5(cohort, fletcher32=True),
    }


def measure(run: Callable[[], object], samples: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """Samples per second, and per second of one core, in the best of the rounds."""
    wall, cpu = [], []
    for _ in range(rounds):
        began, spent = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return samples / min(wall), samples / max(min(cpu), 1e-9)


@pytest.fixture
def measuring(request) -> bool:
    return request.config.getoption("--benchmark")


def all_of(pool: ThreadPoolExecutor, jobs: list[tuple]) -> None:
    list(pool.map(lambda job: job[0](*job[1:]), jobs))


def draws(count: int, batch: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(count)[:batch].tolist() for _ in range(4)]


@pytest.mark.slow(5)
def test_sources(measuring):
    """Batches of Hounsfield units are read from the page cache into a buffer by 1, 2 and 4 threads."""
    cohort, batch = store(256 if measuring else 6), BATCH if measuring else 4
    # Threads write at the same time, so each has a buffer of its own.
    buffers = [np.empty((batch, MODEL_SIZE, MODEL_SIZE, MODEL_SIZE), "<i2") for _ in range(4)]
    lists, first = draws(len(cohort), batch), None
    for name, read in sources(cohort).items():
        read(lists[0], buffers[0])
        first = buffers[0].copy() if first is None else first
        np.testing.assert_array_equal(buffers[0], first)
        for threads in (1, 2, 4) if measuring else ():
            jobs = [(read, rows, buffers[i]) for i, rows in enumerate(lists)]
            with ThreadPoolExecutor(threads) as pool:
                speed, a_core = measure(functools.partial(all_of, pool, jobs), len(lists) * batch)
            print(f"\n{name:42s} {threads} threads: {speed:6.0f} exams/s, {a_core:6.0f} per core", end="")


class HostOnly(StreamingArray):
    """The part of loading that the CPU does for a GPU, without conversion and augmentation, which the GPU does."""

    def take(self, indices, augmentation=None):
        part = self._coming.pop(0) if self._coming else self._start(tuple(indices))
        for job in part.jobs:
            job.result()
        return part.hu, part.bits


def iterate(array: ExamArray, batches: int, count: int, pause: float = 0.0):
    """Yields the seconds that the consumer waits for each batch; batches are drawn by the code that training uses."""
    source, generator = Batches(array, array.ids, DataConfig(), MODEL_SIZE), torch.Generator().manual_seed(0)
    for _ in range(batches):
        began = time.perf_counter()
        drawn = source.draw(count, generator)
        source_rows = drawn.augmentation.rows(range(count))
        if isinstance(array, HostOnly):
            source._parts[count].append(list(range(count)))
            array.take(drawn.indices, source_rows)
        else:
            source.take(drawn, range(count))
        waited = time.perf_counter() - began
        yield waited
        time.sleep(max(0.0, pause - waited))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_loader(measuring, threads):
    """All of loading on the host of a GPU at full speed: random numbers, threads, reading and checksums."""
    cohort, batch = store(256 if measuring else 6), BATCH if measuring else 4
    with HostOnly(cohort, threads=threads) as array:
        steps = 40 if measuring else 2
        speed, a_core = measure(
            lambda: list(iterate(array, steps, batch)), steps * batch, 5 if measuring else 1
        )
    print(f"\nloader, {threads} threads: {speed:.0f} exams/s, {a_core:.0f} per core", end="")
    assert speed > 0


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_gpu_does_not_wait(measuring, threads):
    """A consumer takes a batch of 64 exams every 50 ms, as a GPU with 20 iterations a second would."""
    cohort = store(256 if measuring else 6)
    with HostOnly(cohort, threads=threads) as array:
        spent = time.process_time()
        waits = list(iterate(array, 200 if measuring else 3, BATCH if measuring else 4, 1 / RATE))[2:]
        spent = (time.process_time() - spent) * RATE / (200 if measuring else 3)
    print(
        f"\n{RATE} batches/s, {threads} threads: a batch is waited for {1e3 * np.mean(waits):.1f} ms, at worst "
        f"{1e3 * max(waits):.1f}; {100 * spent:.0f} % of a core",
        end="",
    )


def resident_size() -> float:
    """Resident memory of this process in MB; its peak where the system does not report the current value."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@pytest.mark.parametrize("kind", [StreamingArray, TrainingArray], ids=["streaming", "resident"])
def test_memory_over_10000_iterations(measuring, kind):
    """Batches of four exams with conversion and augmentation on the CPU."""
    cohort, batch = store(256 if measuring else 6), 4
    steps, sizes = 10_000 if measuring else 20, []
    began, spent = time.perf_counter(), time.process_time()
    with kind(cohort) as array:
        for step, _ in enumerate(iterate(array, steps, batch), 1):
            if step % (steps // 10) == 0:
                sizes.append(resident_size())
    speed, a_core = (steps * batch / t for t in (time.perf_counter() - began, time.process_time() - spent))
    print(
        f"\n{kind.__name__}: MB after every tenth of {steps} iterations: {' '.join(f'{s:.0f}' for s in sizes)}; "
        f"{speed:.0f} exams/s, {a_core:.0f} per core",
        end="",
    )
    assert sizes[-1] - sizes[0] < 20


def test_bytes():
    """The bytes that are read for an exam, on which the estimates in the README are based."""
    assert sum(dtype.itemsize * values for dtype, values in ROWS.values()) == 557_056
