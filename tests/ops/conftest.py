"""Every op is tested with both backends. Where the native kernels cannot be built, their tests are skipped."""

from __future__ import annotations

import pytest
import torch
from native_kernels import why_not_native

import deepatlas_ops as ops


@pytest.fixture(params=["torch", "native"])
def backend(request):
    """The backend that the ops in the test use."""
    if request.param == "native" and why_not_native():
        pytest.skip(why_not_native())
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture
def native():
    """The ops in the test use the native kernels."""
    if why_not_native():
        pytest.skip(why_not_native())
    with ops.use_backend("native"):
        yield


@pytest.fixture
def cuda(native):
    """A GPU with native kernels, which the ops in the test use."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not ops.build_info()["cuda"]:
        pytest.skip(f"no CUDA kernels: {ops.build_info()['cuda_reason']}")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """A device with native kernels."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
