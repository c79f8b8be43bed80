"""Kernels of DeepATLAS: corner-aligned resampling, inversion of coordinate maps, Jacobians, edges and correlation.

Tensors are [B, C, D, H, W]; a map is [B, 3, D, H, W] with channels x, y, z, normalised so that -1 and +1 are
the centres of the first and last voxel of an axis (an axis of size 1 sits at 0). Everything is a pull:
``resample(volume, coords)[v] = volume(coords[v])``. Every op runs on CPU and CUDA, is differentiable, and
has a PyTorch body that runs where the compiled kernels cannot be built (see :func:`use_backend`). Every op
works under ``torch.compile(fullgraph=True)``, ``torch.func.vmap`` and ``torch.func.grad``; forward mode is refused,
and so are second derivatives where neither the kernels nor the body have them.
"""

from __future__ import annotations

from typing import Any

from ._library import requested_backend, use_backend
from .edges import edge_difference
from .invert import ImplicitWarp, implicit_warp
from .jacobian import folds, log_jacobian, log_jacobian_std, smoothness_loss
from .ncc import ncc
from .piecewise import piecewise_linear
from .resample import affine_resample, resample, resize, warp

__all__ = [
    "ImplicitWarp",
    "affine_resample",
    "build_info",
    "edge_difference",
    "folds",
    "implicit_warp",
    "log_jacobian",
    "log_jacobian_std",
    "ncc",
    "piecewise_linear",
    "resample",
    "resize",
    "smoothness_loss",
    "use_backend",
    "warp",
]


def build_info() -> dict[str, Any]:
    """What the ops run on: backend, compiler, flags, arch, and the reason if the backend is not native.

    Builds and loads the compiled library if that has not been tried yet, unless the backend asked for is
    ``"torch"``. ``backend`` is ``"native"`` or ``"torch"``; ``requested`` is what was asked for.
    """
    from . import _build

    requested = requested_backend()
    if requested != "torch":
        _build.load()
    return {**_build.info(), "requested": requested}
