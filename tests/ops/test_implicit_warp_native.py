"""The kernels of implicit_warp against the bodies: rounding, shapes, strides, threads, and memory for backward."""

from __future__ import annotations

import pytest
import torch
from fields import identity, smooth, strided
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import why_not_native

import deepatlas_ops as ops

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))


def pair(size, fixed_size, batch=1, amplitude=0.04, dtype=torch.float64):
    moving = identity(size, dtype) + smooth(batch, size, amplitude, dtype)
    return moving, 1.1 * identity(fixed_size, dtype) + smooth(batch, fixed_size, amplitude, dtype)


def run(backend, moving, fixed, weight, **options):
    """Displacement, residual, valid and, unless they are detached, both gradients."""
    moving, fixed = moving.detach().requires_grad_(), fixed.detach().requires_grad_()
    with ops.use_backend(backend):
        warp = ops.implicit_warp(moving, fixed, **options)
        if options.get("gradient") == "none":
            return list(warp)
        return [*warp, *torch.autograd.grad(warp.displacement, (moving, fixed), weight)]


OPTIONS = [
    {},
    {"step": "fixed"},
    {"step": "literal"},
    {"step": "direction_cosine", "tolerance": 0.01},
    {"step": "newton", "iterations": 6},
    {"step": "newton", "tolerance": 0.01},
    {"gradient": "unrolled", "iterations": 4},
    # These are more iterations than the kernels keep of a path.
    {"gradient": "unrolled", "iterations": 40, "tolerance": 1e-4},
    {"gradient": "unrolled", "iterations": 5, "step": "fixed"},
    {"gradient": "unrolled", "iterations": 5, "step": "literal"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())) or "default")
def test_rounding_is_within_twice_that_of_pytorch(options, dtype):
    moving, fixed = (x.to(dtype) for x in pair((9, 8, 10), (7, 9, 8), batch=2))
    weight = smooth(2, (7, 9, 8), 1.0).to(dtype)
    exact = run("torch", moving.double(), fixed.double(), weight.double(), **options)
    want = run("torch", moving, fixed, weight, **options)
    got = run("native", moving, fixed, weight, **options)
    names = ("displacement", "residual", "valid", "moving", "fixed")
    for name, e, w, g in zip(names, exact, want, got, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape, name
        if name == "valid":
            assert (g != e).double().mean() < 0.01
            continue
        allowed = 2 * (w.double() - e).abs().max() + 1e-6 * e.abs().max()
        # With a tolerance, rounding may stop a voxel one step earlier or later.
        allowed += options.get("tolerance", 0) * (10 if name in ("moving", "fixed") else 1 / 3)
        assert (g.double() - e).abs().max() <= allowed, name


sizes = st.tuples(*[st.sampled_from([1, 2, 3, 4, 7])] * 3)


@settings(max_examples=40, deadline=None)
@given(
    sizes,
    sizes,
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(OPTIONS),
    st.sampled_from([None, torch.bool, torch.float64]),
    st.integers(0, 2**31),
)
def test_any_shapes_strides_and_masks(size, fixed_size, batch, views, options, mask, seed):
    torch.manual_seed(seed)
    moving, fixed = pair(size, fixed_size, batch)
    weight = torch.randn(batch, 3, *fixed_size, dtype=torch.float64)
    if mask is not None:
        options = {**options, "mask": (torch.rand(batch, 1, *size) > 0.3).to(mask)}
    want = run("torch", moving, fixed, weight, **options)
    if views:
        moving, fixed, weight = strided(moving), strided(fixed), strided(weight)
    for g, w in zip(run("native", moving, fixed, weight, **options), want, strict=True):
        assert g.is_contiguous()
        # The bodies take slopes 1e-6 inside the border.
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_the_result_does_not_depend_on_the_number_of_threads(gradient):
    moving, fixed = pair((16, 17, 18), (17, 17, 18), dtype=torch.float32)
    weight = torch.randn_like(fixed)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run("native", moving, fixed, weight, gradient=gradient, iterations=6))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_batch_gives_the_results_of_its_items():
    moving, fixed = pair((3, 4, 5), (4, 3, 2), batch=40)
    for gradient in ("implicit", "unrolled"):
        weight = torch.randn_like(fixed)
        together = run("native", moving, fixed, weight, gradient=gradient)
        alone = [
            run("native", moving[b : b + 1], fixed[b : b + 1], weight[b : b + 1], gradient=gradient)
            for b in range(40)
        ]
        for k, batch in enumerate(together):
            torch.testing.assert_close(batch, torch.cat([a[k] for a in alone]), rtol=1e-12, atol=1e-12)


def kept(backend, **options):
    """The number of bytes that are kept for the backward pass."""
    moving, fixed = (x.requires_grad_() for x in pair((5, 6, 7), (4, 5, 6)))
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with ops.use_backend(backend), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        ops.implicit_warp(moving, fixed, **options)
    return total


def test_what_is_kept_for_backward_does_not_grow_with_the_iterations():
    for backend, gradient in (("native", "implicit"), ("torch", "implicit"), ("native", "unrolled")):
        few, many = (kept(backend, gradient=gradient, iterations=n) for n in (2, 50))
        assert 0 < few == many, (backend, gradient)
    few, many = (kept("torch", gradient="unrolled", iterations=n) for n in (2, 50))
    # Where autograd keeps every step, the number grows.
    assert many > 10 * few


def test_infinity_and_nan_affect_only_their_own_voxels():
    moving, fixed = pair((5, 6, 7), (5, 6, 7))
    broken = fixed.clone()
    broken[0, 0, 1, 2, 3], broken[0, 2, 3, 3, 3], broken[0, 1, 4, 4, 4] = float("nan"), float("inf"), -1e30
    others = torch.ones(5, 6, 7, dtype=torch.bool)
    others[1, 2, 3] = others[3, 3, 3] = others[4, 4, 4] = False
    weight = torch.randn_like(fixed) * others
    for options in ({}, {"gradient": "unrolled"}, {"step": "newton"}, {"tolerance": 0.01}):
        want = run("native", moving, fixed, weight, **options)
        got = run("native", moving, broken, weight, **options)
        assert not got[2][..., ~others].any()
        for k in (0, 1, 2, 4):
            torch.testing.assert_close(got[k][..., others], want[k][..., others])
        assert got[3].isfinite().all()
        torch.testing.assert_close(got[3], want[3])
    everything = torch.full_like(moving, float("nan"))
    assert not run("native", everything, fixed, weight)[2].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"c_moving": torch.zeros(1, 2, 3, 3, 3)},
            r"c_moving must be \[B, 3, D, H, W\], got \[1, 2, 3, 3, 3\]",
        ),
        ({"c_fixed": torch.zeros(2, 3, 3, 3, 3)}, "c_fixed must have the batch size 1 of c_moving"),
        ({"c_fixed": torch.zeros(1, 3, 3, 3, 3).double()}, "c_fixed must be .*[Ff]loat.*got .*[Dd]ouble"),
        ({"matrix": torch.zeros(1, 3, 4)}, r"matrix must be \[B, 3, 3\], got \[1, 3, 4\]"),
        ({"ruler": torch.zeros(1, 4, 3)}, r"ruler must be \[B, 3, 3\], got \[1, 4, 3\]"),
        ({"iterations": 0}, "iterations must be 1 to 2\\^31 - 1, got 0"),
    ],
)
def test_the_registered_op_checks_its_arguments(change, message):
    arguments = {
        "c_moving": torch.zeros(1, 3, 3, 3, 3),
        "c_fixed": torch.zeros(1, 3, 3, 3, 3),
        "matrix": torch.eye(3)[None],
        "ruler": None,
        "iterations": 1,
        "tolerance": 0.0,
        "newton": False,
        **change,
    }
    with pytest.raises(RuntimeError, match=f"deepatlas_ops.implicit_warp: {message}"):
        torch.ops.deepatlas_ops.implicit_warp(*arguments.values())


def test_with_a_tolerance_nan_stays_in_its_voxel():
    moving, fixed = pair((12, 13, 14), (19, 12, 13))
    spoilt = fixed.clone()
    spoilt[..., 3, 5, 6] = torch.nan
    spoilt[..., 4, 5, 7] = 1e30
    with ops.use_backend("native"):
        clean, found = (
            ops.implicit_warp(moving, x, tolerance=1e-4, gradient="none") for x in (fixed, spoilt)
        )
    touched = torch.zeros(fixed.shape[2:]).bool()
    touched[3, 5, 6] = touched[4, 5, 7] = True
    assert not found.valid[0, 0][touched].any()
    apart = (found.displacement - clean.displacement)[0, :, ~touched]
    assert apart.abs().max() < 1e-4
    assert torch.equal(found.valid[0, 0][~touched], clean.valid[0, 0][~touched])
