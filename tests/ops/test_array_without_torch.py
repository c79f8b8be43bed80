"""deepatlas_ops.array where PyTorch is missing, and the ops of PyTorch after it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from array_kernels import why_no_arrays

from deepatlas_ops import _jit, array
from deepatlas_ops.array import _library

# A finder that forbids the import of PyTorch.
FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'torch':
            raise ImportError('there is no PyTorch here')
sys.meta_path.insert(0, Forbid())
"""
needs_kernels = pytest.mark.skipif(why_no_arrays() is not None, reason=str(why_no_arrays()))


def run(code, **environment):
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_kernels
def test_every_function_runs_without_torch():
    code = (
        FORBID + "import numpy as np, deepatlas_ops, deepatlas_ops.array as array\n"
        "here = np.stack(np.meshgrid(*[np.linspace(-1, 1, 6)] * 3, indexing='ij')[::-1])[None]\n"
        "found = [array.resample(here, here), array.warp(here, 0 * here), array.resize(here, (6, 6, 6)),\n"
        "         here + array.invert(here).displacement, here + array.implicit_warp(here, here).displacement]\n"
        "print(all(np.allclose(f, here) for f in found), array.log_jacobian(here).max().round(6),\n"
        "      array.folds(here), array.ncc(here, here).round(6).tolist(), 'torch' in sys.modules)\n"
        "field = array.DisplacementField(np.zeros((3, 4, 5, 3)), (1, 2, 3))\n"
        "print(abs(array.invert_displacement(array.compose_displacements(field, field)).field.vectors).max())\n"
        "try: deepatlas_ops.resample\n"
        "except ImportError as error: print(error)\n"
        "from deepatlas_ops import options, cache\n"
    )
    first, second, third = run(code).splitlines()
    assert first == "True 0.0 [0.] [[1.0, 1.0, 1.0]] False"
    assert float(second) == 0 and third == "there is no PyTorch here"


@pytest.mark.slow(5)
def test_the_ops_are_registered_as_soon_as_torch_is_imported():
    code = (
        "import sys, deepatlas_ops as ops, deepatlas_ops.array\n"
        "assert 'torch' not in sys.modules and set(ops.__all__) <= set(dir(ops))\n"
        "finders = len(sys.meta_path)\n"
        "import torch\n"
        "assert all(name in vars(ops) for name in ops.__all__), sorted(vars(ops))\n"
        "assert callable(ops.ncc) and callable(ops.resample)\n"
        "assert len(sys.meta_path) == finders - 1\n"
        "print(torch.ops.deepatlas_ops.resample.default._schema.name)\n"
    )
    assert run(code) == "deepatlas_ops::resample"


@pytest.mark.slow(5)
@pytest.mark.parametrize("first", ["reference.invert", "correlation"])
def test_a_module_of_the_ops_may_be_imported_first(first):
    code = (
        f"import deepatlas_ops.{first}\n"
        "import deepatlas_ops as ops, torch\n"
        "print(ops.resize(torch.ones(1, 1, 2, 2, 2), (1, 1, 1)).item(), callable(ops.ncc), callable(ops.resample))\n"
        "with ops.use_backend('torch'): ops.implicit_warp(torch.ones(1, 3, 2, 2, 2), torch.ones(1, 3, 2, 2, 2))\n"
    )
    assert run(code, DEEPATLAS_OPS_BACKEND="torch") == "1.0 True True"


def test_an_unknown_name_is_an_attribute_error():
    import deepatlas_ops as ops

    with pytest.raises(AttributeError, match="module 'deepatlas_ops' has no attribute 'resampel'"):
        ops.resampel  # noqa: B018
    assert ops.__all__ == sorted(set(ops.__all__)) and array.__all__ == sorted(set(array.__all__))


# ---- the build --------------------------------------------------------------------------------------

# A module without kernels, and without pybind11, which takes seconds to compile.
SOURCE = """
#include <Python.h>
static PyObject* ignore(PyObject*, PyObject*) { Py_RETURN_NONE; }
static PyObject* value(PyObject*, PyObject*) { return PyLong_FromLong(VALUE); }
static PyMethodDef methods[] = {{"set_num_threads", ignore, METH_VARARGS, nullptr},
                                {"value", value, METH_NOARGS, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "deepatlas_ops_array", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_deepatlas_ops_array() { return PyModule_Create(&module); }
"""
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "array.cpp").write_text(SOURCE.replace("VALUE", "17"))
    # Sources of PyTorch's library, which this one must not compile.
    (folder / "ops_any.cpp").write_text("no C++")
    (folder / "any.cu").write_text("no C++")
    monkeypatch.setattr(_jit, "find_sources", lambda: folder)
    monkeypatch.setattr(_jit, "flags", lambda: ("-O0",))
    monkeypatch.setattr(_library, "_found", None)
    monkeypatch.setenv("DEEPATLAS_OPS_CACHE", str(tmp_path / "cache"))
    return folder


@needs_compiler
def test_the_module_is_built_once_and_used_without_compiler_pybind11_or_ninja(sources, monkeypatch, capfd):
    assert _library.kernels().value() == 17
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" (")[0].split(" in ")[0] for line in lines] == [
        "deepatlas_ops: building the kernels for NumPy arrays",
        "deepatlas_ops: built the kernels for NumPy arrays",
    ]
    about = array.build_info()
    assert about["flags"] == ("-O0",) and sorted(os.listdir(about["directory"])) == [
        "build.json",
        "deepatlas_ops_array.so",
    ]
    for missing in ("CXX", "pybind11"):
        with monkeypatch.context() as patch:
            patch.setattr(_library, "_found", None)
            if missing == "CXX":
                patch.setenv("CXX", "/nonexistent/c++")
            else:
                patch.setattr(_library, "_pybind11", _no_pybind11)
            assert _library.kernels().value() == 17 and capfd.readouterr().err == ""
            # It does not fit other sources.
            patch.setattr(_library, "_found", None)
            (sources / "array.cpp").write_text(SOURCE.replace("VALUE", "18"))
            with pytest.raises(RuntimeError, match="^deepatlas_ops.array: there are no kernels: .*install"):
                _library.kernels()
            (sources / "array.cpp").write_text(SOURCE.replace("VALUE", "17"))


def _no_pybind11():
    raise _jit.BuildError("pybind11 is missing; install it with: pip install pybind11")


@needs_compiler
def test_a_damaged_module_is_built_again_and_a_failed_build_names_its_log(sources, monkeypatch):
    directory = _jit.cache_directory() / _library._plan().key
    directory.mkdir(parents=True)
    (directory / "deepatlas_ops_array.so").write_bytes(b"not a library")
    assert _library.kernels().value() == 17
    monkeypatch.setattr(_library, "_found", None)
    (sources / "array.cpp").write_text("this is no C++\n")
    with pytest.raises(RuntimeError, match="the build failed, see ") as error:
        _library.kernels()
    log = _jit.cache_directory() / f"{_library._plan().key}.log"
    assert str(log) in str(error.value) and "this is no C++" in log.read_text()


def test_without_a_compiler_one_error_names_the_cure(sources, monkeypatch):
    import numpy as np

    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(
        RuntimeError, match="^deepatlas_ops.array: .*no C\\+\\+ compiler found .*; install g"
    ) as error:
        array.resize(np.zeros((1, 1, 2, 2, 2)), (1, 1, 1))
    assert "\n" not in str(error.value)
