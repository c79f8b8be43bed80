"""resample, warp, affine_resample and resize against their PyTorch bodies, PyTorch itself and other libraries."""

from __future__ import annotations

import peers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import deepatlas_ops as ops

SIZE, SIZE_WHEN_TINY = 64, 8
CHANNELS = (1, 8, 32)
OTHER_SIZES = (32, 128)
OTHER_TYPES = (torch.float64, torch.float16, torch.bfloat16)


def size_of(record, size=SIZE):
    return size if record.measuring else SIZE_WHEN_TINY


def identity(size: int, device: torch.device) -> Tensor:
    """[1, 3, size, size, size], channels x, y, z."""
    axis = torch.linspace(-1, 1, size, device=device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1])[None]


def displacement(size: int, device: torch.device, kind: str) -> Tensor:
    """Of a tenth of the volume: smooth as between two bodies, or independent from voxel to voxel."""
    generator = torch.Generator().manual_seed(0)
    coarse = 4 if kind == "smooth" else size
    field = 0.1 * torch.randn(1, 3, coarse, coarse, coarse, generator=generator)
    if kind == "smooth":
        field = F.interpolate(field, size=(size,) * 3, mode="trilinear", align_corners=True)
    return field.to(device)


def volume(size: int, channels: int, device: torch.device) -> Tensor:
    return torch.randn(1, channels, size, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def candidates(name, function, peer, inputs, backward, others=None):
    """Native op, PyTorch body and peers; with ``backward`` each also takes the gradient by every input.

    ``others`` are ready to be called and go only forward.
    """

    def on(backend, run):
        def call():
            with ops.use_backend(backend):
                if not backward:
                    with torch.no_grad():
                        return run(*inputs)
                leaves = [tensor.detach().requires_grad_() for tensor in inputs]
                output = run(*leaves)
                return torch.autograd.grad(output, leaves, torch.ones_like(output))

        return call

    runs = {"native": on("native", function), "torch body": on("torch", function), name: on("torch", peer)}
    return runs | ((others or {}) if not backward else {})


def bytes_of(inputs, output_elements, backward):
    """Every input read and the output written once; backward: gradient read, gradients written as well."""
    elements = sum(tensor.numel() for tensor in inputs)
    forward = elements + output_elements
    return inputs[0].element_size() * (forward + (output_elements + 2 * elements if backward else 0))


def label(op, size, channels, extra, backward):
    words = [op, f"{size}^3 x {channels}", extra, "+ backward" if backward else ""]
    return " ".join(word for word in words if word)


def grid_sample(v, c):
    return F.grid_sample(v, c.movedim(1, -1), padding_mode="border", align_corners=True)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", ["smooth", "rough"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_resample(record, device, channels, kind, backward):
    size = size_of(record)
    inputs = [volume(size, channels, device), identity(size, device) + displacement(size, device, kind)]
    others = peers.resample(*inputs) if device.type == "cpu" else {}
    runs = candidates("grid_sample", ops.resample, grid_sample, inputs, backward, others)
    name = label("resample", size, channels, kind, backward)
    record(name, runs, bytes_of(inputs, inputs[0].numel(), backward), device)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("size", OTHER_SIZES)
def test_resample_sizes(record, device, size, backward):
    size = size_of(record, size)
    inputs = [volume(size, 1, device), identity(size, device) + displacement(size, device, "smooth")]
    others = peers.resample(*inputs) if device.type == "cpu" else {}
    runs = candidates("grid_sample", ops.resample, grid_sample, inputs, backward, others)
    name = label("resample", size, 1, "smooth", backward)
    record(name, runs, bytes_of(inputs, inputs[0].numel(), backward), device)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_resample_types(record, device, dtype, backward):
    size = size_of(record)
    inputs = [volume(size, 8, device), identity(size, device) + displacement(size, device, "smooth")]
    # The same coordinates for all, of which a half type holds few digits: grid_sample works in the type it is given.
    inputs = [x.to(dtype) for x in inputs]
    runs = candidates("grid_sample", ops.resample, grid_sample, inputs, backward)
    if dtype.itemsize < 4:
        del runs["grid_sample"]  # it computes in the half type itself: another problem, with errors of voxels
    name = label("resample", size, 8, str(dtype).split(".")[1], backward)
    tolerance = 1e-3 if dtype.itemsize > 2 else 0.5
    record(name, runs, bytes_of(inputs, inputs[0].numel(), backward), device, tolerance)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_warp(record, device, channels, backward):
    size = size_of(record)
    inputs = [volume(size, channels, device), displacement(size, device, "smooth")]
    grid = identity(size, device)

    def peer(v, d):
        return grid_sample(v, grid + d)

    runs = candidates("grid_sample", ops.warp, peer, inputs, backward)
    for name, function in peers.warp(*inputs).items():
        runs |= {name: candidates(name, ops.warp, function, inputs, backward)[name]}
    record(
        label("warp", size, channels, "smooth", backward),
        runs,
        bytes_of(inputs, inputs[0].numel(), backward),
        device,
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_affine_resample(record, device, channels, backward):
    size = size_of(record)
    # No round numbers: at a sample exactly on a voxel the two one-sided derivatives differ.
    rows = [[0.913, 0.217, 0.031, 0.107], [-0.223, 0.921, 0.119, 0.013], [0.017, -0.127, 1.109, 0.053]]
    theta = torch.tensor([rows], device=device)
    inputs = [volume(size, channels, device), theta]

    def op(v, t):
        return ops.affine_resample(v, t, (size,) * 3)

    def peer(v, t):
        return F.grid_sample(v, F.affine_grid(t, v.shape, align_corners=True), align_corners=True)

    runs = candidates("grid_sample", op, peer, inputs, backward)
    record(
        label("affine_resample", size, channels, "", backward),
        runs,
        bytes_of(inputs, inputs[0].numel(), backward),
        device,
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("factor", [2, 0.5], ids=["up", "down"])
@pytest.mark.parametrize("channels", CHANNELS[:2])
def test_resize(record, device, channels, factor, backward):
    size = size_of(record) if factor > 1 else 2 * size_of(record)
    target = int(size * factor)
    inputs = [volume(size, channels, device)]

    def op(v):
        return ops.resize(v, (target,) * 3)

    def peer(v):
        return F.interpolate(v, size=(target,) * 3, mode="trilinear", align_corners=True)

    others = peers.resize(inputs[0], (target,) * 3) if device.type == "cpu" else {}
    runs = candidates("interpolate", op, peer, inputs, backward, others)
    record(
        label("resize", size, channels, f"to {target}^3", backward),
        runs,
        bytes_of(inputs, channels * target**3, backward),
        device,
    )
