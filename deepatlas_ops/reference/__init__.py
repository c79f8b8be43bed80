"""The pure-PyTorch bodies of every op: the fallback at run time and the oracle in the tests.

Nothing here checks its arguments (the public functions of ``deepatlas_ops`` do) and nothing here depends on
the compiled library. Every forward body is differentiable by ordinary autograd; the ``*_backward`` bodies
state the same gradients as one call each, which is what the registered ops run.
"""

from __future__ import annotations

from .edges import EDGE_FLOOR, edge_difference, edge_difference_backward, edge_statistics, prewitt
from .invert import (
    continued_inverse,
    implicit_warp_backward,
    implicit_warp_unrolled_backward,
    solve_inverse,
    step_matrix,
)
from .jacobian import (
    SMOOTHNESS_EPS,
    jacobian,
    jacobian_determinant,
    log_determinant,
    log_jacobian,
    log_jacobian_backward,
    smoothness_loss,
    smoothness_loss_and_statistics,
    smoothness_loss_backward,
    weighted_mean,
)
from .ncc import channel_moments, ncc, ncc_backward
from .piecewise import piecewise_linear, piecewise_linear_backward
from .resample import (
    affine_resample,
    affine_resample_backward,
    identity_grid,
    resample,
    resample_backward,
    resize,
    resize_backward,
    warp,
    warp_backward,
)

__all__ = [
    "EDGE_FLOOR",
    "SMOOTHNESS_EPS",
    "affine_resample",
    "affine_resample_backward",
    "channel_moments",
    "continued_inverse",
    "edge_difference",
    "edge_difference_backward",
    "edge_statistics",
    "identity_grid",
    "implicit_warp_backward",
    "implicit_warp_unrolled_backward",
    "jacobian",
    "jacobian_determinant",
    "log_determinant",
    "log_jacobian",
    "log_jacobian_backward",
    "ncc",
    "ncc_backward",
    "piecewise_linear",
    "piecewise_linear_backward",
    "prewitt",
    "resample",
    "resample_backward",
    "resize",
    "resize_backward",
    "smoothness_loss",
    "smoothness_loss_and_statistics",
    "smoothness_loss_backward",
    "solve_inverse",
    "step_matrix",
    "warp",
    "warp_backward",
    "weighted_mean",
]
