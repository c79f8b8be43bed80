"""A child that is forked after an op has run can run ops with one thread: the cure that the documentation gives."""

from __future__ import annotations

import multiprocessing
import sys

import pytest
import torch

import deepatlas_ops as ops


def total() -> float:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 8, 32, 32, 32, generator=generator)
    coords = torch.rand(1, 3, 32, 32, 32, generator=generator) * 2 - 1
    return float(ops.resample(volume, coords).sum())


def child(queue) -> None:
    torch.set_num_threads(1)
    queue.put(total())


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the subject")
def test_a_forked_child_with_one_thread_runs_ops_after_its_parent():
    before = torch.get_num_threads()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    try:
        torch.set_num_threads(2)
        expected = total()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-5)
        process.join(60)
        assert process.exitcode == 0
    finally:
        torch.set_num_threads(before)
