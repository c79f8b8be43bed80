"""The functors and kernels that CUDA runs agree with the CPU kernels, under sanitizers and without a GPU."""

from __future__ import annotations

import pytest
from on_host import PORTABLE, RACES, build_and_run


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_sampling_and_resizing(flags):
    build_and_run("resample_on_host", ["resample.cpp", "resize.cpp"], flags)


@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_inversion(flags):
    build_and_run("invert_on_host", ["invert.cpp"], flags)


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_jacobians(flags):
    build_and_run("jacobian_on_host", ["jacobian.cpp", "jacobian_backward.cpp"], flags)


# Each CUDA thread is a thread here, so a missing __syncthreads is a race.
@pytest.mark.parametrize("flags", [RACES])
def test_correlation_with_shared_memory(flags):
    build_and_run("ncc_on_host", ["ncc.cpp", "ncc_window.cpp"], flags)


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_edges_and_curves(flags):
    build_and_run("edges_on_host", ["edges.cpp", "piecewise.cpp"], flags)
