"""The body of every op in PyTorch: what runs without a compiled library, and what the tests compare the kernels with.

The bodies do not check their arguments, which the public functions of ``deepatlas_ops`` do, and do not depend on the
compiled library. Ordinary autograd differentiates every forward body. The ``*_backward`` bodies compute the same
gradients in one call each; the registered ops use them.
"""

from __future__ import annotations

from ._common import weighted_mean
from .edges import edge_difference, edge_difference_backward, edge_statistics, prewitt
from .invert import (
    implicit_warp_backward,
    implicit_warp_unrolled_backward,
    solve_inverse,
    step_matrix,
)
from .jacobian import (
    SMOOTHNESS_EPS,
    jacobian_determinant,
    log_determinant,
    log_jacobian,
    log_jacobian_backward,
    smoothness_loss,
    smoothness_loss_and_statistics,
    smoothness_loss_backward,
)
from .ncc import channel_moments, ncc, ncc_backward
from .norm import group_norm_leaky_relu, group_norm_leaky_relu_backward, group_norm_statistics
from .piecewise import piecewise_linear, piecewise_linear_backward
from .resample import (
    affine_resample,
    affine_resample_backward,
    resample,
    resample_backward,
    resize,
    resize_backward,
    warp,
    warp_backward,
)

__all__ = [
    "SMOOTHNESS_EPS",
    "affine_resample",
    "affine_resample_backward",
    "channel_moments",
    "edge_difference",
    "edge_difference_backward",
    "edge_statistics",
    "group_norm_leaky_relu",
    "group_norm_leaky_relu_backward",
    "group_norm_statistics",
    "implicit_warp_backward",
    "implicit_warp_unrolled_backward",
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
