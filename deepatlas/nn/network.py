"""The coordinate network of sections 2.2 and 5.2.1: an encoder-decoder with one dense head per resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepatlas.config import NetworkConfig
from deepatlas.nn.blocks import PreactivationConv, ResidualBlock, StandardizedConv3d, resized


class CoordinateNetwork(nn.Module):
    """Maps an exam to anatomical coordinates: ``x [B, 1, S, S, S] -> c [B, 3, s, s, s]`` in [-1, 1].

    Level ``l`` has ``s = S / fold / 2**l`` voxels per axis; level ``len(channels) - 1`` is the coarsest. Every
    resampling is corner-aligned (section 5.2.2), so that the corners of the features of all levels coincide. This
    allows residual heads: the head of level ``l`` adds to the upsampled feature map of level ``l + 1``, and one
    convolution, shared by all levels, converts the sum into coordinates.

    ``fold > 1``, which is not in the paper, converts blocks of ``fold**3`` input voxels into channels of the stem.
    This discards no information and omits the most expensive level: with ``fold=2`` a training step takes half the
    time on a CPU, and the coordinates have half the resolution of the input.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        channels, groups = config.channels, config.groups
        self.config = config
        self.levels = len(channels)
        self.stem = StandardizedConv3d(config.fold**3, channels[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            ResidualBlock(before, after, groups=groups)
            for before, after in zip((channels[0], *channels[:-1]), channels, strict=True)
        )
        self.bottom = ResidualBlock(channels[-1], channels[-1], groups=groups)
        # decoder[l] reduces level l + 1 to the channels of level l, before the upsampling.
        self.decoder = nn.ModuleList(
            ResidualBlock(deep, shallow, groups=groups)
            for shallow, deep in zip(channels[:-1], channels[1:], strict=True)
        )
        heads = [_Head(c, config.features, groups) for c in channels]
        self.heads = nn.ModuleList(heads)
        self.to_coords = PreactivationConv(
            config.features, 3, groups=groups, kernel=config.head_kernel, standardize=False
        )
        self.to_coords.initialise(std=1e-2)
        # The output of the coarsest head is initialised with random numbers. The outputs of the finer heads start at
        # zero, so that each of them initially repeats the prediction of the next coarser level (5.2.3).
        coarsest = heads[-1].output
        coarsest.initialise(std=coarsest.conv.weight[0].numel() ** -0.5)

    def level_size(self, level: int) -> int:
        """Number of voxels per axis of the coordinate map of ``level``."""
        return max(1, (self.config.size // self.config.fold) >> level)

    def features(self, x: Tensor, level: int) -> list[Tensor]:
        """Feature maps f_l of the heads, from the coarsest level down to ``level``, each [B, K, s, s, s]."""
        self._check(x, level)
        skips = []
        folded = space_to_channels(x, self.config.fold)
        if self.stem.weight.is_contiguous(memory_format=torch.channels_last_3d):
            # Otherwise the gradient of the kernel takes five times as long.
            folded = folded.contiguous(memory_format=torch.channels_last_3d)
        y = self.stem(folded)
        for depth, block in enumerate(self.encoder):
            if depth:
                y = resized(y, (self.level_size(depth),) * 3)
            y = block(y)
            skips.append(y)
        y = self.bottom(y)
        maps = [self.heads[-1](y)]
        for depth in range(self.levels - 2, level - 1, -1):
            size = (self.level_size(depth),) * 3
            y = resized(self.decoder[depth](y), size).add_(skips[depth])
            maps.append(self.heads[depth](y).add_(resized(maps[-1], size)))
        return maps

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Coordinates at ``level``: [B, 3, s, s, s] with s = S / fold / 2**level, channels x, y, z.

        Raises ValueError for an input of another shape, or a level that does not exist.
        """
        return self._coords(self.features(x, level)[-1])

    def pyramid(self, x: Tensor, level: int = 0) -> list[Tensor]:
        """Coordinates of every level, from the coarsest down to ``level``."""
        return [self._coords(f) for f in self.features(x, level)]

    def _coords(self, features: Tensor) -> Tensor:
        # Always in float32, because the steps between bfloat16 numbers are a tenth of a voxel.
        with torch.autocast(features.device.type, enabled=False):
            return torch.tanh(self.to_coords(features.float()))

    def head_parameters(self, level: int) -> list[nn.Parameter]:
        """The parameters that belong only to the head of ``level``, for its warm start (section 5.2.3)."""
        return list(self.heads[level].parameters())

    def _check(self, x: Tensor, level: int) -> None:
        expected = (1, *(self.config.size,) * 3)
        if x.ndim != 5 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"CoordinateNetwork: x must have shape [B, {', '.join(map(str, expected))}], got {list(x.shape)}"
            )
        if not 0 <= level < self.levels:
            raise ValueError(f"CoordinateNetwork: level must be in 0..{self.levels - 1}, got {level}")


class _Head(nn.Module):
    """A residual block and a convolution to K channels that is initialised to zero: f_l of section 2.2.1."""

    def __init__(self, channels: int, features: int, groups: int):
        super().__init__()
        self.block = ResidualBlock(channels, channels, groups=groups)
        self.output = PreactivationConv(channels, features, groups=groups, standardize=False)
        self.output.initialise(std=0)

    def forward(self, y: Tensor) -> Tensor:
        return self.output(self.block(y))


def space_to_channels(x: Tensor, fold: int) -> Tensor:
    """``[B, 1, S, S, S] -> [B, fold**3, S / fold, S / fold, S / fold]``: each block of voxels becomes channels."""
    if fold == 1:
        return x
    batch, _, size, _, _ = x.shape
    n = size // fold
    blocks = x.reshape(batch, n, fold, n, fold, n, fold).permute(0, 2, 4, 6, 1, 3, 5)
    return blocks.reshape(batch, fold**3, n, n, n)


def channels_to_space(x: Tensor, fold: int) -> Tensor:
    """``[B, C * fold**3, n, n, n] -> [B, C, N, N, N]`` with N = n * fold: the inverse of :func:`space_to_channels`."""
    if fold == 1:
        return x
    batch, channels, n, _, _ = x.shape
    blocks = x.reshape(batch, channels // fold**3, fold, fold, fold, n, n, n)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // fold**3, *(n * fold,) * 3)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars. The full network of the paper has 4,277,617."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
