"""Whether the native kernels can be had, for the tests that need them."""

from __future__ import annotations

import functools

import torch

import deepatlas_ops as ops


@functools.lru_cache(maxsize=1)
def why_not_native() -> str | None:
    """None if the native kernels can be built and loaded, otherwise the reason."""
    try:
        with ops.use_backend("native"):
            ops.resize(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2))
    except RuntimeError as error:
        return str(error)
    return None
