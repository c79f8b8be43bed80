"""Builds and runs the programs of this folder: the functors of CUDA on the host, without a GPU.

Accesses outside of buffers are found by tests/ops/test_sanitizer.py, which calls the launchers of the .cu files.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import compile_cache
import pytest

from deepatlas_ops import _build, _objects

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"

# The portable code for any processor: no fast paths, and half types are converted in software.
PORTABLE = pytest.param(["-O0"], id="portable")
# Finds races between threads. It runs longer than it compiles, unlike the others.
RACES = pytest.param(["-O1", "-march=native", "-fsanitize=thread"], id="races", marks=pytest.mark.slow(10))


def build(program: str, kernels: list[str], flags: list[str], library: bool = False) -> Path:
    """Compile ``tests/emu/<program>.cpp`` with some sources of csrc/, without a warning. Returns the executable.

    With ``library``, the kernels are those of the library of this package, where it has been compiled.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    # Without a compiler there are no kernels to test either.
    if compiler is None:
        pytest.skip("no C++ compiler")
    objects = _library_objects(kernels) if library else []
    sources = [HERE / f"{program}.cpp", *(objects or [CSRC / kernel for kernel in kernels])]
    # GCC 12 warns of uninitialised vectors in its own avx512fintrin.h (bug 105593).
    options = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-pthread", *flags]

    def compile_program(folder: Path) -> None:
        command = [compiler, *options, f"-I{CSRC}", *map(str, sources), "-o", str(folder / program)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder)
        # GCC may be installed without libasan or libtsan.
        if done.returncode != 0 and "cannot find" in done.stderr:
            pytest.skip(f"the sanitizer's library is not installed: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    parts = (program, compiler, compile_cache.version_of(compiler), _processor(), *options)
    parts += ("library",) if objects else ()
    files = [sources[0], *(CSRC / kernel for kernel in kernels), *compile_cache.headers_in(HERE, CSRC)]
    return compile_cache.compiled(parts, files, compile_program) / program


def _library_objects(kernels: list[str]) -> list[Path]:
    """The object files of kernels in the cache of :mod:`deepatlas_ops`; none if one is missing."""
    if not _build.load().native:
        return []
    wanted = {Path(kernel).stem for kernel in kernels}
    # All kernels are kept together, or none.
    return [path for path in _objects.kept(_build._plan()) if path.stem in wanted]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def build_and_run(program: str, kernels: list[str], flags: list[str], library: bool = False) -> None:
    """Run ``tests/emu/<program>.cpp``, which must report no failure."""
    executable = build(program, kernels, flags, library)
    done = subprocess.run([str(executable)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"
