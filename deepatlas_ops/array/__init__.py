"""The kernels for NumPy arrays, without PyTorch.

The functions have the names, conventions, arguments and defaults of those of :mod:`deepatlas_ops`, and compute the same
by the same kernels on the CPU; only forward, without gradients. Arrays are [B, C, D, H, W] of float64 or float32. A
map is [B, 3, D, H, W] with channels x, y, z, in normalised coordinates: along each axis, -1 is the centre of the first
voxel and +1 the centre of the last, and an axis of size 1 lies at 0. Everything is a pull:
``resample(volume, coords)[v] = volume(coords[v])``.

An aligned array in C order and in the byte order of the machine is read where it lies; others are copied first, and
read-only ones are welcome. A function releases the lock of Python while it computes, on threads of this module
(:func:`set_num_threads`). The first call compiles the kernels, as for the ops. Without a compiler and without a library
that was compiled before it raises a ``RuntimeError`` that says what to install; there are no bodies in NumPy.

:func:`invert_displacement` and :func:`compose_displacements` work on displacement fields of ITK, in millimetres.
"""

from __future__ import annotations

from ._displacements import (
    DisplacementField,
    InvertedDisplacement,
    compose_displacements,
    invert_displacement,
)
from ._inversion import ImplicitWarp, implicit_warp, invert
from ._kernels import folds, log_jacobian, ncc, resample, resize, warp
from ._library import build_info, get_num_threads, set_num_threads

__all__ = [
    "DisplacementField",
    "ImplicitWarp",
    "InvertedDisplacement",
    "build_info",
    "compose_displacements",
    "folds",
    "get_num_threads",
    "implicit_warp",
    "invert",
    "invert_displacement",
    "log_jacobian",
    "ncc",
    "resample",
    "resize",
    "set_num_threads",
    "warp",
]
