"""The supervised network of sections 3.3.3 and 3.3.4: the coordinate network with a head that answers with masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepatlas.config import NetworkConfig
from deepatlas.nn.blocks import PreactivationConv
from deepatlas.nn.network import CoordinateNetwork, channels_to_space


class SegmentationNetwork(nn.Module):
    """Maps an exam to a logit for each structure: ``x [B, 1, S, S, S] -> [B, K, S, S, S]``.

    The last convolution of the coordinate network, which makes coordinates of features, is replaced by a head of two
    convolutions. It reads the features of the finest level, whatever ``finest_level`` the coordinates have. Where the
    network folds blocks of voxels into channels, the head unfolds channels into blocks, so that it answers on the
    grid of the input, 64^3 with all presets.

    Every structure has a channel of its own with a sigmoid, since structures may overlap, and one that was not drawn in
    an exam can then be left out of the loss without a word about the others.
    """

    def __init__(self, config: NetworkConfig, structures: int):
        super().__init__()
        self.config, self.structures = config, structures
        self.backbone = CoordinateNetwork(config)
        del self.backbone.to_coords
        width = config.features
        self.head = nn.Sequential(
            PreactivationConv(width, width, groups=config.groups),
            PreactivationConv(
                width, structures * config.fold**3, groups=config.groups, kernel=1, standardize=False
            ),
        )
        self._last.initialise(std=1e-2)

    @property
    def _last(self) -> PreactivationConv:
        last = self.head[-1]
        assert isinstance(last, PreactivationConv)
        return last

    @torch.no_grad()
    def expect(self, fraction: Tensor) -> None:
        """Let a new head start with the probability by which a voxel belongs to a structure, ``fraction [K]``.

        Otherwise the first steps would teach it nothing but that most voxels are background.
        """
        bias = self._last.conv.bias
        assert bias is not None
        prior = torch.logit(fraction.double(), eps=1e-6).to(bias)
        bias.copy_(prior.repeat_interleave(len(bias) // len(prior)))

    def features(self, x: Tensor) -> Tensor:
        """The features that the head reads, ``[B, F, s, s, s]`` with s = S / fold."""
        return self.backbone.features(x, 0)[-1]

    def masks(self, features: Tensor) -> Tensor:
        """The logits of features, ``[B, K, S, S, S]``, in float32."""
        return channels_to_space(self.head(features), self.config.fold).float()

    def forward(self, x: Tensor) -> Tensor:
        """The logits of exams. Raises ValueError for an input of another shape."""
        return self.masks(self.features(x))

    def start_from(self, network: CoordinateNetwork) -> None:
        """Take the weights of a coordinate network of the same shape, all but those of its last convolution."""
        weights = network.state_dict()
        self.backbone.load_state_dict({k: weights[k] for k in self.backbone.state_dict()})


class StructureFacts(nn.Module):
    """What a checkpoint holds about the structures of a supervised run, as buffers.

    Attributes:
        fraction: ``[K]``, the part of the voxels of an exam that each structure fills on average.
        overlaps: ``[K, K]``, 1 where exams show the structure of the row below the structure of the column, else 0.
    """

    # Buffers that nn.Module sets.
    fraction: Tensor
    overlaps: Tensor

    def __init__(self, structures: int):
        super().__init__()
        self.register_buffer("fraction", torch.full((structures,), math.nan))
        self.register_buffer("overlaps", torch.zeros(structures, structures))
