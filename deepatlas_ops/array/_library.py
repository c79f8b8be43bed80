"""Builds and loads the library of the kernels for NumPy arrays, and sets its threads."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from .. import _jit, _objects, options

MOST_THREADS = 1024

_lock = threading.Lock()
_found: tuple[_jit.BuildInfo, Any] | None = None
_threads: int | None = None


def kernels() -> Any:
    """The compiled module, which is built first if the cache does not have it.

    Raises:
        RuntimeError: there is no compiled module and none can be built, with the reason.
    """
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                try:
                    found = _jit.load(_Plan, _plan, _runs_on)
                except _jit.BuildError as error:
                    raise RuntimeError(f"deepatlas_ops.array: there are no kernels: {error}") from None
                found[1].set_num_threads(get_num_threads())
                _found = found
    return _found[1]


def build_info() -> dict[str, Any]:
    """What runs the functions. Builds and loads the compiled library first.

    Returns:
        ``compiler``, ``flags``, ``arch`` (the processor that it was compiled for), ``directory`` (where it is stored)
        and ``seconds`` (how long it took to compile).

    Raises:
        RuntimeError: there is no compiled library and none can be built, with the reason.
    """
    kernels()
    assert _found is not None
    about = dataclasses.asdict(_found[0])
    return {name: about[name] for name in ("compiler", "flags", "arch", "directory", "seconds")}


# ---- threads ----------------------------------------------------------------------------------------


def set_num_threads(number: int) -> None:
    """How many threads one call of a function may use, from now on and in all threads of the process.

    The threads are those of this module: neither those of OpenMP nor those of PyTorch. They sleep between two calls,
    and may be used after a fork.

    Raises:
        ValueError: not an integer from 1 to 1024.
    """
    global _threads
    number = options.plain(number)
    options.count("set_num_threads", "number", number)
    if number > MOST_THREADS:
        options.fail("set_num_threads", "number", f"at most {MOST_THREADS}", number)
    _threads = number
    if _found is not None:
        _found[1].set_num_threads(number)


def get_num_threads() -> int:
    """How many threads one call of a function may use.

    Without :func:`set_num_threads` it is the number in ``OMP_NUM_THREADS``, or the number of processors that the
    process may use.
    """
    return _default_threads() if _threads is None else _threads


def _default_threads() -> int:
    # OpenMP allows a list, with one number for each level of nested threads.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        number = int(asked)
    elif hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:
        number = os.cpu_count() or 1
    return min(number, MOST_THREADS)


# ---- what to build ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan(_jit.Plan):
    """``pybind11`` is the version of its headers, which lie in ``include``."""

    library: ClassVar[str] = "deepatlas_ops_array"
    title: ClassVar[str] = "the kernels for NumPy arrays"
    foreign: ClassVar[tuple[str, ...]] = ("ops*", "*.cu", "*.cuh")
    unkeyed: ClassVar[tuple[str, ...]] = ("sources", "include")

    pybind11: str
    include: str

    @staticmethod
    def open(library: Path) -> Any:
        spec = importlib.util.spec_from_file_location(_Plan.library, library)
        assert spec is not None and spec.loader is not None
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            # The file is missing or damaged.
            raise OSError(str(error)) from None
        return module

    def compile(self, building: Path) -> None:
        command = [*shlex.split(self.compiler), *self.flags]
        folders = [f"-I{self.sources}", f"-isystem{self.include}", f"-isystem{sysconfig.get_path('include')}"]
        kernels = _objects.kept(self)
        compiled = {path.stem for path in kernels}
        sources = [source for source in self.files if source.stem not in compiled]
        objects = [building / f"{source.stem}.o" for source in sources]
        steps = [
            [*command, "-std=c++17", "-fPIC", *folders, "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(_jobs()) as pool:
            list(pool.map(_run, steps))
        if not kernels:
            _objects.keep(self, building)
        # Symbols of Python are found in the process that loads the module.
        kind = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        output = building / f"{self.library}.so"
        _run([*command, *kind, "-pthread", *map(str, (*objects, *kernels)), "-o", str(output)])


def _plan() -> _Plan:
    sources = _jit.find_sources()
    compiler, version = _jit.compiler()
    include, pybind11 = _pybind11()
    return _Plan(
        sources=sources,
        compiler=compiler,
        compiler_version=version,
        flags=_jit.flags(),
        processor=_jit.processor(),
        pybind11=pybind11,
        include=include,
    )


def _runs_on() -> str:
    return _Plan.digest(_jit.find_sources(), (*_jit.flags(), _jit.processor()))


def _pybind11() -> tuple[str, str]:
    """The folder of pybind11's headers and their version. PyTorch brings them too, and is not imported for that."""
    try:
        import pybind11

        return pybind11.get_include(), pybind11.__version__
    except ImportError:
        pass
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        spec = None
    for folder in (spec and spec.submodule_search_locations) or []:
        include = Path(folder) / "include"
        header = include / "pybind11" / "detail" / "common.h"
        if header.is_file():
            lines = header.read_text(encoding="utf-8").splitlines()
            numbers = [line.split()[-1] for line in lines if line.startswith("#define PYBIND11_VERSION_")]
            return str(include), f"of PyTorch, {'.'.join(numbers)}"
    raise _jit.BuildError("pybind11 is missing; install it with: pip install pybind11")


def _jobs() -> int:
    """How many compilers run at once: MAX_JOBS, as for PyTorch's extensions, or one for each processor."""
    asked = os.environ.get("MAX_JOBS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else os.cpu_count() or 1


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
