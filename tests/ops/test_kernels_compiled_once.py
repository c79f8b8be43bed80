"""The library of the ops and that of the arrays, with sources of a few lines: the second compiles no kernel again."""

from __future__ import annotations

import ctypes
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from deepatlas_ops import _build, _jit, _objects
from deepatlas_ops.array import _library

KERNEL = 'extern "C" __attribute__((visibility("default"))) int deepatlas_shared_value() { return VALUE; }\n'
MODULE = """
#include <Python.h>
extern "C" int deepatlas_shared_value();
static PyObject* value(PyObject*, PyObject*) { return PyLong_FromLong(deepatlas_shared_value()); }
static PyMethodDef methods[] = {{"set_num_threads", value, METH_O, nullptr},
                                {"value", value, METH_NOARGS, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "deepatlas_ops_array", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_deepatlas_ops_array() { return PyModule_Create(&module); }
"""
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    # A name that a shell would take apart.
    cache, folder = tmp_path / "a cache", tmp_path / "sources"
    folder.mkdir()
    (folder / "value.cpp").write_text(KERNEL.replace("VALUE", "5"))
    (folder / "array.cpp").write_text(MODULE)
    monkeypatch.setattr(_jit, "find_sources", lambda: folder)
    monkeypatch.setattr(_build, "_cuda", lambda: (None, None, None))
    monkeypatch.setattr(_library, "_found", None)
    monkeypatch.setenv("DEEPATLAS_OPS_CACHE", str(cache))
    monkeypatch.delenv("DEEPATLAS_OPS_BACKEND", raising=False)
    return folder


@pytest.fixture
def compiled(monkeypatch):
    """The names of the sources that were compiled for arrays."""
    names, run = [], _library._run

    def note(command):
        names.extend(Path(word).name for word in command if word.endswith(".cpp"))
        run(command)

    monkeypatch.setattr(_library, "_run", note)
    return names


def value_of_ops() -> int:
    info = _build._load()
    assert info.native, info.reason
    return ctypes.CDLL(str(Path(info.directory) / f"{_build.LIBRARY}.so")).deepatlas_shared_value()


def test_the_library_of_arrays_links_the_kernels_of_the_ops(sources, compiled):
    assert value_of_ops() == 5
    assert _library.kernels().value() == 5 and compiled == ["array.cpp"]


def test_the_library_of_ops_links_the_kernels_of_arrays(sources, compiled):
    assert _library.kernels().value() == 5 and sorted(compiled) == ["array.cpp", "value.cpp"]
    # What is linked shows where it comes from.
    (path,) = _objects.kept(_build._plan())
    other = sources.parent / "other.cpp"
    other.write_text(KERNEL.replace("VALUE", "7"))
    subprocess.run([*shlex.split(_jit.compiler()[0]), "-fPIC", "-c", other, "-o", path], check=True)
    assert value_of_ops() == 7


@pytest.mark.slow(1)
def test_other_kernels_and_other_flags_are_compiled(sources, compiled, monkeypatch):
    assert _library.kernels().value() == 5
    plan = _build._plan()
    assert len(_objects.kept(plan)) == 1
    (sources / "value.h").write_text("")
    assert _objects.kept(plan) == []
    (sources / "value.h").unlink()
    (sources / "ops_value.cpp").write_text("")
    assert len(_objects.kept(plan)) == 1
    (sources / "value.cpp").write_text(KERNEL.replace("VALUE", "6"))
    assert _objects.kept(plan) == []
    monkeypatch.setattr(_library, "_found", None)
    assert _library.kernels().value() == 6
    # Those of a sanitizer, for one: they are not the flags of the package.
    objects = sorted(_jit.cache_directory().glob("objects-*"))
    with monkeypatch.context() as patch:
        patch.setattr(_jit, "flags", lambda: ("-O0",))
        other = _library._plan()
    assert _objects.kept(other) == []
    monkeypatch.setattr(_library, "_plan", lambda: other)
    monkeypatch.setattr(_library, "_found", None)
    assert _library.kernels().value() == 6
    assert sorted(_jit.cache_directory().glob("objects-*")) == objects
