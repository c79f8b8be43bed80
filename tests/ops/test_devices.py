"""Every op on every available device, forward and backward, against its PyTorch body in float64 on the CPU.

The error of the native kernel must be at most twice that of the PyTorch body of the same dtype. On a GPU this test
shows that the CUDA kernels compute the same as the CPU kernels.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES, rise, weights

import deepatlas_ops as ops

SIZE = (9, 12, 17)


def results(function, inputs, mask, backend):
    """Output and gradients, converted to float64 on the CPU."""
    with ops.use_backend(backend):
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = function(mask, *leaves)
        found = (output, *torch.autograd.grad(output, leaves, rise(output)))
    return [t.detach().cpu().double() for t in found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_native_errs_at_most_twice_as_much_as_pytorch(native, device, name, dtype):
    make, function, _ = CASES[name]
    given, mask = [x.to(dtype) for x in make(SIZE)], weights(SIZE, dtype)
    exact = results(function, [x.double() for x in given], mask.double(), "torch")
    there, mask = [x.to(device) for x in given], mask.to(device)
    native, body = (results(function, there, mask, backend) for backend in ("native", "torch"))
    for part, (want, got, usual) in enumerate(zip(exact, native, body, strict=True)):
        # The result is rounded once. In float64 the body is the reference itself, so more rounding errors are allowed.
        roundings = 100 if dtype == torch.float64 else 1
        least = roundings * torch.finfo(dtype).eps * max(want.abs().max().item(), 1.0)
        allowed = 2 * (usual - want).norm().item() + least * want.numel() ** 0.5
        error = (got - want).norm().item()
        assert error <= allowed, f"{name}, part {part}: {error:.3g} against {allowed:.3g} allowed"
