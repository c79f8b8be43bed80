"""The choice of backend, the build report and the messages when the native kernels cannot be had."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
import warnings

import pytest
import torch
from conftest import why_not_native

import deepatlas_ops as ops
from deepatlas_ops import _build, _library

PUBLIC = {
    "ImplicitWarp", "affine_resample", "build_info", "edge_difference", "folds", "implicit_warp",
    "log_jacobian", "log_jacobian_std", "ncc", "piecewise_linear", "resample", "resize", "smoothness_loss",
    "use_backend", "warp",
}  # fmt: skip


def volume():
    return torch.rand(1, 1, 3, 3, 3)


def unavailable(monkeypatch, reason="no compiler found; install one"):
    monkeypatch.setattr(_build, "load", lambda **_: types.SimpleNamespace(native=False, reason=reason))
    monkeypatch.setattr(_library, "_warned", False)


def test_every_public_function_is_there_and_documented():
    assert set(ops.__all__) == PUBLIC
    for name in PUBLIC:
        assert len(getattr(ops, name).__doc__) > 80, name


@pytest.mark.parametrize("name", ["cuda", "", None, "Torch"])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(ValueError, match="use_backend: backend: expected one of native, torch, auto, got"):
        with ops.use_backend(name):
            pass


def test_the_environment_decides_outside_any_block(monkeypatch):
    unavailable(monkeypatch)
    monkeypatch.setenv(_library.BACKEND_VARIABLE, "native")
    with pytest.raises(
        RuntimeError, match="native backend was asked for but is not available: no compiler found"
    ):
        ops.resize(volume(), (2, 2, 2))
    with ops.use_backend("torch"):  # the block wins
        assert ops.resize(volume(), (2, 2, 2)).shape == (1, 1, 2, 2, 2)
    monkeypatch.setenv(_library.BACKEND_VARIABLE, "gpu")
    with pytest.raises(
        ValueError, match="DEEPATLAS_OPS_BACKEND: expected one of native, torch, auto, got 'gpu'"
    ):
        ops.resize(volume(), (2, 2, 2))


def test_torch_never_asks_for_the_library(monkeypatch):
    def refuse(**_):
        raise AssertionError("the library was asked for")

    monkeypatch.setattr(_build, "load", refuse)
    with ops.use_backend("torch"):
        ops.warp(volume(), torch.zeros(1, 3, 3, 3, 3))
        assert ops.build_info()["requested"] == "torch"


def test_torch_runs_no_registered_op(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.ops.deepatlas_ops, "resize", lambda *a: calls.append(a))
    with ops.use_backend("torch"):
        ops.resize(volume(), (2, 2, 2))
    assert not calls
    monkeypatch.setattr(_library, "runs_reference", lambda: False)
    monkeypatch.setattr(_library, "_has_kernel", lambda args: True)
    ops.resize(volume(), (2, 2, 2))
    assert len(calls) == 1


def test_a_device_without_kernels_takes_the_body_or_says_so(monkeypatch):
    """As CUDA tensors do beside a library that was built without nvcc; meta stands for them here."""
    found = _build.BuildInfo(native=True, reason=None, cuda=False, cuda_reason="no nvcc found")
    monkeypatch.setattr(_build, "load", lambda: found)
    there = torch.zeros(1, 1, 3, 3, 3, device="meta")
    with ops.use_backend("auto"):
        assert ops.resize(there, (2, 2, 2)).shape == (1, 1, 2, 2, 2)
    with ops.use_backend("native"), pytest.raises(RuntimeError, match="for meta tensors: no nvcc found"):
        ops.resize(there, (2, 2, 2))


def test_auto_warns_once_with_the_reason_and_goes_on(monkeypatch):
    unavailable(monkeypatch)
    with ops.use_backend("auto"):
        with pytest.warns(RuntimeWarning, match="PyTorch bodies.*no compiler found"):
            first = ops.resize(volume(), (2, 2, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ops.resize(volume(), (2, 2, 2))
    assert first.shape == (1, 1, 2, 2, 2)


def test_blocks_nest_and_are_left_on_errors():
    before = _library.requested_backend()
    with ops.use_backend("torch"):
        with ops.use_backend("auto"):
            assert _library.requested_backend() == "auto"
        assert _library.requested_backend() == "torch"
        with pytest.raises(KeyError):
            with ops.use_backend("native"):
                raise KeyError
        assert _library.requested_backend() == "torch"
    assert _library.requested_backend() == before


def test_another_thread_keeps_its_own_choice():
    seen = []
    with ops.use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(_library._chosen.get()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_build_info_tells_what_runs():
    with ops.use_backend("auto"):
        info = ops.build_info()
    assert info["backend"] in ("native", "torch")
    assert {"compiler", "flags", "arch", "reason", "requested"} <= set(info)
    assert (info["backend"] == "native") == (why_not_native() is None)
    assert (info["backend"] == "native") == (info["reason"] is None)


def test_importing_builds_nothing():
    script = (
        "import deepatlas_ops, torch; from deepatlas_ops import _library; import sys; "
        "assert 'deepatlas_ops._build' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(why_not_native() is not None, reason="no native kernels")
@pytest.mark.parametrize("op", ["resample", "warp", "resize", "affine_resample"])
def test_the_native_kernels_are_the_ones_that_run(op):
    for name in (op, f"{op}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepatlas_ops::{name}", "CPU"), name
