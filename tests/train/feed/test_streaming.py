"""Exams that are read in advance give the batches of a cohort held in memory, bit for bit, in bounded memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_exams import one_line, write_cohort

from deepatlas.config import DataConfig
from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.store.packed import PackedReader, PackedWriter
from deepatlas.store.store import Store
from deepatlas.train.feed import memory, streaming
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.train.feed.streaming import StreamingArray, training_array, unpack_bits

EXAMS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = write_cohort(tmp_path_factory.mktemp("cohort") / "data", EXAMS)
    with prepare_cohort(root, root.parent / "store.h5", progress=False) as store:
        yield store


@pytest.fixture(params=[1, 3])
def streamed(request, store):
    with StreamingArray(store, 16, threads=request.param) as array:
        yield array


@pytest.fixture(scope="module")
def resident(store):
    return TrainingArray(store, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


# -- the same exams ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 64])
def test_exams_are_those_of_the_resident_array(store, size):
    held = TrainingArray(store, size, exams=[4, 2, 0, 5])
    with StreamingArray(store, size, exams=[4, 2, 0, 5]) as array:
        assert (array.ids, len(array), array.size, array.rows) == (held.ids, 4, size, held.rows)
        assert same(array.load([0, 3, 3, 1]), held.load([0, 3, 3, 1]))
        assert same(array.take(torch.tensor([2])), held.take([2]))
        for elastic in (0.0, 0.1):
            ours = array.batch([1, 0], generator(3), elastic=elastic)
            assert same(ours, held.batch([1, 0], generator(3), elastic=elastic))
        assert same(array.batch([3], augment=False), held.batch([3], augment=False))


def test_bits_are_those_of_numpy():
    bits = np.random.default_rng(0).integers(0, 256, (3, 64**3 // 8), dtype=np.uint8)
    expected = np.unpackbits(bits, axis=1).reshape(3, 64, 64, 64)
    np.testing.assert_array_equal(unpack_bits(torch.from_numpy(bits)).numpy(), expected)


def test_extreme_values_survive(tmp_path):
    """The whole range of int16 and masks of any shape, through the file and the averaging."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-32768, 32768, (2, 64, 64, 64), dtype=np.int16)
    mask = rng.integers(0, 2, hu.shape, dtype=np.uint8)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        writer = PackedWriter(file, 2)
        for row in (1, 0):
            writer.write(row, hu[row], mask[row])
    reader = PackedReader(tmp_path / "s.h5", ["a", "b"])
    for row in (0, 1):
        np.testing.assert_array_equal(reader.hu(row), hu[row])
        np.testing.assert_array_equal(reader.mask(row), mask[row])
    with pytest.raises(IndexError):
        reader.hu(2)
    with pytest.raises(ValueError, match="needs 262144 values of int16"):
        reader.read_into("hu", 0, np.empty(64, dtype=np.int16))
    reader.close()


# -- reading ahead ----------------------------------------------------------------------------------

takes = st.lists(st.lists(st.integers(0, EXAMS - 1), min_size=1, max_size=4), max_size=4)


@pytest.mark.slow(1)
@settings(deadline=None, max_examples=30)
@given(script=st.lists(st.tuples(takes, takes), min_size=1, max_size=4))
def test_what_is_expected_changes_no_result(store, resident, script):
    with StreamingArray(store, 16, threads=2) as array:
        for expected, taken in script:
            array.expect(expected)
            assert len(array._coming) == len(expected)
            for indices in taken:
                assert same(array.load(indices), resident.load(indices))


# Sizes of the batches of a run, each drawn and taken in parts: phases of their own sizes, as training has them.
RUN = [(4, [[0, 1], [2, 3, 0]])] * 5 + [(5, [[0, 1, 2, 3, 4]])] * 3 + [(4, [[0, 1], [2, 3, 0]])] * 4


def run(array, run=RUN, state=None):
    """Everything that a run reads from its array and its generator, step by step."""
    batches, source = Batches(array, array.ids, DataConfig(elastic=0.1), 16), generator(7)
    if state is not None:
        source.set_state(state)
    for count, parts in run:
        before = source.get_state()
        drawn = batches.draw(count, source)
        tensors = [t for rows in parts for t in batches.take(drawn, rows)]
        yield before, drawn.indices, drawn.augmentation.theta, source.get_state(), tensors


def test_a_run_is_the_resident_run_bit_for_bit(streamed, resident):
    for ours, theirs in zip(run(streamed), run(resident), strict=True):
        assert ours[1] == theirs[1] and torch.equal(ours[2], theirs[2])
        # The states of the generator, which a checkpoint holds.
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[3], theirs[3])
        assert same(ours[4], theirs[4])


def test_a_run_goes_on_from_any_step_bit_for_bit(store, resident):
    whole = list(run(resident))
    for stop in (1, 3, 6, 10):
        with StreamingArray(store, 16, threads=2) as array:
            for ours, theirs in zip(run(array, RUN[stop:], whole[stop][0]), whole[stop:], strict=True):
                assert ours[1] == theirs[1] and same(ours[4], theirs[4])


def test_a_record_of_a_past_batch_leaves_the_run_alone(streamed, resident):
    """What the loop does with a loss that is not finite: it draws the batch again from the state before it."""
    batches, source = Batches(streamed, streamed.ids, DataConfig(), 16), generator(1)
    for _ in range(3):
        state = source.get_state()
        drawn = batches.draw(4, source)
        x = batches.take(drawn, range(4))[0]
    past = generator()
    past.set_state(state)
    record = batches.record(4, past)
    assert torch.equal(record["input"], x) and record["exams"] == [streamed.ids[i] for i in drawn.indices]
    for _ in range(2):
        batches.draw(4, past)
    held = Batches(resident, resident.ids, DataConfig(), 16)
    past.set_state(source.get_state())
    assert batches.draw(4, source).indices == held.draw(4, past).indices


def test_batches_are_read_before_they_are_taken(store, monkeypatch):
    """From the second batch on, no exam is read by the call that takes it."""
    late = []
    with StreamingArray(store, 16, threads=2) as array:
        start = array._start

        def watched(indices):
            late.append(threading.current_thread())
            return start(indices)

        source, batches = generator(0), Batches(array, array.ids, DataConfig(), 16)
        for step in range(6):
            drawn = batches.draw(3, source)
            if step:
                monkeypatch.setattr(array, "_start", watched)
            batches.take(drawn, range(3))
            monkeypatch.setattr(array, "_start", start)
    assert not late


# -- memory and threads -----------------------------------------------------------------------------


def buffers() -> int:
    """Bytes of all int16 tensors that live: only exams on their way from the file are of that type."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.dtype == torch.int16]
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.slow
def test_memory_is_bounded(store, request):
    batch, source = 4 * 2 * 64**3, generator(0)
    # What other tests have left is not looked through again each time.
    gc.collect()
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    others = buffers()
    with StreamingArray(store, 16, threads=2) as array:
        batches = Batches(array, array.ids, DataConfig(), 16)
        for step in range(60):
            batches.take(batches.draw(4, source), range(4))
            if step % 10 == 9:
                # A thread that has read its share lets go of the batch when it is next given the processor.
                assert buffers() - others <= (array.ahead + array.threads) * batch
                deadline = time.monotonic() + 10
                while buffers() - others != array.ahead * batch and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert buffers() - others == array.ahead * batch
    assert buffers() == others


@pytest.mark.slow(1)
def test_resident_memory_does_not_grow(store):
    """10,000 iterations are measured by benchmarks/bench_loading.py."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the resident size of a process is read from /proc, which this system lacks")
    sizes = []
    with StreamingArray(store, 16, threads=2) as array:
        batches, source = Batches(array, array.ids, DataConfig(), 16), generator(0)
        for step in range(300):
            batches.take(batches.draw(4, source), range(4))
            if step % 100 == 99:
                sizes.append(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    # A leak of one exam per step would be 100 MB.
    assert sizes[-1] - sizes[0] < 8e6, sizes


def exam_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("exams")]


def test_threads_and_file_are_given_back(store):
    array = StreamingArray(store, 16, threads=2)
    array.expect([[i % EXAMS for i in range(k, k + 4)] for k in range(50)])
    assert exam_threads()
    began = time.monotonic()
    array.close()
    assert not exam_threads() and array._reader._file.closed and time.monotonic() - began < 5
    # Closing twice is allowed, as after an error inside a with block.
    array.close()
    with pytest.raises(RuntimeError):
        array.take([0])
    # The store reads through another open file.
    assert store.hu[0].any()


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends(store):
    code = (
        "import sys; from deepatlas.store.store import Store\n"
        "from deepatlas.train.feed.streaming import StreamingArray\n"
        "array = StreamingArray(Store(sys.argv[1]), 16, threads=2); array.expect([[0, 1, 2, 3]] * 200)\n"
        "raise KeyboardInterrupt"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DEEPATLAS_OPS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env=environment,
    )
    assert done.returncode != 0 and done.stderr.strip().endswith("KeyboardInterrupt")


# -- files that break -------------------------------------------------------------------------------


@pytest.fixture
def breakable(store, tmp_path):
    """A copy of the store, and where its exams' voxels begin."""
    path = tmp_path / "copy.h5"
    path.write_bytes(store.path.read_bytes())
    with h5py.File(path) as file:
        return path, {name: file[name].id.get_offset() for name in ("hu", "mask")}


@pytest.mark.parametrize(("name", "row"), [("hu", 524_288), ("mask", 32_768)])
def test_a_damaged_exam_is_named_when_it_is_taken(breakable, resident, name, row):
    path, places = breakable
    with StreamingArray(Store(path), 16, threads=2) as array:
        with open(path, "r+b") as file:
            file.seek(places[name] + 3 * row + row // 2)
            byte = file.read(1)[0] ^ 1
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte]))
        array.expect([[0, 1], [2, 3], [4, 5]])
        assert same(array.load([0, 1]), resident.load([0, 1]))
        with pytest.raises(
            DataError, match=f"copy.h5: {name} is damaged in exam e4; delete it and prepare"
        ) as error:
            array.take([2, 3])
        one_line(error.value)
        assert same(array.load([4, 5]), resident.load([4, 5]))
    with pytest.raises(DataError, match="e4"):
        TrainingArray(Store(path), 16)


def test_a_file_that_is_cut_while_it_is_read(breakable, resident):
    path, places = breakable
    with StreamingArray(Store(path), 16, threads=2) as array:
        os.truncate(path, places["hu"] + 4 * 524_288)
        assert not path.stat().st_size > places["hu"] + 5 * 524_288
        with pytest.raises(DataError, match="copy.h5: truncated store, .* of exam e[56] is gone") as error:
            array.take([4, 5])
        one_line(error.value)


def test_a_store_replaced_while_it_is_read_stays_what_it_was(breakable, resident):
    path, _ = breakable
    with StreamingArray(Store(path), 16, threads=2) as array:
        os.replace(path, path.with_suffix(".old"))
        path.write_bytes(b"another")
        assert same(array.load([0, 1, 2]), resident.load([0, 1, 2]))


def test_a_store_that_another_program_has_repacked(store, tmp_path):
    path = tmp_path / "repacked.h5"
    with h5py.File(store.path) as source, h5py.File(path, "w") as target:
        for name, item in source.items():
            if name == "hu":
                target.create_dataset(name, data=item[:], chunks=(1, 64, 64, 64), compression="lzf")
            else:
                source.copy(name, target)
        target.attrs.update(source.attrs)
    for open_it in (StreamingArray, TrainingArray):
        with pytest.raises(
            DataError, match="repacked.h5: damaged store .hu is not laid out as written.*again"
        ) as error:
            open_it(Store(path), 16)
        one_line(error.value)


def test_an_exam_that_is_not_there(streamed):
    with pytest.raises(IndexError):
        streamed.take([EXAMS])


# -- which of the two -------------------------------------------------------------------------------


def test_residency_follows_memory(store, monkeypatch):
    needed = TrainingArray.nbytes(EXAMS, 16)
    held = TrainingArray(store, 16)
    assert needed == held.volumes.nbytes + held.masks.nbytes
    assert TrainingArray.nbytes(51_167, 64) == pytest.approx(40.2e9, rel=0.01)
    for free, kind in ((2 * needed, TrainingArray), (2 * needed - 1, StreamingArray), (None, TrainingArray)):
        monkeypatch.setattr(streaming, "available_bytes", lambda device, free=free: free)
        with training_array(store, 16, "cpu") as array:
            assert type(array) is kind
        with training_array(store, 16, "cpu", exams=[0, 1]) as array:
            assert type(array) is TrainingArray and len(array) == 2
        for resident, wanted in ((True, TrainingArray), (False, StreamingArray)):
            with training_array(store, 16, "cpu", resident=resident) as array:
                assert type(array) is wanted


def test_free_memory_of_machine_and_group(tmp_path, monkeypatch):
    everything = memory.available_bytes(torch.device("cpu"))
    assert 1e8 < everything < 1e14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available_bytes(torch.device("cpu")) == pytest.approx(everything / 2, rel=0.2)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       5 kB\n")
    assert memory.free_on_machine(tmp_path / "meminfo") == 5 * 1024
    job = tmp_path / "fs" / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/slurm/job\n")
    # Neither group has a limit.
    assert memory.free_in_groups(tmp_path / "own", tmp_path / "fs") == []
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("1000\n")
    (job.parent / "memory.stat").write_text("anon 300\nfile 600\n")
    assert memory.free_in_groups(tmp_path / "own", tmp_path / "fs") == [700]
    assert memory.free_in_groups(tmp_path / "none", tmp_path / "fs") == []


def test_augmentation_is_the_same_object_for_both(store, resident):
    """Rows of one augmentation go with the exams that they were drawn for, in whatever parts they are taken."""
    drawn = Augmentation.draw(4, generator(2))
    whole = resident.take([0, 1, 2, 3], drawn)
    with StreamingArray(store, 16) as array:
        parts = [array.take([i], drawn.rows([i])) for i in range(4)]
    for k in range(2):
        torch.testing.assert_close(torch.cat([p[k] for p in parts]), whole[k])
