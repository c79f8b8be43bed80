"""resample against F.grid_sample and SciPy, its gradients, and unusual inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fields import inside, strided
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

import deepatlas_ops as ops

MODES = {"linear": "bilinear", "nearest": "nearest"}
PADDINGS = ["border", "zeros", "reflection"]
SIZES = [((4, 5, 6), (3, 7, 2)), ((1, 5, 6), (3, 1, 9)), ((1, 1, 1), (2, 2, 2)), ((17, 2, 33), (8, 9, 10))]


def oracle(volume, coords, mode, padding):
    return F.grid_sample(
        volume, coords.movedim(1, -1), mode=MODES[mode], padding_mode=padding, align_corners=True
    )


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = torch.linspace(-1, 2, max(out.numel(), 1), dtype=out.dtype)[: out.numel()].reshape(out.shape)
    return (out.detach(), *torch.autograd.grad((out * weight).sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size, out", SIZES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_are_those_of_grid_sample(backend, mode, padding, size, out, dtype):
    volume = torch.randn(2, 3, *size, dtype=dtype)
    coords = inside(2, out, 1.7, dtype)
    got = gradients(lambda v, c: ops.resample(v, c, mode=mode, padding=padding), volume, coords)
    want = gradients(lambda v, c: oracle(v, c, mode, padding), volume, coords)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scipy_mode, padding", [("nearest", "border"), ("mirror", "reflection")])
def test_linear_values_are_scipys(backend, scipy_mode, padding):
    volume = torch.randn(1, 1, 6, 7, 8, dtype=torch.float64)
    coords = inside(1, (5, 4, 3), 1.4)
    half = np.array([7, 6, 5])[:, None, None, None] / 2
    # In the order x, y, z.
    voxels = (coords[0].numpy() + 1) * half
    want = map_coordinates(volume[0, 0].numpy(), voxels[::-1], order=1, mode=scipy_mode)
    got = ops.resample(volume, coords, padding=padding)[0, 0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_corner_voxels_sit_at_plus_and_minus_one(backend):
    volume = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    corners = torch.tensor([[-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]).reshape(1, 3, 1, 1, 3)
    assert ops.resample(volume, corners).flatten().tolist() == [0.0, 3.0, 8.0]


@pytest.mark.parametrize("padding", PADDINGS)
def test_linear_gradients_are_the_differences(backend, padding):
    volume = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    coords = inside(1, (2, 2, 3), 1.6).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, c: ops.resample(v, c, padding=padding), (volume, coords), eps=1e-7, atol=1e-5
    )


def test_one_gradient_may_be_wanted_without_the_other(backend):
    volume, coords = torch.randn(1, 2, 3, 4, 5), inside(1, (2, 2, 2), 0.9, torch.float32)
    both = gradients(ops.resample, volume, coords)
    v, c = volume.clone().requires_grad_(), coords.clone().requires_grad_()
    weight = torch.linspace(-1, 2, 16).reshape(1, 2, 2, 2, 2)
    torch.testing.assert_close(torch.autograd.grad((ops.resample(v, coords) * weight).sum(), v)[0], both[1])
    torch.testing.assert_close(torch.autograd.grad((ops.resample(volume, c) * weight).sum(), c)[0], both[2])


@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 5),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    out=st.tuples(*[st.integers(1, 9)] * 3),
    mode=st.sampled_from(sorted(MODES)),
    padding=st.sampled_from(PADDINGS),
    views=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def _any_shape(name, batch, channels, size, out, mode, padding, views, seed):
    torch.manual_seed(seed)
    volume, coords = torch.randn(batch, channels, *size, dtype=torch.float64), inside(batch, out, 2.5)
    want = gradients(lambda v, c: oracle(v, c, mode, padding), volume, coords)

    def call(v, c):
        return ops.resample(
            strided_like(v) if views else v, strided_like(c) if views else c, mode=mode, padding=padding
        )

    with ops.use_backend(name):
        got = gradients(call, volume, coords)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


def strided_like(tensor):
    """A copy that is not contiguous but differentiable."""
    return torch.stack((tensor, tensor), -1)[..., 1].transpose(1, -1).contiguous().transpose(1, -1)


def test_any_shape_and_strides(backend):
    _any_shape(backend)


@pytest.mark.parametrize("function", ["resample", "warp"])
def test_strides_do_not_matter(backend, function):
    volume, coords = torch.randn(2, 3, 5, 6, 7), inside(2, (4, 3, 8), 0.9, torch.float32)
    call = getattr(ops, function)
    want = call(volume, coords)
    got = call(strided(volume), strided(coords))
    assert got.is_contiguous()
    torch.testing.assert_close(got, want)
    shared = call(volume[:1].expand(2, -1, -1, -1, -1), coords)
    torch.testing.assert_close(shared[0], want[0])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_nan_coordinates_give_nan_and_no_gradient(backend, mode, padding):
    volume = torch.randn(1, 2, 4, 5, 6, requires_grad=True)
    clean = inside(1, (3, 3, 3), 0.9, torch.float32)
    coords = clean.clone()
    coords[0, 1, 1, 2, 0] = float("nan")
    coords[0, :, 2, 2, 2] = float("nan")
    coords.requires_grad_()
    out = ops.resample(volume, coords, mode=mode, padding=padding)
    bad = torch.zeros(3, 3, 3, dtype=torch.bool)
    bad[1, 2, 0] = bad[2, 2, 2] = True
    assert torch.equal(out.isnan(), bad.expand(1, 2, 3, 3, 3))
    torch.testing.assert_close(
        out.detach()[:, :, ~bad], ops.resample(volume, clean, mode=mode, padding=padding).detach()[:, :, ~bad]
    )
    grad_volume, grad_coords = torch.autograd.grad(torch.where(bad, 0.0, out).sum(), (volume, coords))
    assert grad_volume.isfinite().all() and grad_coords.isfinite().all()
    assert (grad_coords[:, :, bad] == 0).all()
    of_all = torch.autograd.grad(ops.resample(volume, coords, mode=mode, padding=padding).sum(), volume)[0]
    torch.testing.assert_close(of_all, grad_volume)


def test_far_and_infinite_coordinates(backend):
    volume = torch.randn(1, 1, 3, 4, 5)
    far = (
        torch.tensor([float("inf"), 1e30, -1e30, float("-inf")]).reshape(1, 1, 1, 1, 4).expand(1, 3, 1, 1, 4)
    )
    first, last = volume[0, 0, 0, 0, 0].item(), volume[0, 0, -1, -1, -1].item()
    assert ops.resample(volume, far).flatten().tolist() == pytest.approx([last, last, first, first])
    assert ops.resample(volume, far, padding="zeros").abs().max() == 0
    assert ops.resample(volume, far, mode="nearest", padding="zeros").abs().max() == 0


@pytest.mark.parametrize("padding", PADDINGS)
def test_every_coordinate_on_an_axis_of_one_means_its_voxel(backend, padding):
    volume = torch.randn(1, 2, 4, 1, 5)
    coords = inside(1, (3, 3, 3), 0.99, torch.float32)
    moved = coords.clone()
    moved[:, 1] += torch.randn(3, 3, 3) * 5
    torch.testing.assert_close(
        ops.resample(volume, moved, padding=padding), ops.resample(volume, coords, padding=padding)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_accumulate_in_float32(backend, dtype, mode):
    volume, coords = (
        torch.randn(2, 3, 9, 10, 11).to(dtype),
        inside(2, (8, 8, 8), 1.2, torch.float32).to(dtype),
    )
    exact = gradients(lambda v, c: ops.resample(v, c, mode=mode), volume.double(), coords.double())
    got = gradients(lambda v, c: ops.resample(v, c, mode=mode), volume, coords)
    # PyTorch does not have grid_sample of half types on every device. Rounding a float32 result is the best answer.
    same = gradients(lambda v, c: oracle(v.float(), c.float(), mode, "border").to(dtype), volume, coords)
    for g, s, e in zip(got, same, exact, strict=True):
        assert g.dtype == dtype
        best = (s.double() - e).abs().max().item()
        assert (g.double() - e).abs().max().item() <= 2 * best + 1e-7


def test_meta_tensors_give_the_shape_alone():
    volume, coords = torch.empty(2, 3, 4, 5, 6, device="meta"), torch.empty(2, 3, 7, 8, 9, device="meta")
    with ops.use_backend("auto"):
        out = ops.resample(volume, coords)
    assert out.is_meta and out.shape == (2, 3, 7, 8, 9)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"volume": torch.zeros(2, 4, 4, 4)},
            r"resample: volume: expected \[B, C, D, H, W\], got \[2, 4, 4, 4\]",
        ),
        ({"volume": torch.zeros(1, 2, 0, 4, 4)}, "resample: volume: .*at least one voxel.*got"),
        (
            {"volume": torch.zeros(1, 2, 4, 4, 4, dtype=torch.int16)},
            "resample: volume: expected float64.*int16",
        ),
        ({"volume": None}, "resample: volume: expected a tensor.*NoneType"),
        ({"coords": torch.zeros(1, 2, 3, 3, 3)}, r"resample: coords: expected \[B, 3, D, H, W\]"),
        ({"coords": torch.zeros(2, 3, 3, 3, 3)}, "resample: coords: expected the batch size of volume, 1"),
        ({"coords": torch.zeros(1, 3, 3, 3, 3).double()}, "resample: coords: expected the dtype of volume"),
        (
            {"coords": torch.zeros(1, 3, 3, 3, 3, device="meta")},
            "resample: coords: expected the device of volume",
        ),
        ({"mode": "cubic"}, "resample: mode: expected one of linear, nearest, got 'cubic'"),
        ({"padding": "wrap"}, "resample: padding: expected one of border, zeros, reflection, got 'wrap'"),
    ],
)
def test_errors_name_op_argument_expectation_and_value(backend, change, message):
    arguments = {"volume": torch.zeros(1, 2, 4, 4, 4), "coords": torch.zeros(1, 3, 3, 3, 3), **change}
    with pytest.raises(ValueError, match=message):
        ops.resample(**arguments)
