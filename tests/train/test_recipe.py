"""The phases of preset ``paper`` follow the publication, and every setting of an ablation changes the loss."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from smooth_noise import smooth

from deepatlas.errors import DeepAtlasError
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.nn import Atlas, Autoencoder
from deepatlas.nn.autoencoder import HISTOGRAM_HU, HISTOGRAM_VALUE
from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.world import World

PAPER = preset("paper")


@pytest.fixture(scope="module")
def phases():
    """The modules and all phases of the preset, with few channels."""
    small = PAPER.override(["network.channels=[8,8,8,8,8]", "network.features=8", "network.atlas_size=16"])
    modules = make_modules(small, 2)
    world, facts = World(torch.device("cpu")), Facts("a", torch.ones(1, 1, 16, 16, 16))
    session = Session(PAPER, None, world, NullLog(), modules, torch.Generator(), facts)
    array = SimpleNamespace(ahead=0, ids=["a", "b"])
    return modules, {phase.name: phase for phase in recipe(session, array)}


def test_phases_come_in_the_papers_order(phases):
    assert list(phases[1]) == [
        "autoencoder", "coarse", "level-4", "head-3", "level-3", "head-2", "level-2", "head-1", "level-1", "head-0",
        "level-0",
    ]  # fmt: skip


def test_five_levels_of_7500_steps_with_half_the_rate_each(phases):
    for order, level in enumerate((4, 3, 2, 1, 0)):
        phase = phases[1][f"level-{level}"]
        rate = 0.005 / 2**order
        assert phase.steps == 7500
        # From 10 to 100 % over 500 steps at the start of each level, and 0.995 after every 50.
        assert phase.schedule.at(0) == pytest.approx(0.1 * rate)
        assert phase.schedule.at(250) == pytest.approx(0.55 * rate * 0.995**5)
        assert phase.schedule.at(500) == pytest.approx(rate * 0.995**10)
        assert phase.schedule.at(7499) == pytest.approx(rate * 0.995**149)
        learning = {id(p) for group, _factor in phase.parameters for p in group}
        assert learning == {id(p) for name in ("network", "atlas") for p in phases[0][name].parameters()}


def test_the_warm_start_moves_the_new_head_alone(phases):
    network = phases[0]["network"]
    for level in (3, 2, 1, 0):
        ((parameters, _factor),) = phases[1][f"head-{level}"].parameters
        assert {id(p) for p in parameters} == {id(p) for p in network.heads[level].parameters()}


def test_the_autoencoder_learns_as_in_section_5_3(phases):
    phase, model = phases[1]["autoencoder"], phases[0]["autoencoder"]
    assert phase.steps == 20_000 and PAPER.autoencoder.batch == 16 and len(model.heads) == 2
    assert [phase.schedule.at(s) for s in (0, 49, 50)] == pytest.approx([0.005, 0.005, 0.005 * 0.995])
    assert HISTOGRAM_HU == (-256, -100, 10, 50, 100, 256)
    assert HISTOGRAM_VALUE == (0, 0.15, 0.30, 0.70, 0.85, 1)


def test_the_rest_of_the_recipe_is_the_presets():
    assert PAPER.train.batch == 64 and PAPER.network.atlas_size == 128 and PAPER.coarse.levels == 1
    loss = PAPER.loss
    assert min(loss.explicit, loss.implicit, loss.smoothness, loss.prewitt) > 0
    assert loss.similarity == "features" and loss.window is None
    assert (PAPER.data.scale, PAPER.data.rotation, PAPER.data.translation) == ((0.7, 1.3), 0.5, 16 / 63)


def test_features_are_taken_after_the_leaky_relu_and_before_the_reconstruction():
    torch.manual_seed(0)
    model = Autoencoder((8, 16))
    x = smooth(1, 1, 8, 8, 8)
    blocks = []
    for head in model.heads:
        head.activate = lambda v, head=head: (blocks.append(head.norm(v)), type(head).activate(head, v))[1]
    features = model.features(x)
    for normalised, feature in zip(blocks, features, strict=True):
        assert (normalised < 0).any()
        torch.testing.assert_close(feature, F.leaky_relu(normalised, 0.1))
    for head, feature, reconstruction in zip(model.heads, features, model(x), strict=True):
        torch.testing.assert_close(head.conv(feature), reconstruction)


# loss.gradient changes gradients, not the loss itself: see test_registration.py.
SWITCHES = [
    "loss.explicit=0",
    "loss.implicit=0",
    "loss.smoothness=2",
    "loss.prewitt=0",
    "loss.similarity=histogram",
    "loss.similarity=intensity",
    "loss.similarity=mae",
    "loss.similarity=mse",
    "loss.window=5",
    "loss.orthonormality=log",
    "loss.step=fixed",
    "loss.step=literal",
    "loss.step=direction_cosine",
    "loss.step=newton",
]


def test_every_switch_of_an_ablation_changes_what_is_minimised():
    torch.manual_seed(0)
    size, autoencoder, atlas = 16, Autoencoder().eval(), Atlas(17)
    with torch.no_grad():
        atlas.values.copy_(smooth(1, 1, 17, 17, 17))
    bend = 0.3 * (smooth(2, 3, size, size, size, seed=2) - 0.5)
    coords = 0.8 * affine_coords(torch.eye(3, 4).repeat(2, 1, 1), size) + bend
    image, mask = smooth(2, 1, size, size, size, seed=3), torch.ones(2, 1, size, size, size)

    def minimised(*settings):
        # Two steps of the recursion, because all step matrices lead to the same solution once it has converged.
        config = PAPER.override([f"loss.size={size}", "loss.iterations=2", *settings]).validate().loss
        similarity = FeatureSimilarity(autoencoder, config.similarity, config.window)
        return RegistrationLoss(config, similarity)(coords, image, mask, atlas).total.item()

    totals = {setting: minimised(setting) for setting in SWITCHES}
    totals["none"] = minimised()
    assert len({round(total, 6) for total in totals.values()}) == len(totals), totals


def test_a_run_without_any_task_is_refused():
    with pytest.raises(DeepAtlasError, match="loss.explicit must be above 0 where loss.implicit is 0"):
        preset("tiny").override(["loss.explicit=0", "loss.implicit=0"]).validate()
