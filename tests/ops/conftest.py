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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
