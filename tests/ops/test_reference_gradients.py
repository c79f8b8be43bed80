"""The backward bodies in PyTorch against ordinary autograd of the forward bodies, without the dispatcher.

While the native kernels are loaded, the registered ops do not run these bodies.
"""

from __future__ import annotations

import pytest
import torch
from fields import identity, inside, smooth

from deepatlas_ops import reference

SIZE, OUT = (4, 1, 6), (3, 5, 1)


def compare(forward, backward, inputs, n_needed):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = forward(*leaves)
    grad = torch.randn_like(out)
    want = torch.autograd.grad(out, leaves, grad)
    got = backward(grad, *inputs, *([[True] * n_needed] if n_needed else [[]]))
    got = got if isinstance(got, tuple) else (got,)
    for g, w in zip(got, want, strict=True):
        assert g.is_contiguous()
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("name", ["resample", "warp"])
def test_resample_and_warp(name, padding, mode):
    forward, backward = getattr(reference, name), getattr(reference, f"{name}_backward")
    volume, coords = torch.randn(2, 3, *SIZE, dtype=torch.float64), inside(2, OUT, 1.5)
    coords[0, 1, 1, 2, 0] = float("nan")
    compare(
        lambda v, c: torch.nan_to_num(forward(v, c, mode, padding), nan=0.0),
        lambda g, v, c, needs: backward(g, v, c, mode, padding, *needs),
        (volume, coords),
        2,
    )
    for needs in ((True, False), (False, True)):
        pair = backward(torch.randn(2, 3, *OUT).double(), volume, coords, mode, padding, *needs)
        assert [g.numel() > 0 for g in pair] == list(needs)
        assert all(needed or g.shape == (0,) for g, needed in zip(pair, needs, strict=True))


def test_affine_resample():
    theta = torch.eye(3, 4).double() + 0.2 * torch.randn(2, 3, 4).double()
    compare(
        lambda v, t: reference.affine_resample(v, t, OUT, 0, 1),
        lambda g, v, t, needs: reference.affine_resample_backward(g, v, t, 0, 1, *needs),
        (torch.randn(2, 3, *SIZE, dtype=torch.float64), theta),
        2,
    )


@pytest.mark.parametrize("size, out", [(SIZE, OUT), ((3, 4, 5), (6, 2, 5)), ((4, 5, 6), (1, 1, 3))])
def test_resize(size, out):
    volume = torch.randn(2, 3, *size, dtype=torch.float64)
    compare(
        lambda v: reference.resize(v, out),
        lambda g, v, needs: reference.resize_backward(g, size),
        (volume,),
        0,
    )
    assert reference.resize_backward(torch.zeros(0, 3, *out), size).shape == (0, 3, *size)


# Without folds, and with folds.
@pytest.mark.parametrize("amplitude", [0.1, 0.6])
def test_jacobians(amplitude):
    field = identity((4, 5, 6)) + smooth(2, (4, 5, 6), amplitude)
    mask = (torch.rand(2, 1, 4, 5, 6) > 0.4).double()
    for normalize in (False, True):
        compare(
            lambda f, n=normalize: reference.log_jacobian(f, n, 1e-3),
            lambda g, f, needs, n=normalize: reference.log_jacobian_backward(g, f, n, 1e-3),
            (field,),
            0,
        )
        compare(
            lambda f, n=normalize: reference.smoothness_loss(f, mask, 0.5, n),
            lambda g, f, needs, n=normalize: reference.smoothness_loss_backward(g, f, mask, 0.5, n),
            (field,),
            0,
        )


@pytest.mark.parametrize("window", [0, 3])
def test_ncc(window):
    mask = torch.rand(2, 1, 4, 5, 6).double()
    compare(
        lambda a, b: reference.ncc(a, b, mask, window, 1e-5),
        lambda g, a, b, needs: reference.ncc_backward(g, a, b, mask, window, 1e-5, *needs),
        (torch.randn(2, 3, 4, 5, 6).double(), torch.randn(2, 3, 4, 5, 6).double()),
        2,
    )


@pytest.mark.parametrize("size", [(4, 5, 6), (1, 2, 3), (1, 1, 1)])
# Edges of the fixed image above and below the floor.
@pytest.mark.parametrize("contrast", [1.0, 1e-3])
def test_edge_difference(size, contrast):
    images = torch.randn(2, 3, *size).double(), contrast * torch.randn(2, 3, *size).double()
    for mask in (None, (torch.rand(2, 1, *size) > 0.4).double(), torch.zeros(2, 1, *size).double()):
        compare(
            lambda a, b, m=mask: reference.edge_difference(a, b, m),
            lambda g, a, b, needs, m=mask: reference.edge_difference_backward(g, a, b, m, *needs),
            images,
            2,
        )


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_leaky_relu(groups):
    x, weight, bias = (
        torch.randn(2, 6, *SIZE).double(),
        torch.randn(2, 6).double(),
        torch.randn(2, 6).double(),
    )
    statistics = reference.group_norm_statistics(x, groups, 1e-5)

    def backward(g, *inputs):
        inputs = inputs[:3]
        _, *affine = reference.group_norm_leaky_relu_backward(g, *inputs, statistics, groups, 0.1, False)
        found = reference.group_norm_leaky_relu_backward(g, *inputs, statistics, groups, 0.1, True)
        for alone, along in zip(affine, found[1:], strict=True):
            assert torch.equal(alone, along)
        return found

    compare(
        lambda *inputs: reference.group_norm_leaky_relu(*inputs, groups, 0.1, 1e-5),
        backward,
        (x, weight, bias),
        0,
    )


def test_piecewise_linear():
    curve = [-1.0, -0.3, 0.2, 0.9], [0.0, 0.4, 0.1, 2.0]
    compare(
        lambda x: reference.piecewise_linear(x, *curve),
        lambda g, x, needs: reference.piecewise_linear_backward(g, x, *curve),
        (torch.randn(2, 3, 4, 5, 6).double(),),
        0,
    )
