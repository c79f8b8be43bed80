"""The threads of the kernels for arrays: their number, concurrent calls, forks, and the lock of Python."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
from array_kernels import identity, wavy, why_no_arrays

from deepatlas_ops import array
from deepatlas_ops.array import _library

pytestmark = pytest.mark.skipif(why_no_arrays() is not None, reason=str(why_no_arrays()))


@pytest.fixture(autouse=True)
def _number():
    before = _library._threads
    yield
    _library._threads = before
    _library.kernels().set_num_threads(array.get_num_threads())


def all_results():
    volume = np.random.default_rng(0).normal(size=(2, 3, 20, 33, 34)).astype(np.float32)
    field = np.concatenate([wavy((20, 33, 34)), wavy((20, 33, 34), 0.03)]).astype(np.float32)
    return [
        array.resample(volume, field),
        array.warp(volume, 0.1 * field),
        array.resize(volume, (31, 30, 60)),
        *array.invert(field, tolerance=1e-3),
        array.log_jacobian(field),
        array.ncc(volume, volume[::-1]),
        array.ncc(volume, volume[::-1], window=5),
    ]


def assert_equal(results, others):
    for one, other in zip(results, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_result_does_not_depend_on_the_number_of_threads():
    array.set_num_threads(1)
    assert array.get_num_threads() == 1 == _library.kernels().get_num_threads()
    alone = all_results()
    for number in (2, 7, np.int64(3)):
        array.set_num_threads(number)
        assert_equal(alone, all_results())


def test_several_threads_of_python_compute_at_the_same_time():
    array.set_num_threads(3)
    expected, found = all_results(), []
    callers = [threading.Thread(target=lambda: found.append(all_results())) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    for results in found:
        assert_equal(expected, results)


def test_python_goes_on_while_a_kernel_computes():
    array.set_num_threads(1)
    volume = np.zeros((1, 1, 40, 40, 40), np.float32)

    def turns() -> int:
        """How often this thread has its turn while a kernel computes."""
        done = threading.Event()

        def compute():
            array.resize(volume, (200, 200, 200))
            done.set()

        caller, count = threading.Thread(target=compute), 0
        caller.start()
        while not done.is_set():
            count += 1
            time.sleep(0.0005)
        caller.join()
        return count

    # With the lock held, there would never be a turn between the first one and the end. On a machine that is busy with
    # other work, this thread may miss many kernels.
    assert any(turns() > 3 for _ in range(200))


def _in_child(pipe):
    pipe.send(array.resize(np.ones((1, 1, 30, 40, 50)), (60, 70, 80)).sum())


def test_a_forked_process_starts_threads_of_its_own():
    array.set_num_threads(2)
    expected = array.resize(np.ones((1, 1, 30, 40, 50)), (60, 70, 80)).sum()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(there,))
    child.start()
    assert here.poll(30), "the child hangs"
    assert here.recv() == expected
    child.join()


def test_the_number_of_threads_follows_openmp_and_the_processors(monkeypatch):
    _library._threads = None
    for value, number in (("3", 3), ("5,2", 5), (" 4 ", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert array.get_num_threads() == number
    for value in ("", "0", "many", "-2"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert array.get_num_threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None, "2", 10**9])
def test_a_wrong_number_of_threads_is_refused(number):
    with pytest.raises(ValueError, match="^set_num_threads: number: expected "):
        array.set_num_threads(number)


def test_an_empty_batch_needs_no_thread():
    assert array.resize(np.zeros((0, 2, 3, 4, 5)), (6, 7, 8)).shape == (0, 2, 6, 7, 8)
    assert array.invert(np.broadcast_to(identity((3, 4, 5)), (0, 3, 3, 4, 5))).valid.shape == (0, 1, 3, 4, 5)
