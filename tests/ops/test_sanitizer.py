"""The complete native library, with its bindings and its CUDA launchers, under the address and undefined-behaviour
sanitizers; the launchers of every .cu file are called and compared with the CPU kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_kernels import why_not_native

SCRIPT = Path(__file__).with_name("under_sanitizers.py")


def runtime(name):
    """The path of a library of the compiler, which Python must load before anything else."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or why_not_native():
        pytest.skip(why_not_native() or "no C++ compiler")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, encoding="utf-8"
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"the compiler has no {name}")
    return os.path.realpath(found)


@pytest.fixture(scope="module")
def environment():
    # The sanitizer also needs libstdc++, before PyTorch loads it.
    libraries = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def run(environment, *arguments):
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=900)


@pytest.mark.slow(75)
def test_hostile_inputs_access_nothing_outside_their_tensors_and_launchers_agree_with_kernels(environment):
    done = run(environment)
    assert done.returncode == 0 and done.stdout == "clean\n", done.stdout + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_the_sanitizer_finds_a_bug(environment, kernels):
    done = run(environment, kernels)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr[-4000:]
