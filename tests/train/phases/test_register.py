"""Registration of every training exam, the atlas as their mean, and the coordinates that the network is taught."""

import pytest
import torch
from torch import nn

import deepatlas_ops as ops
from deepatlas.nn import Atlas
from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.augment import Augmentation, Contrast
from deepatlas.train.feed.batches import Drawn
from deepatlas.train.log import NullLog
from deepatlas.train.loop import Session
from deepatlas.train.phases.distil import coordinate_goal
from deepatlas.train.phases.register import CohortCoordinates, continued, predict_sweep, register_sweep
from deepatlas.train.world import World

SIZE, EXAMS = 16, 5
CONFIG = preset("tiny").override(
    ["network.size=16", "network.channels=[8,16]", "network.finest_level=0", "loss.size=16",
     "train.steps=[1,1]", "coarse.levels=null", "network.fold=1", "cohort.batch=2", "cohort.steps=60",
     "refine.control=6", "distil.steps=[1]"]
)  # fmt: skip
PLAIN = 0.8 * affine_coords(torch.eye(3, 4)[None], SIZE)


class Exams:
    """Exams that are views of an atlas through known maps."""

    def __init__(self, atlas):
        generator = torch.Generator().manual_seed(3)
        bends = ops.resize(0.05 * torch.randn(EXAMS, 3, 4, 4, 4, generator=generator), (SIZE,) * 3)
        self.true = PLAIN + bends
        with torch.no_grad():
            self.images = atlas(self.true)

    def __len__(self):
        return EXAMS

    def take(self, rows):
        image = self.images[list(rows)]
        return image, torch.ones_like(image)


class Plain(nn.Module):
    """A network that predicts the same affine map for every exam."""

    def forward(self, x, level):
        return PLAIN.expand(len(x), -1, -1, -1, -1)


@pytest.fixture
def session(tmp_path):
    atlas = Atlas(24)
    noise = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    atlas.values.data.copy_(ops.resize(noise, (24,) * 3))
    modules = {"network": Plain(), "atlas": atlas, "cohort": CohortCoordinates(EXAMS, SIZE, 24)}
    return Session(CONFIG, tmp_path, World(torch.device("cpu")), NullLog(), modules, torch.Generator())


def error(session, exams):
    return (session.modules["cohort"].coords.float() - exams.true).norm(dim=1).mean()


def test_registration_finds_the_maps_and_the_mean_of_the_exams_is_the_atlas(session):
    atlas = session.modules["atlas"]
    exams, truth = Exams(atlas), atlas.values.detach().clone()
    session.run([predict_sweep(session, exams, 0)])
    before = error(session, exams)
    assert before > 0.03
    atlas.values.data.copy_(truth)
    session.run([register_sweep(session, exams, 0)])
    assert error(session, exams) < 0.5 * before
    # Most exams show the middle of the coordinate space: there the mean of all of them is the atlas again.
    inner = (slice(None), slice(None), *(slice(5, -5),) * 3)
    difference = (atlas.values - truth)[inner].abs().mean()
    assert 0 < difference < 0.25 * truth[inner].std()


def test_places_that_no_exam_shows_stay_as_they_were(session):
    atlas = session.modules["atlas"]
    exams, truth = Exams(atlas), atlas.values.detach().clone()
    session.run([predict_sweep(session, exams, 0)])
    corner = (0, 0, 0, 0, 0)
    assert session.modules["cohort"].weight[corner] == 0 and atlas.values[corner] == truth[corner]


def test_coordinates_continue_into_the_background():
    theta = torch.tensor([[[0.7, 0.1, 0.0, 0.05], [0.0, 0.8, -0.1, 0.0], [0.05, 0.0, 0.6, -0.1]]])
    truth = affine_coords(theta, SIZE)
    mask = torch.zeros(1, 1, SIZE, SIZE, SIZE)
    mask[..., 4:12, 3:13, 5:11] = 1
    spoilt = torch.where(
        mask > 0, truth, torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    )
    found = continued(spoilt, mask)
    torch.testing.assert_close(found, truth, atol=2e-3, rtol=0)
    assert torch.equal((found * mask), (truth * mask).clamp(-0.999, 0.999))


def test_an_exam_without_foreground_stays_finite():
    assert continued(PLAIN, torch.zeros(1, 1, SIZE, SIZE, SIZE)).isfinite().all()


def test_an_augmented_exam_is_taught_the_map_of_its_original():
    """A map that is linear in the exam's coordinates stays exactly known under an affine augmentation."""
    cohort = CohortCoordinates(EXAMS, SIZE, 8)
    cohort.coords.copy_(PLAIN)
    augmentation = Augmentation.draw(
        3, torch.Generator().manual_seed(0), scale=(0.8, 0.9), rotation=0.1, translation=0.05
    )
    drawn = Drawn([2, 0, 1], augmentation)
    mask = torch.ones(2, 1, SIZE, SIZE, SIZE)
    goal, weight = coordinate_goal(cohort, drawn, [1, 2], mask, 0.1)
    place = augmentation.rows([1, 2]).coords(SIZE, "cpu")
    inside = (place.abs().amax(1, keepdim=True) < 1).expand_as(goal)
    torch.testing.assert_close(goal[inside], 0.8 * place[inside], atol=1e-3, rtol=0)
    assert torch.equal(weight, mask)
    _, outside = coordinate_goal(cohort, drawn, [0], torch.zeros(1, 1, SIZE, SIZE, SIZE), 0.25)
    assert outside.max() == 0.25


def test_contrast_of_a_part_is_that_of_the_batch_and_zero_changes_nothing():
    image = torch.rand(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = (image > 0.2).float()
    drawn = Contrast.draw(4, 8, torch.Generator().manual_seed(1))
    whole = drawn.apply(image, mask, 0.3)
    assert torch.equal(drawn.rows([1, 3]).apply(image[[1, 3]], mask[[1, 3]], 0.3), whole[[1, 3]])
    assert torch.equal(drawn.apply(image, mask, 0.0), image)
    assert 0 <= whole.min() and whole.max() <= 1 and 0.01 < (whole - image).abs().mean() < 0.3
