"""Convolutions to few channels, such as the three of a map, as matrix products: much faster than oneDNN for them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A position of the kernel, and the voxels of the result and of the input that it connects.
_Tap = tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]


class FewChannelsConv3d(nn.Conv3d):
    """A convolution with an odd kernel, complete padding and few output channels.

    oneDNN pads three channels to sixteen. On a CPU, one matrix product computes the contribution of every voxel to its
    neighbours, and each voxel adds up what its neighbours contribute to it.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, Cin, D, H, W] -> [B, Cout, D, H, W]
        assert self.bias is not None
        # Autocast converts the arguments of a convolution, and torch.compile knows it.
        usual = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if self.kernel_size == (1, 1, 1) and (usual or not torch.is_grad_enabled()):
            weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
            return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])
        if usual:
            return super().forward(x)
        result: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return result


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients, one exam of the batch after another.

    The gradient of the input has the memory layout of the input, which a batched product would not give it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        size = x.shape[2:]
        rows, result = _by_tap(weight), bias[:, None, None, None].expand(len(x), -1, *size).clone()
        for item, total in zip(x, result, strict=True):
            parts = (rows @ item.flatten(1)).view(*weight.shape[2:], len(weight), *size)
            for tap, to, of in _taps(weight, size):
                total[to] += parts[tap][of]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        size, rows = x.shape[2:], _by_tap(weight)
        by_x = torch.empty_like(x)
        by_rows = torch.zeros_like(rows)
        # The gradient as every tap sees it. What lies beyond the borders stays 0.
        seen = grad.new_zeros(*weight.shape[2:], len(weight), *size)
        for item, slope, target in zip(x, grad, by_x, strict=True):
            for tap, to, of in _taps(weight, size):
                seen[tap][of] = slope[to]
            flat = seen.view(len(rows), -1)
            by_rows.addmm_(flat, item.flatten(1).T)
            if ctx.needs_input_grad[0]:
                torch.mm(flat.T, rows, out=target.flatten(1).T)
        by_weight = by_rows.view(*weight.shape[2:], *weight.shape[:2]).permute(3, 4, 0, 1, 2)
        return by_x if ctx.needs_input_grad[0] else None, by_weight, grad.sum((0, 2, 3, 4))


def _by_tap(weight: Tensor) -> Tensor:
    """The kernel ``[Cout, Cin, k, k, k]`` as ``[k^3 * Cout, Cin]``."""
    return weight.permute(2, 3, 4, 0, 1).reshape(-1, weight.shape[1])


def _taps(weight: Tensor, size: torch.Size) -> Iterator[_Tap]:
    """The positions of a kernel that reach from one voxel of a volume to another."""
    everything = slice(None)
    for tap in product(*(range(k) for k in weight.shape[2:])):
        steps = [t - k // 2 for t, k in zip(tap, weight.shape[2:], strict=True)]
        if any(abs(step) >= n for step, n in zip(steps, size, strict=True)):
            continue
        to = (slice(max(0, -s), n - max(0, s)) for s, n in zip(steps, size, strict=True))
        of = (slice(max(0, s), n - max(0, -s)) for s, n in zip(steps, size, strict=True))
        yield tap, (everything, *to), (everything, *of)
