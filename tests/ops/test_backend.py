"""The choice of the backend, the build report, and the errors where the native kernels cannot be had."""

from __future__ import annotations

import threading
import types
import warnings

import pytest
import torch
from native_kernels import why_not_native

import deepatlas_ops as ops
from deepatlas_ops import _build, _library

PUBLIC = {
    "ImplicitWarp", "affine_resample", "build_info", "edge_difference", "folds", "group_norm_leaky_relu",
    "implicit_warp", "log_jacobian", "log_jacobian_std", "ncc", "piecewise_linear", "resample", "resize",
    "smoothness_loss", "use_backend", "warp",
}  # fmt: skip


VARIABLE = "DEEPATLAS_OPS_BACKEND"


def requested():
    return ops.build_info()["requested"]


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
    monkeypatch.setenv(VARIABLE, "native")
    with pytest.raises(
        RuntimeError, match="native backend was requested but is not available: no compiler found"
    ):
        ops.resize(volume(), (2, 2, 2))
    # A block overrides the environment.
    with ops.use_backend("torch"):
        assert ops.resize(volume(), (2, 2, 2)).shape == (1, 1, 2, 2, 2)
    monkeypatch.setenv(VARIABLE, "gpu")
    with pytest.raises(
        ValueError, match="DEEPATLAS_OPS_BACKEND: expected one of native, torch, auto, got 'gpu'"
    ):
        ops.resize(volume(), (2, 2, 2))


def test_torch_never_loads_the_library(monkeypatch):
    def refuse(**_):
        raise AssertionError("the library was loaded")

    monkeypatch.setattr(_build, "load", refuse)
    with ops.use_backend("torch"):
        ops.warp(volume(), torch.zeros(1, 3, 3, 3, 3))
        assert requested() == "torch"


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
    """Such as CUDA with a library that was built without nvcc. Here the meta device takes its place."""
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
    before = requested()
    with ops.use_backend("torch"):
        with ops.use_backend("auto"):
            assert requested() == "auto"
        assert requested() == "torch"
        with pytest.raises(KeyError):
            with ops.use_backend("native"):
                raise KeyError
        assert requested() == "torch"
    assert requested() == before


def test_another_thread_keeps_its_own_choice():
    seen, before = [], requested()
    other = "auto" if before == "torch" else "torch"
    with ops.use_backend(other):
        thread = threading.Thread(target=lambda: seen.append(requested()))
        thread.start()
        thread.join()
    assert seen == [before]


def test_build_info_says_what_runs():
    with ops.use_backend("auto"):
        info = ops.build_info()
    assert info["backend"] in ("native", "torch")
    assert {"compiler", "flags", "arch", "reason", "requested"} <= set(info)
    assert (info["backend"] == "native") == (why_not_native() is None)
    assert (info["backend"] == "native") == (info["reason"] is None)


@pytest.mark.skipif(why_not_native() is not None, reason="no native kernels")
@pytest.mark.parametrize("op", ["resample", "warp", "resize", "affine_resample"])
def test_the_native_kernels_are_the_ones_that_run(op):
    for name in (op, f"{op}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepatlas_ops::{name}", "CPU"), name
