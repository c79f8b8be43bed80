"""ncc, global and windowed, against its PyTorch body and MONAI's local normalised cross-correlation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deepatlas_ops as ops

SIZE, SIZE_WHEN_TINY = 64, 8


def maps(record, channels: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A pair of correlated maps. In a tiny run they are equal: every correlation is then 1, and so is its
    square, which is what MONAI averages."""
    size = SIZE if record.measuring else SIZE_WHEN_TINY
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 1, channels, size, size, size, generator=generator)
    b = 0.6 * a + 0.8 * noise if record.measuring else a.clone()
    return [x.to(device, dtype) for x in (a, b)]


def candidates(function, inputs, backward, **peers):
    """Native op, PyTorch body and peers; with ``backward`` each also takes both gradients."""

    def on(backend, run):
        def call():
            with ops.use_backend(backend):
                if not backward:
                    with torch.no_grad():
                        return run(*inputs)
                leaves = [tensor.detach().requires_grad_() for tensor in inputs]
                return torch.autograd.grad(run(*leaves), leaves)

        return call

    runs = {"native": on("native", function), "torch body": on("torch", function)}
    return runs | {name: on("torch", peer) for name, peer in peers.items()}


def record_one(record, device, name, inputs, runs, backward):
    # Both maps read; backward: both again, and their gradients written. Masks are small beside them.
    size, elements = inputs[0].shape[-1], sum(tensor.numel() for tensor in inputs)
    label = f"{name} {size}^3 x {inputs[0].shape[1]}" + (" + backward" if backward else "")
    record(label, runs, inputs[0].element_size() * elements * (3 if backward else 1), device)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("channels", [1, 8])
def test_ncc_global(record, device, channels, masked, backward):
    inputs = maps(record, channels, device)
    mask = inputs[0][:, :1].detach() > -0.5 if masked else None
    runs = candidates(lambda a, b: ops.ncc(a, b, mask).mean(), inputs, backward)
    record_one(record, device, "ncc global" + (" masked" if masked else ""), inputs, runs, backward)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("window", [3, 7, 21])
@pytest.mark.parametrize("channels", [1, 8])
def test_ncc_windowed(record, device, channels, window, backward):
    inputs = maps(record, channels, device)
    peers = {}
    try:
        from monai.losses import LocalNormalizedCrossCorrelationLoss
    except ImportError:
        pass
    else:
        loss = LocalNormalizedCrossCorrelationLoss(kernel_size=window, kernel_type="rectangular")
        peers["monai"] = lambda a, b: -loss(a, b)
    runs = candidates(lambda a, b: ops.ncc(a, b, window=window).mean(), inputs, backward, **peers)
    record_one(record, device, f"ncc window {window}", inputs, runs, backward)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_ncc_other_types(record, device, dtype):
    for window in (None, 7):
        inputs = maps(record, 8, device, dtype)
        runs = candidates(lambda a, b, w=window: ops.ncc(a, b, window=w).mean(), inputs, True)
        kind = f"ncc {'global' if window is None else f'window {window}'} {str(dtype).split('.')[1]}"
        record_one(record, device, kind, inputs, runs, True)
