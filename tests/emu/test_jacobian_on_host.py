"""The Jacobian functors that CUDA runs and the CPU kernels agree, under sanitizers and without a GPU."""

from __future__ import annotations

import pytest
from test_kernels_on_host import BUILDS, ROOT, build_and_run

SOURCES = [
    ROOT / "tests" / "emu" / "jacobian_on_host.cpp",
    *(ROOT / "csrc" / name for name in ("jacobian.cpp", "jacobian_backward.cpp")),
]


@pytest.mark.parametrize("flags", BUILDS)
def test_functors_and_cpu_kernels_agree(flags, tmp_path):
    build_and_run(SOURCES, flags, tmp_path)
