"""Every op on every device there is, forward and backward, against its PyTorch body in float64 on the CPU.

The one rule of all: the native kernel errs at most twice as much as the PyTorch body of the same dtype does.
On a GPU this is what shows that the CUDA kernels compute what the CPU kernels do.
"""

from __future__ import annotations

import pytest
import torch
from conftest import why_not_native
from fields import identity, inside, smooth

import deepatlas_ops as ops

SIZE = (9, 12, 17)
MATRIX = torch.tensor([[0.9, 0.2, 0.03, 0.1], [-0.2, 0.8, 0.1, 0.02], [0.01, -0.1, 1.1, 0.05]]).double()


def volume(channels=3):
    return torch.randn(2, channels, *SIZE, dtype=torch.float64)


def coordinates():
    return 0.7 * identity(SIZE) + smooth(2, SIZE, 0.05)


def weights():
    return (torch.rand(2, 1, *SIZE) > 0.3).double()


# name -> (inputs that carry gradients, a function of them and a mask)
CASES = {
    "resample": (lambda: [volume(), inside(2, SIZE, 1.2)], lambda m, v, c: ops.resample(v, c)),
    "resample zeros": (
        lambda: [volume(), inside(2, SIZE, 1.2)],
        lambda m, v, c: ops.resample(v, c, padding="zeros"),
    ),
    "resample reflection": (
        lambda: [volume(), inside(2, SIZE, 1.2)],
        lambda m, v, c: ops.resample(v, c, padding="reflection"),
    ),
    "warp": (lambda: [volume(), smooth(2, SIZE, 0.1)], lambda m, v, d: ops.warp(v, d)),
    "affine_resample": (
        lambda: [volume(), MATRIX.expand(2, 3, 4).contiguous()],
        lambda m, v, t: ops.affine_resample(v, t, (8, 9, 10)),
    ),
    "resize up": (lambda: [volume()], lambda m, v: ops.resize(v, (14, 20, 31))),
    "resize down": (lambda: [volume()], lambda m, v: ops.resize(v, (5, 6, 8))),
    "implicit_warp": (
        lambda: [coordinates(), coordinates()],
        lambda m, a, b: ops.implicit_warp(a, b, mask=m).displacement,
    ),
    "implicit_warp unrolled": (
        lambda: [coordinates(), coordinates()],
        lambda m, a, b: ops.implicit_warp(a, b, iterations=5, gradient="unrolled").displacement,
    ),
    "log_jacobian": (lambda: [coordinates()], lambda m, c: ops.log_jacobian(c)),
    "log_jacobian columns": (
        lambda: [coordinates()],
        lambda m, c: ops.log_jacobian(c, normalize_columns=True),
    ),
    "smoothness_loss log": (lambda: [coordinates()], lambda m, c: ops.smoothness_loss(c, m)),
    "smoothness_loss det": (
        lambda: [coordinates()],
        lambda m, c: ops.smoothness_loss(c, m, orthonormality="det"),
    ),
    "ncc": (lambda: [volume(), volume()], lambda m, a, b: ops.ncc(a, b, m)),
    "ncc windows": (lambda: [volume(), volume()], lambda m, a, b: ops.ncc(a, b, m, window=5)),
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if why_not_native():
        pytest.skip(why_not_native())
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if not ops.build_info()["cuda"]:
            pytest.skip(f"no CUDA kernels: {ops.build_info()['cuda_reason']}")
    return torch.device(request.param)


def results(function, inputs, mask, backend):
    """Output and gradients in float64 on the CPU."""
    with ops.use_backend(backend):
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = function(mask, *leaves)
        rise = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).reshape(output.shape)
        found = (output, *torch.autograd.grad(output, leaves, rise.to(output)))
    return [t.detach().cpu().double() for t in found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_native_errs_at_most_twice_as_much_as_pytorch(device, name, dtype):
    make, function = CASES[name]
    given, mask = [x.to(dtype) for x in make()], weights().to(dtype)
    exact = results(function, [x.double() for x in given], mask.double(), "torch")
    there, mask = [x.to(device) for x in given], mask.to(device)
    native, body = (results(function, there, mask, backend) for backend in ("native", "torch"))
    for part, (want, got, usual) in enumerate(zip(exact, native, body, strict=True)):
        # One rounding of the result; in float64 the body is itself the reference, so more of them.
        roundings = 100 if dtype == torch.float64 else 1
        least = roundings * torch.finfo(dtype).eps * max(want.abs().max().item(), 1.0)
        allowed = 2 * (usual - want).norm().item() + least * want.numel() ** 0.5
        error = (got - want).norm().item()
        assert error <= allowed, f"{name}, part {part}: {error:.3g} against {allowed:.3g} allowed"
