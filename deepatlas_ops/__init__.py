"""Kernels of DeepATLAS: corner-aligned resampling, inversion of coordinate maps, Jacobians, edges and correlation.

Tensors are [B, C, D, H, W]. A map is [B, 3, D, H, W] with channels x, y, z, in normalised coordinates: along each axis,
-1 is the centre of the first voxel and +1 the centre of the last, and an axis of size 1 lies at 0. Everything is a
pull: ``resample(volume, coords)[v] = volume(coords[v])``.

Every op runs on the CPU and on CUDA, and has a PyTorch body that runs where the compiled kernels cannot be built (see
:func:`use_backend`). Every op works under ``torch.compile(fullgraph=True)``, ``torch.func.vmap`` and
``torch.func.grad``. Forward-mode differentiation raises an error, and so do second derivatives that are not
implemented.

:mod:`deepatlas_ops.array` has the same kernels for NumPy arrays. It needs no PyTorch, so this package does not import
PyTorch by itself: the ops are registered as soon as the process has imported PyTorch, or on the first use of one of
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _with_torch

if TYPE_CHECKING:
    from ._library import use_backend
    from .correlation import ncc
    from .edges import edge_difference
    from .invert import ImplicitWarp, implicit_warp
    from .jacobian import folds, log_jacobian, log_jacobian_std, smoothness_loss
    from .normalization import group_norm_leaky_relu
    from .piecewise import piecewise_linear
    from .sampling import affine_resample, resample, resize, warp

__all__ = [
    "ImplicitWarp",
    "affine_resample",
    "build_info",
    "edge_difference",
    "folds",
    "group_norm_leaky_relu",
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
    """What runs the ops. Builds and loads the compiled library first, unless the requested backend is ``"torch"``.

    Returns:
        A dictionary with these entries, of which those that do not apply are None or empty:

        - ``requested``: the requested backend, ``"native"``, ``"torch"`` or ``"auto"``
        - ``backend``: ``"native"`` if the library is loaded, otherwise ``"torch"``; ``native``: the same as a bool
        - ``reason``: in one line, why the library is not loaded
        - ``compiler``, ``flags``: what compiled the library
        - ``arch``: the processor, and the CUDA architectures if any, that it was compiled for
        - ``cuda``: whether it has CUDA kernels; ``cuda_reason``: why not, if PyTorch has CUDA
        - ``directory``: where it is stored
        - ``seconds``: how long it took to compile
    """
    from . import _build
    from ._library import requested_backend

    requested = requested_backend()
    if requested != "torch":
        _build.load()
    return {**_build.info(), "requested": requested}


# The modules of the ops, in the order in which they are registered, and the public names of each.
_MODULES = {
    "_library": ("use_backend",),
    "edges": ("edge_difference",),
    "invert": ("ImplicitWarp", "implicit_warp"),
    "jacobian": ("folds", "log_jacobian", "log_jacobian_std", "smoothness_loss"),
    "correlation": ("ncc",),
    "normalization": ("group_norm_leaky_relu",),
    "piecewise": ("piecewise_linear",),
    "sampling": ("affine_resample", "resample", "resize", "warp"),
}


def _register() -> None:
    """Import the ops, which registers them, and put their public names into this module."""
    for module, names in _MODULES.items():
        found = import_module(f".{module}", __name__)
        globals().update({name: getattr(found, name) for name in names})


# Type checkers know the names above, so that they report any other.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            _with_torch.now()
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


_with_torch.run(_register)
