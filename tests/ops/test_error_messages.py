"""The errors for wrong arguments: of the public functions on both backends, and of the native ops themselves."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, MEASURES

SIZE = (3, 4, 5)
# The name of the first argument of an op, if it is not "volume".
FIRST = {
    "edge_difference": "moving",
    "folds": "field",
    "implicit_warp": "c_moving",
    "group_norm_leaky_relu": "x",
    "log_jacobian": "field",
    "log_jacobian_std": "field",
    "ncc": "a",
    "piecewise_linear": "x",
    "smoothness_loss": "field",
}


@pytest.mark.parametrize("name", {**CASES, **MEASURES})
def test_the_public_functions_name_their_first_argument(backend, name):
    case, op = {**CASES, **MEASURES}[name], name.split()[0]
    argument = FIRST.get(op, "volume")
    inputs = case.make(SIZE)
    for wrong, expected in (
        (inputs[0].int(), "float64, float32, float16 or bfloat16, got torch.int32"),
        (inputs[0][0], r"\[B, (C|3), D, H, W\], got \[3, 3, 4, 5\]"),
        (inputs[0][:, :, :0], r"at least one voxel on each axis, got \[2, 3, 0, 4, 5\]"),
        (3.0, r"a tensor \[B, (C|3), D, H, W\], got float"),
    ):
        with pytest.raises(ValueError, match=f"^{op}: {argument}: expected .*{expected}"):
            case.run(None, wrong, *inputs[1:])


def empty(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


V, P, M = (empty(1, c, *SIZE) for c in (2, 3, 3))
HOLE, EYE, THETA = empty(1, 3, 0, 4, 5), torch.eye(3)[None], empty(1, 3, 4)
INTEGER = empty(1, 2, *SIZE, dtype=torch.int32)
ONES, PAIR = empty(1, 2), empty(1, 1, 2, dtype=torch.float64)
TOO_MANY = [float(i) for i in range(34)]
NATIVE = [
    ("resample", (INTEGER, P.int(), 0, 0), "volume must be float64, float32, float16 or bfloat16, got Int"),
    ("resample", (V, P.double(), 0, 0), "coords must be Float like volume, got Double"),
    ("resample", (V, P[:0], 0, 0), r"coords must have the batch size 1 of volume, got \[0, 3, 3, 4, 5\]"),
    ("resample", (V, V, 0, 0), r"coords must be \[B, 3, D, H, W\], got \[1, 2, 3, 4, 5\]"),
    ("resample", (HOLE, P, 0, 0), r"volume has no voxels to sample from, got \[0, 4, 5\]"),
    ("resample", (V, P, 2, 0), r"mode must be 0 \(linear\) or 1 \(nearest\), got 2"),
    ("resample", (V, P, 0, 3), "padding must be 0 .*, got 3"),
    ("resample_backward", (V[:, :1], V, P, 0, 0, True, True), "grad must have the shape of the output"),
    ("resample_backward", (V.half(), V, P, 0, 0, True, True), "grad must be Float like volume, got Half"),
    ("warp", (V, P.half(), 0, 0), "displacement must be Float like volume, got Half"),
    ("warp", (V[0], P, 0, 0), r"volume must be \[B, C, D, H, W\], got \[2, 3, 4, 5\]"),
    ("affine_resample", (V, THETA[:, :2], [2, 2, 2], 0, 0), r"theta must be \[B, 3, 4\], got \[1, 2, 4\]"),
    ("affine_resample", (V, THETA, [2, 2], 0, 0), r"size must be \(D, H, W\), got \[2, 2\]"),
    ("resize", (INTEGER, [2, 2, 2]), "volume must be float64, float32, float16 or bfloat16, got Int"),
    ("resize", (V, [2, 2, -1]), "every axis of size must have 0 to 16777216 voxels"),
    ("resize", (HOLE, [2, 2, 2]), "volume has no voxels to sample from"),
    ("resize_backward", (INTEGER, [2, 2, 2]), "grad must be float64, float32, float16 or bfloat16, got Int"),
    ("resize_backward", (V, [0, 2, 2]), "size has no voxels to sample from"),
    ("implicit_warp", (M.int(), M.int(), EYE, None, 1, 0.0, False), "c_moving must be float64, .*got Int"),
    ("implicit_warp", (HOLE, M, EYE, None, 1, 0.0, False), "c_moving has no voxels to sample from"),
    ("implicit_warp", (M, M.double(), EYE, None, 1, 0.0, False), "c_fixed must be Float like c_moving"),
    (
        "implicit_warp",
        (M.half(), M.half(), EYE.half(), None, 1, 0.0, False),
        "matrix must be Float for this c_moving",
    ),
    ("implicit_warp", (M, M, EYE, EYE[:, :2], 1, 0.0, False), r"ruler must be \[B, 3, 3\]"),
    ("implicit_warp_unrolled", (M, M[:, :2], EYE, None, 1, 0.0), r"c_fixed must be \[B, 3, D, H, W\]"),
    ("implicit_warp_unrolled", (M, M, EYE, None, 0, 0.0), r"iterations must be 1 to 2\^31 - 1, got 0"),
    ("implicit_warp_backward", (M.double(), M, M, M[:, :1].bool(), EYE, True), "grad must be Float like"),
    ("implicit_warp_backward", (M, M, M, M[:, :1], EYE, True), "valid must be Bool for this c_moving"),
    (
        "implicit_warp_unrolled_backward",
        (M[..., :2], M, M, EYE, 1, 0.0),
        "grad must have the shape of c_fixed",
    ),
    ("log_jacobian", (M.int(), False, 1e-3), "field must be float64, .*got Int"),
    ("log_jacobian", (V, False, 1e-3), r"field must be \[B, 3, D, H, W\], got \[1, 2, 3, 4, 5\]"),
    ("log_jacobian_backward", (M, M, False, 1e-3), r"grad must be \[1, 1, 3, 4, 5\], got \[1, 3, 3, 4, 5\]"),
    ("jacobian_determinant", (M.int(), False), "field must be float64, .*got Int"),
    ("smoothness_loss", (M, M[:, :1].double(), 0.5, True), "mask must be Float like field, got Double"),
    ("ncc", (INTEGER, INTEGER, None, 0, 1e-5), "a must be float64, float32, float16 or bfloat16, got Int"),
    ("ncc", (V, V.double(), None, 0, 1e-5), "b must be Float like a, got Double"),
    ("ncc", (V, V, V, 0, 1e-5), r"mask must be \[B, 1, D, H, W\] like a"),
    ("ncc", (V, V, None, 2, 1e-5), r"window must be 0 \(global\) or odd, got 2"),
    ("edge_difference", (INTEGER, INTEGER, None), "moving must be float64, float32, .*got Int"),
    ("edge_difference", (V, V.double(), None), "fixed must be Float like moving, got Double"),
    ("edge_difference", (V, V[..., :2], None), r"fixed must be \[1, 2, 3, 4, 5\], got \[1, 2, 3, 4, 2\]"),
    ("edge_difference", (V, V, V), r"mask must be \[1, 1, 3, 4, 5\], got \[1, 2, 3, 4, 5\]"),
    ("edge_difference", (V[0], V[0], None), r"moving must be \[B, C, D, H, W\], got \[2, 3, 4, 5\]"),
    (
        "edge_difference_backward",
        (V[:, 0, 0, 0, 0], V, V, None, torch.zeros(1, 2).double(), True, False),
        r"statistics must be \[1, 3\], got \[1, 2\]",
    ),
    ("piecewise_linear", (INTEGER, [0.0, 1.0], [0.0, 1.0]), "x must be float64, .*got Int"),
    ("piecewise_linear", (V, [0.0, 0.0], [0.0, 1.0]), r"knots must rise, got \[0, 0\]"),
    ("piecewise_linear", (V, [0.0], [0.0]), "knots and values must be 2 to 33 numbers each, got 1 and 1"),
    (
        "piecewise_linear",
        (V, TOO_MANY, TOO_MANY),
        "knots and values must be 2 to 33 numbers each, got 34 and 34",
    ),
    ("group_norm_leaky_relu", (INTEGER, ONES, ONES, 1, 0.1, 1e-5), "x must be float64, .*got Int"),
    ("group_norm_leaky_relu", (V[0], ONES, ONES, 1, 0.1, 1e-5), r"x must be \[B, C, D, H, W\]"),
    ("group_norm_leaky_relu", (V, ONES, ONES, 3, 0.1, 1e-5), "groups must divide the 2 channels of x, got 3"),
    ("group_norm_leaky_relu", (V, ONES, ONES, 0, 0.1, 1e-5), "groups must divide the 2 channels of x, got 0"),
    ("group_norm_leaky_relu", (V.half(), ONES.half(), ONES, 1, 0.1, 1e-5), "weight must be Float for this x"),
    ("group_norm_leaky_relu", (V, ONES, ONES[0], 1, 0.1, 1e-5), r"bias must be \[1, 2\], got \[2\]"),
    ("group_norm_leaky_relu_backward", (V[:, :1], V, ONES, ONES, PAIR, 1, 0.1, True), "grad must be"),
    ("group_norm_leaky_relu_backward", (V, V, ONES, ONES, PAIR[:, :0], 1, 0.1, True), "statistics must be"),
    ("piecewise_linear_backward", (V[:, :1], V, [0.0, 1.0], [0.0, 1.0]), "grad must be"),
]


@pytest.mark.parametrize("name, arguments, message", NATIVE, ids=lambda x: x if isinstance(x, str) else "")
def test_the_native_ops_name_the_argument(native, name, arguments, message):
    with pytest.raises(RuntimeError, match=f"deepatlas_ops.{name}: {message}"):
        getattr(torch.ops.deepatlas_ops, name)(*arguments)
