"""edge_difference against its PyTorch body, with the gradient by the first image, as training takes it."""

from __future__ import annotations

import pytest
import torch

import deepatlas_ops as ops

SIZE, BATCH = 64, 4
SIZE_WHEN_TINY, BATCH_WHEN_TINY = 9, 1


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_edge_difference(record, device, masked, backward):
    size, batch = (SIZE, BATCH) if record.measuring else (SIZE_WHEN_TINY, BATCH_WHEN_TINY)
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(batch, 1, size, size, size, generator=generator).to(device) for _ in range(2))
    mask = (torch.rand(moving.shape, generator=generator) < 0.6).float().to(device) if masked else None

    def on(backend):
        def call():
            with ops.use_backend(backend):
                if not backward:
                    with torch.no_grad():
                        return ops.edge_difference(moving, fixed, mask)
                leaf = moving.detach().requires_grad_()
                return torch.autograd.grad(ops.edge_difference(leaf, fixed, mask).sum(), leaf)

        return call

    read = 2 * moving.numel() + (0 if mask is None else mask.numel())
    elements = read + (read + moving.numel() if backward else 0)
    name = (
        f"edge_difference {size}^3 x {batch}"
        + (" masked" if masked else "")
        + (" + backward" if backward else "")
    )
    record(name, {"native": on("native"), "torch body": on("torch")}, 4 * elements, device)
