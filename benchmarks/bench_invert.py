"""implicit_warp against its PyTorch body and against 20 grid_sample calls, with peak memory."""

from __future__ import annotations

import peers
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
    grid = identity(c_fixed.shape[-1], c_fixed.device).to(c_fixed.dtype)
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


@pytest.mark.parametrize(
    ("strength", "variant"),
    [
        *(("smooth", variant) for variant in VARIANTS),
        ("strong", "20 steps"),
        ("strong", "newton, 1e-3 voxel"),
    ],
)
def test_forward(record, device, variant, strength):
    inputs = maps(record, device, strength)
    name = f"implicit_warp {strength}, {variant}"
    record(name, candidates(inputs, False, **VARIANTS[variant]), bytes_of(inputs, False), device)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_forward_and_backward(record, device, gradient):
    inputs = maps(record, device)
    runs = candidates(inputs, True, gradient=gradient)
    record(f"implicit_warp {gradient} + backward", runs, bytes_of(inputs, True), device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_types(record, device, dtype):
    inputs = tuple(x[:1].to(dtype) for x in maps(record, device))
    runs = candidates(inputs, True)
    # The composition works in the half type itself, in which the recursion does not settle.
    runs.pop("20 grid_sample" if dtype.itemsize < 4 else "", None)
    name = f"implicit_warp implicit {str(dtype).split('.')[1]} + backward"
    record(
        name, runs, bytes_of(inputs, True) * dtype.itemsize // 4, device, 1e-3 if dtype.itemsize > 2 else 0.5
    )


@pytest.mark.parametrize("size", [32, 64, 128])
def test_inverse_of_a_displacement(record, device, size):
    """The task that other libraries solve too; one field, to a thousandth of a voxel."""
    size = size if record.measuring else SIZE_WHEN_TINY
    grid = identity(size, device)
    # It ends at the border, so that every library sees the same problem there.
    displacement = (maps(record, device)[0][:1] - identity(SIZE if record.measuring else size, device)) / 2
    displacement = ops.resize(displacement, (size,) * 3) * (1 - grid**2).prod(1, keepdim=True)

    def op():
        return ops.implicit_warp(grid + displacement, grid, tolerance=1e-3, gradient="none").displacement

    def on(backend):
        def call():
            with ops.use_backend(backend):
                return op()

        return call

    runs = {"native": on("native"), "torch body": on("torch")}
    if device.type == "cpu":
        runs |= peers.inverses(displacement)
    if record.measuring:
        _print_residuals(runs, displacement, grid)
    record(f"inverse of a displacement {size}^3", runs, 4 * 2 * displacement.numel(), device, tolerance=2e-3)


def _print_residuals(runs, displacement, grid):
    half = (grid.shape[-1] - 1) / 2
    print()
    for name, run in runs.items():
        found = run()
        left = found + ops.warp(displacement, found)
        voxels = half * left.norm(dim=1).flatten()
        print(
            f"  {name}: residual {voxels.quantile(0.99):.1e} voxel (99th percentile), {voxels.max():.1e} (largest)"
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
