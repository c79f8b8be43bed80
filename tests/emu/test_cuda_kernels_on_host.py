"""The functors and kernels that CUDA runs agree with the CPU kernels, under sanitizers and without a GPU."""

from __future__ import annotations

import pytest
from on_host import PORTABLE, RACES, build_and_run


def check(program, kernels, flags):
    # The threads are those of the emulated kernels alone, so what they are compared with need not be compiled again for
    # the thread sanitizer.
    build_and_run(program, kernels, flags, library=flags in RACES.values)


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_sampling_and_resizing(flags):
    # Another optimisation rounds coordinates far outside of the volume to another reflection.
    build_and_run("resample_on_host", ["resample.cpp", "resize.cpp"], flags)


@pytest.mark.slow(1)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_inversion(flags):
    check("invert_on_host", ["invert.cpp"], flags)


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_jacobians(flags):
    check("jacobian_on_host", ["jacobian.cpp", "jacobian_backward.cpp"], flags)


# Each CUDA thread is a thread here, so a missing __syncthreads is a race.
@pytest.mark.parametrize("flags", [RACES])
def test_correlation_with_shared_memory(flags):
    check("ncc_on_host", ["ncc.cpp", "ncc_window.cpp"], flags)


@pytest.mark.slow(5)
@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_edges_and_curves(flags):
    check("edges_on_host", ["edges.cpp", "piecewise.cpp"], flags)
