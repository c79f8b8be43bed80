"""Calls every native op and its gradient with hostile inputs. test_sanitizer.py runs it in a separate process.

The library is built by the package itself, with -fsanitize added to its flags, and includes the bindings to PyTorch. An
access outside a buffer or undefined arithmetic ends the process.
"""

from __future__ import annotations

import sys

import torch

from deepatlas_ops import _build

# With two threads, the slabs of a volume are scattered to at the same time.
torch.set_num_threads(2)
_build._flags = lambda: (
    *("-O0", "-g1", "-march=native", "-fopenmp", "-fvisibility=hidden", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
)

import deepatlas_ops as ops  # noqa: E402

HOSTILE = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 6e4, 2.0**31, -(2.0**31), 1.0, -1.0, 0.0)
HALVES = (torch.float16, torch.bfloat16)
SIZES = [
    ((1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (2, 3, 4)),
    ((3, 5, 7), (1, 1, 1)),
    ((1, 6, 1), (5, 1, 9)),
    ((2, 1, 2), (3, 2, 1)),
    ((9, 8, 7), (17, 16, 19)),
    ((13, 2, 131), (3, 2, 129)),
]


def hostile(shape, dtype, share=0.2):
    """Values in about the range of a map, some of which are replaced by unusual ones."""
    x = torch.rand(shape) * 2.4 - 1.2
    odd = torch.tensor(HOSTILE)[torch.randint(len(HOSTILE), shape)]
    return torch.where(torch.rand(shape) < share, odd, x).to(dtype).requires_grad_()


def pull(out):
    """Computes every gradient of every output."""
    outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
    for t in outs:
        t.backward(hostile(tuple(t.shape), t.dtype).detach(), retain_graph=True)


def exercise(size, out, batch, dtype):
    volume = hostile((batch, 2, *size), dtype)
    for share in (0.0, 0.3):
        coords, moving, fixed = (hostile((batch, 3, *s), dtype, share) for s in (out, size, out))
        theta = hostile((batch, 3, 4), dtype, share)
        mask = (torch.rand(batch, 1, *size) > 0.4).to(dtype)
        for padding in ("border", "zeros", "reflection"):
            for mode in ("linear", "nearest"):
                options = {"mode": mode, "padding": padding}
                pull(ops.resample(volume, coords, **options))
                pull(ops.warp(volume, coords, **options))
                pull(ops.affine_resample(volume, theta, out, **options))
        for step in ("moving", "fixed", "literal", "direction_cosine", "newton"):
            for tolerance in (0.0, 0.1):
                pull(
                    ops.implicit_warp(moving, fixed, iterations=3, step=step, tolerance=tolerance, mask=mask)
                )
        for iterations, tolerance in ((2, 0.0), (70, 0.0), (70, 0.01)):
            settings = {"iterations": iterations, "tolerance": tolerance, "gradient": "unrolled"}
            pull(ops.implicit_warp(moving, fixed, **settings))
        for weight in (None, mask, torch.zeros_like(mask)):
            for kind in ("log", "det"):
                pull(ops.smoothness_loss(moving, weight, orthonormality=kind))
            for window in (None, 1, 3, 33):
                pull(ops.ncc(volume, hostile(tuple(volume.shape), dtype, share), weight, window=window))
            pull(ops.edge_difference(volume, hostile(tuple(volume.shape), dtype, share), weight))
            for differences in ("central", "digital"):
                ops.folds(moving, weight, differences=differences)
            ops.log_jacobian_std(moving, weight)
        for normalize in (False, True):
            pull(ops.log_jacobian(moving, normalize_columns=normalize))
    pull(ops.resize(volume, out))
    pull(ops.piecewise_linear(volume, (-1, 0, 1), (0, 1, 3)))


def main():
    torch.manual_seed(0)
    with ops.use_backend("native"):
        # With an argument, a tensor whose memory is too small shows that the sanitizer finds bugs.
        if len(sys.argv) > 1:
            field = torch.zeros(1, 3, 4, 5, 6)
            field.untyped_storage().resize_(4)
            ops.log_jacobian(field)
        for i, (size, out) in enumerate(SIZES):
            for dtype in (torch.float32, HALVES[i % 2], torch.float64):
                exercise(size, out, 2, dtype)
        exercise((3, 4, 5), (2, 3, 4), 0, torch.float32)
        exercise((3, 4, 5), (2, 3, 4), 1, torch.float32)
    print("clean")


if __name__ == "__main__":
    main()
