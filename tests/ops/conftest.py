"""Every op is tested on both backends; native is skipped, with the reason, where it cannot build."""

from __future__ import annotations

import functools

import pytest
import torch

import deepatlas_ops as ops


@functools.lru_cache(maxsize=1)
def why_not_native() -> str | None:
    try:
        with ops.use_backend("native"):
            ops.resize(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2))
    except RuntimeError as error:
        return str(error)
    return None


@pytest.fixture(params=["torch", "native"])
def backend(request):
    """The backend the test runs on; the ops inside the test use it without being told."""
    if request.param == "native" and why_not_native():
        pytest.skip(why_not_native())
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture
def native():
    """The test runs on the native kernels."""
    if why_not_native():
        pytest.skip(why_not_native())
    with ops.use_backend("native"):
        yield


@pytest.fixture
def cuda(native):
    """A GPU, with native kernels for it, on which the test runs."""
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
