"""group_norm_leaky_relu against group_norm and leaky_relu of PyTorch: values, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import deepatlas_ops as ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def pytorch(x, groups, weight, bias, slope=0.1):
    return F.leaky_relu(F.group_norm(x, groups, weight, bias), slope)


def gradients(function, *leaves):
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        out.dtype
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


# Channels in whole vectors, in halves of one and in single lanes; voxels in several pieces and in less than a row.
SHAPES = [
    ((2, 16, 13, 12, 11), 8),
    ((3, 27, 4, 5, 6), 9),
    ((1, 8, 1, 1, 3), 2),
    ((2, 5, 3, 1, 2), 1),
    ((1, 40, 7, 6, 5), 40),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, groups", SHAPES)
def test_values_gradients_and_layout_are_those_of_pytorch(backend, shape, groups, layout):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    affine = torch.randn(2, shape[1], dtype=torch.float64)
    got = gradients(lambda *a: ops.group_norm_leaky_relu(a[0], groups, *a[1:], slope=0.1), x, *affine)
    want = gradients(lambda *a: pytorch(a[0], groups, *a[1:]), x, *affine)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)
    assert got[0].stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, groups", SHAPES)
def test_it_errs_at_most_twice_as_much_as_pytorch(native, shape, groups, dtype, layout):
    # Values far from 0 are where a sum of squares loses its digits.
    x = (torch.randn(shape) + 30).to(dtype).contiguous(memory_format=layout)
    affine = torch.randn(2, shape[1])
    got = gradients(lambda *a: ops.group_norm_leaky_relu(a[0], groups, *a[1:], slope=0.1), x, *affine)
    # PyTorch's gradients with channels last are worse than those of contiguous tensors.
    usual = gradients(lambda *a: pytorch(a[0], groups, *a[1:]), x.contiguous(), *affine)
    exact = gradients(lambda *a: pytorch(a[0], groups, *a[1:]), x.double(), *affine.double())
    for g, u, e in zip(got, usual, exact, strict=True):
        least = torch.finfo(g.dtype).eps * e.abs().max().item() * e.numel() ** 0.5
        assert (g.double() - e).norm() <= 2 * (u.double() - e).norm() + least


def test_gradcheck(backend):
    x = torch.randn(2, 6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    affine = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda *a: ops.group_norm_leaky_relu(a[0], 3, *a[1:], slope=0.3), (x, *affine)
    )


def test_without_weight_and_bias_and_with_the_defaults_of_pytorch(backend):
    x = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(ops.group_norm_leaky_relu(x, 2), F.leaky_relu(F.group_norm(x, 2)))


def test_a_nan_spoils_its_group_and_no_other(backend):
    x = torch.randn(2, 4, 3, 4, 5)
    x[0, 1, 0, 0, 0] = float("nan")
    bad = ops.group_norm_leaky_relu(x, 2).isnan()
    assert bad[0, :2].all() and not bad[0, 2:].any() and not bad[1].any()


def test_what_needs_no_gradient_has_none(backend):
    x, weight = torch.randn(2, 4, 3, 4, 5), torch.ones(4, requires_grad=True)
    ops.group_norm_leaky_relu(x, 2, weight).sum().backward()
    assert x.grad is None and weight.grad.shape == (4,)


def test_an_empty_batch(backend):
    x, weight = torch.zeros(0, 4, 3, 4, 5, requires_grad=True), torch.ones(4, requires_grad=True)
    out = ops.group_norm_leaky_relu(x, 2, weight)
    out.sum().backward()
    assert out.shape == x.shape == x.grad.shape and weight.grad.tolist() == [0, 0, 0, 0]


X = torch.zeros(1, 4, 2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, 3), {}, "groups: expected a divisor of the 4 channels of x, got 3"),
        ((X, 0), {}, "groups: expected an integer of at least 1, got 0"),
        ((X[:, :0], 1), {}, "groups: expected a divisor of the 0 channels of x, got 1"),
        (
            (X, 2, torch.ones(3)),
            {},
            r"weight: expected a tensor \[4\], one number for each channel of x, got \[3\]",
        ),
        (
            (X, 2, None, 1.0),
            {},
            r"bias: expected a tensor \[4\], one number for each channel of x, got float",
        ),
        ((X, 2, torch.ones(4, dtype=torch.int32)), {}, "weight: expected float64, .* got torch.int32"),
        ((X, 2), {"eps": 0}, "eps: expected a number above 0, got 0"),
        ((X, 2), {"slope": -1}, "slope: expected a number of at least 0, got -1"),
    ],
)
def test_errors(backend, arguments, options, message):
    with pytest.raises(ValueError, match=f"group_norm_leaky_relu: {message}"):
        ops.group_norm_leaky_relu(*arguments, **options)
