"""The compiled kernels as object files in the cache: the library for PyTorch and the one for NumPy link the same ones.

The library that is compiled first leaves them there. They contain nothing of PyTorch, of Python or of OpenMP, because
the kernels are given the way in which they run in parallel.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import shutil
from pathlib import Path

from . import _jit

# The sources that bind kernels to PyTorch and to Python.
BINDINGS = ("ops_*", "ops.h", "array*")
# Changes nothing in a kernel.
OPENMP = "-fopenmp"


def kept(plan: _jit.Plan) -> list[Path]:
    """The object files of all kernels of a plan, in the order of its sources; empty if they are not in the cache."""
    folder = _folder(plan)
    found = [folder / f"{source.stem}.o" for source in _kernels(plan)]
    return found if all(path.is_file() for path in found) else []


def keep(plan: _jit.Plan, building: Path) -> None:
    """Copy the object files of the kernels that were compiled into the folder ``building`` to the cache.

    With other flags than those of this package, such as those of a sanitizer, nothing is kept, and neither where the
    cache cannot be written: they only save time.
    """
    compiled = [building / f"{source.stem}.o" for source in _kernels(plan)]
    if not compiled or _flags(plan) != list(_jit.flags()) or not all(path.is_file() for path in compiled):
        return
    folder = _folder(plan)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.building")
    with contextlib.suppress(OSError):
        partial.mkdir()
        for path in compiled:
            shutil.copy(path, partial)
        # Another process may have been faster.
        os.replace(partial, folder)
    shutil.rmtree(partial, ignore_errors=True)


def _kernels(plan: _jit.Plan) -> list[Path]:
    return [path for path in plan.files if path.suffix == ".cpp" and not _is_binding(path)]


def _is_binding(source: Path) -> bool:
    return any(fnmatch.fnmatch(source.name, pattern) for pattern in BINDINGS)


def _flags(plan: _jit.Plan) -> list[str]:
    return [flag for flag in plan.flags if flag != OPENMP]


def _folder(plan: _jit.Plan) -> Path:
    """One folder for each combination of kernels, their headers, flags, compiler and processor."""
    digest = hashlib.sha256()
    for path in sorted(plan.sources.iterdir()):
        if path.suffix in (".h", ".cpp") and not _is_binding(path):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    digest.update("\0".join((plan.compiler, plan.compiler_version, plan.processor, *_flags(plan))).encode())
    return _jit.cache_directory() / f"objects-{digest.hexdigest()[:20]}"
