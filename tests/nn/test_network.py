"""Shapes of the networks, their sizes in the preset of the paper, and the initialisation of new heads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepatlas.config import NetworkConfig
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork, parameter_count
from deepatlas.nn.autoencoder import HISTOGRAM_HU, HISTOGRAM_VALUE, histogram_map
from deepatlas.nn.blocks import StandardizedConv3d
from deepatlas.nn.few_channels import FewChannelsConv3d
from deepatlas.nn.network import space_to_channels
from deepatlas.presets import preset

SMALL = NetworkConfig(size=16, channels=(8, 8, 16), features=16, head_kernel=1)


def test_paper_preset_has_the_published_number_of_parameters():
    count = parameter_count(CoordinateNetwork(preset("paper").network))
    assert abs(count / 4_277_617 - 1) < 0.01


def test_paper_atlas_is_the_published_tensor():
    assert parameter_count(Atlas(preset("paper").network.atlas_size)) == 2_097_152


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_predicts_coordinates_of_its_resolution(level):
    coords = CoordinateNetwork(SMALL)(torch.rand(2, 1, 16, 16, 16), level)
    assert coords.shape == (2, 3, *(16 >> level,) * 3)
    assert coords.abs().max() <= 1


def test_coordinates_are_float32_under_autocast():
    torch.manual_seed(0)
    network = CoordinateNetwork(SMALL)
    # Larger weights than initially, so that the coordinates differ from zero.
    network.to_coords.conv.weight.data.normal_(std=0.2)
    x = torch.rand(2, 1, 16, 16, 16)
    expected = network(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        half, features = network(x, 1), network.features(x, 1)[-1]
    assert half.dtype == torch.float32 and features.dtype == torch.bfloat16
    assert expected.std() > 0.05 and (half - expected).abs().max() < 0.05
    # The coordinates have not been rounded to bfloat16 at the end.
    assert not torch.equal(half, half.bfloat16().float())


def test_a_new_head_starts_as_the_upsampled_level_below():
    torch.manual_seed(0)
    network = CoordinateNetwork(SMALL)
    x = torch.rand(2, 1, 16, 16, 16)
    _, below, above = network.features(x, 0)
    expected = F.interpolate(below, size=(16,) * 3, mode="trilinear", align_corners=True)
    torch.testing.assert_close(above, expected, atol=1e-5, rtol=1e-5)


def test_features_and_gradients_do_not_depend_on_the_layout_of_the_weights():
    x = torch.rand(2, 1, 16, 16, 16)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        torch.manual_seed(0)
        network = CoordinateNetwork(SMALL)
        torch.nn.init.normal_(network.heads[0].output.conv.weight, std=0.1)
        network.to(memory_format=layout)
        features = network.features(x, 0)
        assert all(f.is_contiguous(memory_format=layout) for f in features)
        features[-1].square().mean().backward()
        found.append([*features, *(p.grad for p in network.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_every_parameter_of_a_level_learns():
    torch.manual_seed(0)
    network = CoordinateNetwork(SMALL)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)
    # The convolution of a head that starts at zero passes gradients on only after its first step.
    for _ in range(2):
        optimiser.zero_grad()
        target = torch.linspace(-0.5, 0.5, 16)
        (network(torch.rand(2, 1, 16, 16, 16), 0) - target).square().mean().backward()
        optimiser.step()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_an_input_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \[B, 1, 16, 16, 16\], got \[1, 1, 8, 8, 8\]"):
        CoordinateNetwork(SMALL)(torch.rand(1, 1, 8, 8, 8))


def test_standardised_kernel_ignores_scale_and_offset_of_its_weight():
    conv = StandardizedConv3d(4, 6, 3, bias=False)
    x = torch.randn(1, 4, 5, 5, 5)
    y = conv(x)
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)
    torch.testing.assert_close(conv(x), y, atol=1e-4, rtol=1e-4)


def test_histogram_map_matches_numpy_interp():
    hu = torch.linspace(-256, 256, 1001, dtype=torch.float64)
    expected = np.interp(hu.numpy(), HISTOGRAM_HU, HISTOGRAM_VALUE)
    mapped = histogram_map(((hu + 256) / 512).reshape(1, 1, 7, 11, 13))
    torch.testing.assert_close(mapped.flatten(), torch.from_numpy(expected))


def test_autoencoder_features_and_reconstructions_have_two_resolutions():
    model = Autoencoder((8, 16))
    x = torch.rand(2, 1, 8, 8, 8)
    assert [tuple(f.shape) for f in model.features(x)] == [(2, 8, 8, 8, 8), (2, 16, 4, 4, 4)]
    assert [tuple(f.shape) for f in model(x)] == [(2, 1, 8, 8, 8), (2, 1, 4, 4, 4)]


def test_atlas_resampled_by_the_identity_is_the_seed_exam():
    atlas = Atlas(31)
    volume = torch.rand(1, 1, 7, 7, 7)
    volume = F.interpolate(volume, size=(61,) * 3, mode="trilinear", align_corners=True)
    atlas.seed(volume, extent=1.0)
    axis = torch.linspace(-1, 1, 31)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    seen = atlas(torch.stack([x, y, z])[None])
    torch.testing.assert_close(seen, volume[:, :, ::2, ::2, ::2], atol=1e-5, rtol=1e-5)


def test_atlas_resampled_by_a_batch_agrees_with_grid_sample():
    atlas = Atlas(9)
    torch.nn.init.uniform_(atlas.values)
    coords = torch.rand(3, 3, 4, 5, 6) * 2 - 1
    expected = F.grid_sample(atlas.values.expand(3, -1, -1, -1, -1), coords.permute(0, 2, 3, 4, 1),
                             align_corners=True, padding_mode="border")  # fmt: skip
    torch.testing.assert_close(atlas(coords), expected, atol=1e-6, rtol=1e-5)


def test_folding_moves_every_voxel_into_one_channel():
    network = CoordinateNetwork(NetworkConfig(size=16, fold=2, channels=(8, 16), features=8, head_kernel=1))
    assert network(torch.rand(1, 1, 16, 16, 16), 0).shape == (1, 3, 8, 8, 8)
    x = torch.arange(16.0**3).view(1, 1, 16, 16, 16)
    folded = space_to_channels(x, 2)
    torch.testing.assert_close(folded.mean(1, keepdim=True), F.avg_pool3d(x, 2))
    assert folded.unique().numel() == 16**3


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 2, 5), (6, 5, 4)])
def test_a_convolution_to_few_channels_is_a_convolution(kernel, size):
    torch.manual_seed(0)
    mine = FewChannelsConv3d(6, 3, kernel, padding=kernel // 2).double()
    usual = torch.nn.Conv3d(6, 3, kernel, padding=kernel // 2).double()
    usual.load_state_dict(mine.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = []
        for convolution in (mine, usual):
            torch.manual_seed(1)
            x = torch.randn(2, 6, *size).double().contiguous(memory_format=layout).requires_grad_()
            y = convolution(x)
            found.append([y, *torch.autograd.grad(y, [x, *convolution.parameters()], torch.randn_like(y))])
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_convolution_to_few_channels_errs_no_more_than_twice_as_much():
    torch.manual_seed(0)
    mine = FewChannelsConv3d(32, 3, 3, padding=1)
    usual = torch.nn.Conv3d(32, 3, 3, padding=1)
    usual.load_state_dict(mine.state_dict())
    x, grad = torch.randn(2, 32, 12, 12, 12), torch.randn(2, 3, 12, 12, 12)

    def run(convolution, dtype):
        convolution, leaf = convolution.to(dtype), x.to(dtype).requires_grad_()
        y = convolution(leaf)
        return [
            t.double()
            for t in (y, *torch.autograd.grad(y, [leaf, *convolution.parameters()], grad.to(dtype)))
        ]

    for a, b, exact in zip(
        *(run(c, torch.float32) for c in (mine, usual)), run(usual, torch.float64), strict=True
    ):
        assert (a - exact).norm() <= 2 * (b - exact).norm()
