"""edge_difference: SciPy's Prewitt filter, closed forms, masks, and the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import weights
from fields import strided
from scipy import ndimage

import deepatlas_ops as ops
from deepatlas_ops.reference import prewitt

SIZE = (5, 6, 7)


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def scipy_edges(x):
    """The edges of one channel [D, H, W]."""
    parts = [ndimage.prewitt(x.numpy(), axis=axis, mode="nearest") / 18 for axis in range(3)]
    return np.sqrt(sum(part**2 for part in parts) + 1e-6) - 1e-3


def test_prewitt_matches_scipy():
    x = images(1, 1, 9, 10, 11)[0]
    torch.testing.assert_close(
        prewitt(x)[0, 0], torch.from_numpy(scipy_edges(x[0, 0])), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("size", [SIZE, (1, 6, 7), (4, 1, 2), (2, 2, 1), (1, 1, 1), (3, 2, 300)])
@pytest.mark.parametrize("masked", [False, True])
def test_value_is_that_of_scipys_prewitt_filter(backend, size, masked):
    a, b = images(2, 3, *size)
    mask = weights(size) if masked else None
    want = []
    for item in range(2):
        edges = [np.stack([scipy_edges(c) for c in x[item]]) for x in (a, b)]
        weight = np.broadcast_to(mask[item].numpy() if masked else 1.0, edges[0].shape)
        difference = np.average((edges[0] - edges[1]) ** 2, weights=weight)
        want.append(difference / max(np.average(edges[1] ** 2, weights=weight), 1e-4))
    torch.testing.assert_close(ops.edge_difference(a, b, mask), torch.tensor(want).double())


def test_closed_forms(backend):
    x = torch.arange(9.0, dtype=torch.float64).expand(1, 1, 7, 8, 9)
    inner = torch.zeros(1, 1, 7, 8, 9).double()
    inner[..., 1:-1, 1:-1, 1:-1] = 1
    slope = np.sqrt(0.04 + 1e-6) - 1e-3, np.sqrt(0.01 + 1e-6) - 1e-3
    want = torch.tensor([(slope[0] - slope[1]) ** 2 / slope[1] ** 2]).double()
    for axis in (2, 3, 4):
        ramp = x.movedim(4, axis).contiguous()
        weight = inner.movedim(4, axis).bool()
        torch.testing.assert_close(ops.edge_difference(0.2 * ramp, 0.1 * ramp, weight), want)
    assert ops.edge_difference(x, x).item() == 0
    # A constant offset has no edges.
    assert ops.edge_difference(x, x + 3).abs().max() < 1e-20
    flat = torch.zeros(1, 1, 4, 4, 4).double()
    assert ops.edge_difference(flat, flat).item() == 0


def test_an_empty_mask_gives_zero_and_no_gradient(backend):
    a, b = (x.requires_grad_() for x in images(2, 1, *SIZE))
    out = ops.edge_difference(a, b, torch.zeros(2, 1, *SIZE).bool())
    assert torch.equal(out, torch.zeros(2).double())
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_voxels_two_steps_outside_the_mask_do_not_count(backend):
    a, b = images(2, 1, *SIZE)
    mask = torch.zeros(2, 1, *SIZE).double()
    mask[..., :3] = 1
    for odd in (7.0, float("nan"), float("inf")):
        c, d = a.clone(), b.clone()
        c[..., 4:], d[..., 4:] = odd, odd
        c, d = c.requires_grad_(), d.requires_grad_()
        out = ops.edge_difference(c, d, mask)
        torch.testing.assert_close(out, ops.edge_difference(a, b, mask))
        for grad in torch.autograd.grad(out.sum(), (c, d)) if odd == 7 else ():
            assert torch.equal(grad[..., 4:], torch.zeros_like(grad[..., 4:]))
    with ops.use_backend("native"):
        if ops.build_info()["backend"] == "native":
            for grad in torch.autograd.grad(ops.edge_difference(c, d, mask).sum(), (c, d)):
                assert grad.isfinite().all() and grad[..., :4].abs().sum() > 0


@pytest.mark.parametrize("size", [(3, 4, 5), (1, 3, 2), (1, 1, 1)])
# Edges of the fixed image above and below the floor.
@pytest.mark.parametrize("contrast", [1.0, 1e-3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(backend, size, contrast, masked):
    a, b = (contrast * x for x in images(2, 2, *size))
    mask = weights(size) if masked else None
    # The root has an offset of 1e-3, so central differences need steps far below that.
    assert torch.autograd.gradcheck(
        lambda x, y: ops.edge_difference(x, y, mask),
        (a.requires_grad_(), b.requires_grad_()),
        eps=1e-7,
        atol=1e-4 if contrast == 1 else 1e-2,
        rtol=1e-3,
    )


def test_only_what_is_needed_is_computed(native, monkeypatch):
    a, b = images(1, 1, *SIZE)
    grad, statistics = torch.ones(1).double(), torch.ops.deepatlas_ops.edge_difference(a, b, None)[1]
    for needs in ((True, False), (False, True)):
        found = torch.ops.deepatlas_ops.edge_difference_backward(grad, a, b, None, statistics, *needs)
        assert [g.numel() > 0 for g in found] == list(needs)


def test_strided_and_empty_inputs(backend):
    a, b = images(2, 2, *SIZE)
    torch.testing.assert_close(ops.edge_difference(strided(a), strided(b)), ops.edge_difference(a, b))
    assert ops.edge_difference(a[:0], b[:0]).shape == (0,)


def test_the_gradient_has_the_same_bits_for_any_number_of_threads(native):
    a, b = images(3, 1, 37, 12, 11)
    a = a.requires_grad_()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = ops.edge_difference(a, b)
            found.append((out, torch.autograd.grad(out.sum(), a)[0]))
    finally:
        torch.set_num_threads(before)
    for out, grad in found[1:]:
        assert torch.equal(out, found[0][0]) and torch.equal(grad, found[0][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 3)), "fixed: expected the shape of moving"),
        ((torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2).double()), "fixed: expected the dtype"),
        ((*[torch.zeros(1, 2, 2, 2, 2)] * 2, torch.zeros(1, 2, 2, 2, 2)), "mask: expected"),
    ],
)
def test_errors(backend, arguments, message):
    with pytest.raises(ValueError, match=f"edge_difference: {message}"):
        ops.edge_difference(*arguments)
