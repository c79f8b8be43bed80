"""torch.compile(fullgraph=True) of every op: a single graph, forward and backward, with the results of eager mode."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, MEASURES, coordinates, rise, volume, weights

import deepatlas_ops as ops

SIZE = (5, 6, 7)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def everything(image, moving, fixed, theta, mask):
    """A loss that uses all ops. The other steps of the inversion are compiled alone, below."""
    small = ops.resize(image, (4, 5, 4))
    turned = ops.affine_resample(image, theta, SIZE)
    placed = ops.resample(image, moving)
    implicit = ops.implicit_warp(moving, fixed, iterations=2, tolerance=0.01, mask=mask)
    unrolled = ops.implicit_warp(moving, fixed, iterations=2, step="literal", gradient="unrolled")
    warped = ops.warp(turned, implicit.displacement)
    similarity = ops.ncc(warped, image, implicit.valid).sum() + ops.ncc(placed, image, mask, window=3).sum()
    field = fixed + 0.1 * (implicit.displacement + unrolled.displacement)
    smoothness = ops.smoothness_loss(field, mask).sum() + ops.log_jacobian(field).square().mean()
    edges = ops.edge_difference(
        warped, ops.piecewise_linear(ops.group_norm_leaky_relu(image, 1), (-1, 0, 2), (0, 0.7, 1)), mask
    ).sum()
    irregular = ops.folds(moving, mask).sum() + ops.log_jacobian_std(moving, mask).sum()
    return similarity + smoothness + small.square().sum() + edges + irregular


def inputs():
    """float32 leaves and a mask."""
    theta = torch.eye(3, 4).expand(2, 3, 4) * 0.9 + 0.01 * torch.randn(2, 3, 4)
    leaves = [volume(SIZE), coordinates(SIZE), coordinates(SIZE), theta]
    return [x.float().requires_grad_() for x in leaves], weights(SIZE, torch.float32)


def with_gradients(function, leaves, mask):
    out = function(*leaves, mask)
    return [out.detach(), *torch.autograd.grad(out, leaves, rise(out) + 1)]


def check_everything(**options):
    leaves, mask = inputs()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager", **options)
    # The second time, the compiled code already exists.
    for _ in range(2):
        want = with_gradients(everything, leaves, mask)
        for got, expected in zip(with_gradients(compiled, leaves, mask), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        leaves, mask = inputs()


@pytest.mark.slow(25)
def test_a_loss_of_all_ops_at_once(backend):
    check_everything()


@pytest.mark.slow(25)
def test_a_loss_of_all_ops_at_once_with_dynamic_shapes(native):
    check_everything(dynamic=True)


@pytest.mark.slow(20)
def test_a_loss_of_all_ops_at_once_as_inductor_compiles_it(native, monkeypatch):
    leaves, mask = inputs()
    want = with_gradients(everything, leaves, mask)
    # The C++ between the ops is not ours: it is compiled without optimisation, which takes most of the time, and in
    # this process.
    monkeypatch.setenv("TORCHINDUCTOR_DEBUG_COMPILE", "1")
    options = {"cpp.simdlen": 1, "compile_threads": 1}
    compiled = torch.compile(everything, fullgraph=True, options=options)
    for got, expected in zip(with_gradients(compiled, leaves, mask), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", {**CASES, **MEASURES})
def test_each_op_alone(native, name):
    case = {**CASES, **MEASURES}[name]
    leaves, mask = [x.requires_grad_(name in CASES) for x in case.make(SIZE)], weights(SIZE)

    def run(m, *x):
        return case.run(m, *x)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    want, got = run(mask, *leaves), compiled(mask, *leaves)
    torch.testing.assert_close(got, want)
    if name in CASES:
        pairs = (torch.autograd.grad(out, leaves, rise(out)) for out in (got, want))
        for g, w in zip(*pairs, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-8)


@pytest.mark.slow(3)
def test_tolerance_does_not_look_at_the_data(backend):
    moving, fixed = coordinates(SIZE), coordinates(SIZE)

    def solve(m, f):
        return ops.implicit_warp(m, f, iterations=30, tolerance=0.05)

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")(moving, fixed)
    for got, want in zip(compiled, solve(moving, fixed), strict=True):
        torch.testing.assert_close(got, want)
