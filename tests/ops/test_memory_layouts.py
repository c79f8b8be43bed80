"""Results and gradients of every op do not depend on the memory layout of the tensors."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, MEASURES, rise, weights
from fields import strided

SIZE = (4, 5, 6)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d) if x.ndim == 5 else x.mT.contiguous().mT


def sliced(x):
    """Every other element of a larger tensor, from an odd offset."""
    wide = torch.randn([2 * n + 3 for n in x.shape], dtype=x.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view.copy_(x)
    return view


def expanded(x):
    """One batch item for the whole batch, and one value along y, with strides of 0."""
    thin = x[:1] if x.ndim < 5 else x[:1, :, :, :1]
    return thin.expand(x.shape)


LAYOUTS = {"channels last": channels_last, "sliced": sliced, "expanded": expanded, "permuted": strided}


def run(case, mask, leaves, grad_layout):
    out = case.run(mask, *leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_layout(rise(out)))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_contiguous_copy(backend, name, layout):
    case, place = CASES[name], LAYOUTS[layout]
    given = [place(x) for x in case.make(SIZE)]
    mask = place(weights(SIZE))
    if layout == "expanded":
        mask = torch.ones_like(mask)
    assert not given[0].is_contiguous()
    copies = [x.clone(memory_format=torch.contiguous_format).requires_grad_() for x in given]
    want = run(case, mask.contiguous(), copies, torch.clone)
    leaves = [x.detach().requires_grad_() for x in given]
    assert [x.stride() for x in leaves] == [x.stride() for x in given]
    got = run(case, mask, leaves, lambda g: g)
    for g, w in zip(got, want, strict=True):
        assert g.stride() == w.stride() or layout != "sliced"
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
    # The layout of the incoming gradient must not matter either.
    for comes in (strided, lambda g: channels_last(g) if g.ndim == 5 else g):
        for g, w in zip(run(case, mask, leaves, comes), want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_with_strides_of_zero(backend, name):
    case, mask = CASES[name], weights(SIZE)
    leaves = [x.requires_grad_() for x in case.make(SIZE)]
    # The gradient is a single 1, expanded.
    got = torch.autograd.grad(case.run(mask, *leaves).sum(), leaves)
    out = case.run(mask, *leaves)
    for g, w in zip(got, torch.autograd.grad(out, leaves, torch.ones_like(out)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MEASURES)
def test_measures(backend, name, layout):
    case, place = MEASURES[name], LAYOUTS[layout]
    (field,), mask = (place(x) for x in case.make(SIZE)), place(weights(SIZE))
    torch.testing.assert_close(case.run(mask, field), case.run(mask.contiguous(), field.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_every_type_in_another_layout(backend, name, dtype):
    case, mask = CASES[name], weights(SIZE, dtype)
    given = [x.to(dtype) for x in case.make(SIZE)]
    want = run(case, mask, [x.detach().requires_grad_() for x in given], torch.clone)
    got = run(case, strided(mask), [strided(x).requires_grad_() for x in given], strided)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        # The mean Jacobians of the inversion may be summed in another order.
        torch.testing.assert_close(g, w, rtol=4 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
