"""Building and running the programs of this folder: kernels on the host, under sanitizers, without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"

# Reads and writes outside a buffer and undefined arithmetic, with this machine's fast paths.
MEMORY = pytest.param(
    ["-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], id="memory"
)
# The portable code of any processor: no fast path, half conversions in software.
PORTABLE = pytest.param([], id="portable")
RACES = pytest.param(["-march=native", "-fsanitize=thread"], id="races", marks=pytest.mark.slow)


def build_and_run(program, kernels, flags, folder, standard="c++17"):
    """Compile ``tests/emu/<program>.cpp`` with sources of csrc/, without a warning; run it, without a failure."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")  # the package then runs no kernel either
    sources = [HERE / f"{program}.cpp", *(CSRC / kernel for kernel in kernels)]
    command = [compiler, f"-std={standard}", "-O0", "-g1", "-Wall", "-Wextra", "-pthread", f"-I{CSRC}"]
    built = subprocess.run(
        [*command, *flags, *map(str, sources), "-o", str(folder / program)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if built.returncode != 0 and "cannot find" in built.stderr:  # gcc without libasan or libtsan
        pytest.skip(f"the sanitizer's library is not installed: {built.stderr.strip().splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    done = subprocess.run([str(folder / program)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"
