"""implicit_warp against its PyTorch body and against 20 grid_sample calls, with peak memory."""

from __future__ import annotations

import memory
import pytest
import torch
import torch.nn.functional as F

import deepatlas_ops as ops

SIZE, BATCH, ITERATIONS = 64, 4, 20
SIZE_WHEN_TINY, BATCH_WHEN_TINY = 10, 1
STRENGTHS = {"weak": 0.03, "smooth": 0.06, "strong": 0.12}


def identity(size, device):
    axis = torch.linspace(-1, 1, size, device=device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1])[None]


def maps(record, device, strength="smooth"):
    """Two smoothly deformed exams; the fixed one sees the middle four fifths of the moving one."""
    size, batch = (SIZE, BATCH) if record.measuring else (SIZE_WHEN_TINY, BATCH_WHEN_TINY)
    generator = torch.Generator().manual_seed(0)

    def bend():
        knots = torch.randn(batch, 3, 4, 4, 4, generator=generator)
        field = F.interpolate(knots, size=(size,) * 3, mode="trilinear", align_corners=True)
        return STRENGTHS[strength] * field.to(device)

    grid = identity(size, device)
    return (grid + bend()).contiguous(), (0.8 * grid + bend()).contiguous()


def composition(c_moving, c_fixed):
    """Eqs 6 and 7 as PyTorch states them: 20 grid_sample calls."""
    columns = [torch.gradient(c_moving, spacing=2 / (c_moving.shape[a] - 1), dim=a)[0] for a in (4, 3, 2)]
    step = torch.linalg.inv(torch.stack([c.mean((2, 3, 4)) for c in columns], -1))
    g = torch.einsum("bij,bj...->bi...", step, c_moving)
    t = torch.einsum("bij,bj...->bi...", step, c_fixed)
    grid = identity(c_fixed.shape[-1], c_fixed.device)
    u = grid.expand_as(c_fixed)
    for _ in range(ITERATIONS):
        held = u.clamp(-1, 1)
        u = held - F.grid_sample(g, held.movedim(1, -1), padding_mode="border", align_corners=True) + t
    return u - grid


def candidates(inputs, backward, **options):
    def op(m, f):
        return ops.implicit_warp(m, f, iterations=ITERATIONS, **options).displacement

    def on(backend, function):
        def call():
            with ops.use_backend(backend):
                if not backward:
                    with torch.no_grad():
                        return function(*inputs)
                leaves = [x.detach().requires_grad_() for x in inputs]
                output = function(*leaves)
                return torch.autograd.grad(output, leaves, torch.ones_like(output))

        return call

    return {
        "native": on("native", op),
        "torch body": on("torch", op),
        "20 grid_sample": on("torch", composition),
    }


def bytes_of(inputs, backward):
    """Both maps read, displacement, residual and valid written; backward: those and the gradients again."""
    voxels = inputs[1].numel() // 3
    forward = 4 * (inputs[0].numel() + 4 * voxels + inputs[1].numel()) + voxels
    return forward + (4 * (2 * inputs[0].numel() + 9 * voxels) + voxels if backward else 0)


VARIANTS = {
    "20 steps": {},
    "1e-3 voxel": {"tolerance": 1e-3},
    "newton, 1e-3 voxel": {"tolerance": 1e-3, "step": "newton"},
}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(record, device, variant, strength):
    inputs = maps(record, device, strength)
    name = f"implicit_warp {strength}, {variant}"
    record(name, candidates(inputs, False, **VARIANTS[variant]), bytes_of(inputs, False), device)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_forward_and_backward(record, device, gradient):
    inputs = maps(record, device)
    runs = candidates(inputs, True, gradient=gradient)
    record(f"implicit_warp {gradient} + backward", runs, bytes_of(inputs, True), device)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_peak_memory(record, device, gradient):
    inputs = maps(record, device)
    runs = candidates(inputs, True, gradient=gradient)
    peaks = {name: memory.peak_megabytes(run, device) for name, run in runs.items()}
    print(f"\npeak memory, {gradient} + backward, MB: " + ", ".join(f"{n} {p:.1f}" for n, p in peaks.items()))
    assert peaks["native"] < peaks["20 grid_sample"] / (
        10 if gradient == "implicit" and record.measuring else 1
    )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_newton_steps(record, device, strength):
    """How many steps the two need for a residual under 1e-3 voxel at 99 % of the covered voxels."""
    inputs = maps(record, device, strength)
    needed = {}
    for step in ("moving", "newton"):
        for iterations in range(1, 61):
            with ops.use_backend("native"):
                warp = ops.implicit_warp(*inputs, iterations=iterations, step=step, gradient="none")
            covered = ((warp.displacement + identity(inputs[1].shape[-1], device)).abs() <= 1).all(
                1, keepdim=True
            )
            needed[step] = iterations
            if (warp.residual[covered] < 1e-3).double().mean() >= 0.99:
                break
        else:
            needed[step] = "more than 60"
    print(f"\nsteps for 1e-3 voxel at 99 %, {strength}: " + ", ".join(f"{k} {n}" for k, n in needed.items()))
    assert str(needed["newton"]).isdigit()
