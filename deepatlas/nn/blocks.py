"""Building blocks of section 2.2: preactivation convolutions with group norm and weight standardisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.nn.few_channels import FewChannelsConv3d

LEAKY_SLOPE = 0.1
# Up to so many output channels, matrix products are faster than the convolutions of oneDNN.
FEW = 4


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Features ``[B, C, D, H, W]`` resized to ``[B, C, *size]``, in the memory layout that they have.

    Where convolutions keep channels last, a sum of both layouts, and above all the gradients behind it, would step
    through memory by whole channels.
    """
    return ops.resize(x, size, channels_last=x.is_contiguous(memory_format=torch.channels_last_3d))


class StandardizedConv3d(nn.Conv3d):
    """3-D convolution with weight standardisation: its kernel is standardised per output channel before use ([17]).

    The standardised kernel is divided by the square root of its fan-in, so that input of unit variance gives output
    of unit variance. Without this division the residual sums grow by a factor of about fifteen per block.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, Cin, D, H, W] -> [B, Cout, D, H, W]
        weight = self.weight.flatten(1)
        variance, mean = torch.var_mean(weight, dim=1, keepdim=True, correction=0)
        weight = (weight - mean) * torch.rsqrt(variance * weight.shape[1] + 1e-8)
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


class PreactivationConv(nn.Module):
    """Group norm, leaky ReLU (slope 0.1), 3x3x3 convolution, in this order.

    ``standardize=False`` disables weight standardisation. This is necessary where the kernel is initialised to zero,
    because a kernel of zeros cannot be standardised, and where the scale of the kernel determines the prediction,
    as before the tanh.
    """

    def __init__(
        self, inputs: int, outputs: int, *, groups: int = 8, kernel: int = 3, standardize: bool = True
    ):
        super().__init__()
        self.norm = nn.GroupNorm(min(groups, inputs), inputs)
        plain = FewChannelsConv3d if kernel == 1 or outputs <= FEW else nn.Conv3d
        convolution = StandardizedConv3d if standardize else plain
        self.conv = convolution(inputs, outputs, kernel, padding=kernel // 2)

    def initialise(self, std: float) -> None:
        """Draw the kernel from a normal distribution, or set it to zero where ``std`` is 0; set the bias to zero."""
        assert self.conv.bias is not None
        if std > 0:
            nn.init.normal_(self.conv.weight, std=std)
        else:
            nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def activate(self, x: Tensor) -> Tensor:
        """The features after the nonlinearity and before the convolution, same shape as ``x``."""
        norm = self.norm
        return ops.group_norm_leaky_relu(
            x, norm.num_groups, norm.weight, norm.bias, slope=LEAKY_SLOPE, eps=norm.eps
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.activate(x))


class ResidualBlock(nn.Module):
    """Two preactivation convolutions a and b with a residual sum of their outputs: y = a(x), result y + b(y).

    Because successive outputs are summed, no projection is needed where the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, *, groups: int = 8):
        super().__init__()
        self.first = PreactivationConv(inputs, outputs, groups=groups)
        self.second = PreactivationConv(outputs, outputs, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        # In place, because a new tensor costs more than the sum. No gradient needs the output of a convolution.
        return self.second(y).add_(y)
