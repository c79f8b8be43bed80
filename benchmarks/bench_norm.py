"""group_norm_leaky_relu against the two ops of PyTorch, with all gradients, on features as large as `headneck` has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import deepatlas_ops as ops

BATCH, CHANNELS, SIZE, GROUPS, SLOPE = 4, 16, 32, 8, 0.1
SIZE_WHEN_TINY = 5
LAYOUTS = {"": torch.contiguous_format, " channels last": torch.channels_last_3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
def test_group_norm_leaky_relu(record, device, backward, layout, dtype):
    size = SIZE if record.measuring else SIZE_WHEN_TINY
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, CHANNELS, size, size, size)
    x, pull = (
        torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
        for _ in range(2)
    )
    affine = torch.randn(2, CHANNELS, generator=generator).to(device)

    def pytorch(x, weight, bias):
        return F.leaky_relu(F.group_norm(x, GROUPS, weight, bias), SLOPE, inplace=True)

    def native(x, weight, bias):
        with ops.use_backend("native" if device.type == "cpu" else "auto"):
            return ops.group_norm_leaky_relu(x, GROUPS, weight, bias, slope=SLOPE)

    def of(function):
        def call():
            if not backward:
                with torch.no_grad():
                    return function(x, *affine)
            leaves = [t.detach().requires_grad_() for t in (x, *affine)]
            return torch.autograd.grad(function(*leaves), leaves, pull)

        return call

    # Read twice and written once; then the gradient and the features twice, and the result.
    elements = (3 + (5 if backward else 0)) * x.numel()
    name = f"group_norm_leaky_relu {CHANNELS} x {size}^3 x {BATCH} {str(dtype)[6:]}{layout}"
    record(
        name + (" + backward" if backward else ""),
        {"native": of(native), "pytorch": of(pytorch)},
        elements * x.element_size(),
        device,
        # PyTorch rounds a half type between the two ops, and sums its gradients with less care.
        tolerance=1e-3 if dtype == torch.float32 else 3e-2,
    )
