"""log_jacobian, smoothness_loss and folds against their PyTorch bodies."""

from __future__ import annotations

import peers
import pytest
import torch
import torch.nn.functional as F

import deepatlas_ops as ops

SIZES, SIZES_WHEN_TINY = (64, 128), (8, 9)
OPS = {
    "log_jacobian": lambda field, mask: ops.log_jacobian(field),
    "log_jacobian normalized": lambda field, mask: ops.log_jacobian(field, normalize_columns=True),
    "smoothness_loss": lambda field, mask: ops.smoothness_loss(field),
    "smoothness_loss masked": ops.smoothness_loss,
}


def field_and_mask(size: int, device: torch.device):
    """A map without folds, smooth as between two bodies, and a ball-shaped mask."""
    axis = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1])[None]
    knots = 0.05 * torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    field = grid + F.interpolate(knots, size=(size,) * 3, mode="trilinear", align_corners=True)
    return field.to(device), ((grid**2).sum(1, keepdim=True) < 0.8).float().to(device)


def candidates(function, field, mask, backward):
    def on(backend):
        def call():
            with ops.use_backend(backend):
                if not backward:
                    with torch.no_grad():
                        return function(field, mask)
                leaf = field.detach().requires_grad_()
                output = function(leaf, mask)
                return torch.autograd.grad(output, leaf, torch.ones_like(output))

        return call

    return {"native": on("native"), "torch body": on("torch")}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("which", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("op", OPS)
def test_jacobian(record, device, op, which, backward):
    size = (SIZES if record.measuring else SIZES_WHEN_TINY)[which]
    field, mask = field_and_mask(size, device)
    voxels = size**3
    read = 3 + ("masked" in op)
    written = "smoothness" not in op
    elements = read + written + (read + written + 3 if backward else 0)
    name = f"{op} {size}^3" + (" + backward" if backward else "")
    record(name, candidates(OPS[op], field, mask, backward), 4 * elements * voxels, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_types(record, device, dtype):
    size = SIZES[0] if record.measuring else SIZES_WHEN_TINY[0]
    field, mask = field_and_mask(size, device)
    runs = candidates(OPS["smoothness_loss"], field.to(dtype), mask, True)
    name = f"smoothness_loss {str(dtype).split('.')[1]} {size}^3 + backward"
    record(name, runs, dtype.itemsize * 9 * size**3, device, 1e-3 if dtype.itemsize > 2 else 0.1)


@pytest.mark.parametrize("size", SIZES)
def test_determinant(record, device, size):
    """The determinant alone, which other libraries have too, inside the borders."""
    size = size if record.measuring else SIZES_WHEN_TINY[0]
    field, mask = field_and_mask(size, device)
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, size),) * 3, indexing="ij")[::-1])[None]
    inside = (..., *(slice(1, -1),) * 3)

    def determinant(run):
        return lambda: run().exp_()

    runs = {n: determinant(r) for n, r in candidates(OPS["log_jacobian"], field, mask, False).items()}
    if device.type == "cpu":
        runs |= peers.determinant(field, grid)
    if not record.measuring:
        runs = {n: (lambda r=r: r()[inside]) for n, r in runs.items()}
    record(f"determinant {size}^3", runs, 4 * 4 * size**3, device)


@pytest.mark.parametrize("differences", ["central", "digital"])
def test_folds(record, device, differences):
    size = (SIZES if record.measuring else SIZES_WHEN_TINY)[0]
    field, mask = field_and_mask(size, device)
    runs = candidates(lambda f, m: ops.folds(f, m, differences=differences), field, mask, False)
    record(f"folds {differences} {size}^3", runs, 4 * 4 * size**3, device)
