"""The network of masks: its grid, its weights of a coordinate network, and its start."""

import pytest
import torch

from deepatlas.config import NetworkConfig
from deepatlas.nn import CoordinateNetwork, SegmentationNetwork
from deepatlas.nn.network import channels_to_space, space_to_channels


def settings(**changes):
    return NetworkConfig(**({"size": 16, "channels": (8, 8, 16), "features": 8, "finest_level": 1} | changes))


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_unfolding_is_the_inverse_of_folding(fold):
    x = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(channels_to_space(space_to_channels(x, fold), fold), x)
    # Every channel stays by itself.
    two = torch.cat([space_to_channels(x, fold), space_to_channels(-x, fold)], 1)
    assert torch.equal(channels_to_space(two, fold), torch.cat([x, -x], 1))


@pytest.mark.parametrize("fold", [1, 2])
def test_it_answers_on_the_grid_of_the_input_and_all_layers_learn(fold):
    network = SegmentationNetwork(settings(fold=fold), 3)
    logits = network(torch.rand(2, 1, 16, 16, 16))
    assert logits.shape == (2, 3, 16, 16, 16) and logits.dtype == torch.float32
    assert (
        CoordinateNetwork(settings(fold=fold)).forward(torch.rand(1, 1, 16, 16, 16), level=1).shape[-1]
        == 8 // fold
    )
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_it_takes_the_weights_of_a_coordinate_network_but_its_last_convolution():
    trained = CoordinateNetwork(settings())
    network = SegmentationNetwork(settings(), 2)
    network.start_from(trained)
    x = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(network.features(x), trained.features(x, 0)[-1])
    # The finest level has not been trained, so its features are those of the last one that was.
    coarse = trained.features(x, 1)[-1]
    same = torch.nn.functional.interpolate(coarse, size=(16,) * 3, mode="trilinear", align_corners=True)
    torch.testing.assert_close(network.features(x), same)
    assert not any("to_coords" in name for name in network.state_dict())
    # Two convolutions in the place of one.
    assert sum(m.weight.ndim == 5 for m in network.head.modules() if hasattr(m, "weight")) == 2


def test_it_expects_structures_of_the_given_sizes():
    network = SegmentationNetwork(settings(fold=2), 2)
    network.expect(torch.tensor([0.2, 1e-3]))
    found = torch.sigmoid(network(torch.rand(1, 1, 16, 16, 16))).mean((0, 2, 3, 4))
    assert found[0].item() == pytest.approx(0.2, rel=0.1) and found[1].item() == pytest.approx(1e-3, rel=0.1)


def test_half_precision_gives_logits_of_float32():
    network = SegmentationNetwork(settings(), 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(1, 1, 16, 16, 16)).dtype == torch.float32
