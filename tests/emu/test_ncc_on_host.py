"""The CUDA kernels of ncc, shared memory included, agree with the CPU kernels; under sanitizers, without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
SOURCES = [HERE / "ncc_on_host.cpp", CSRC / "ncc.cpp", CSRC / "ncc_window.cpp"]

BUILDS = [
    pytest.param(["-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], id="memory"),
    # Each CUDA thread is a thread here: a missing __syncthreads is a race.
    pytest.param(["-march=native", "-fsanitize=thread"], id="races", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("flags", BUILDS)
def test_cuda_and_cpu_kernels_agree(flags, tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "ncc_on_host"
    command = [compiler, "-std=c++20", "-O0", "-g1", "-Wall", "-Wextra", "-pthread", f"-I{CSRC}"]
    built = subprocess.run(
        [*command, *flags, *map(str, SOURCES), "-o", str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    if built.returncode != 0 and "cannot find" in built.stderr:
        pytest.skip(f"the sanitizer's library is not installed: {built.stderr.strip().splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"
