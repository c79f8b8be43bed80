"""A second look at exams that lie turned, or that show far more than the network knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from affine_model import SCALE, exam, grid_of, world
from scipy.spatial.transform import Rotation

from deepatlas.errors import DataError
from deepatlas.model.look import Look, Seen, best_look, tilt
from deepatlas.space.turned import turned_to_model_grid
from deepatlas.space.volume import Volume


def turn(*degrees: float) -> np.ndarray:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def turned_exam(rotation: np.ndarray, half_mm=(75.0, 75.0, 80.0)) -> Volume:
    """A patient who lies turned in the scanner: places of the exam are ``rotation`` times those of the anatomy."""
    return exam(grid_of(half_mm=half_mm), to_anatomy=lambda place: place @ rotation)[0]


def knowing(rotation: np.ndarray, wrong: float = 0.0):
    """One pass of a network that knows the anatomy of a turned exam, but fits it worse the more it is turned."""

    def see(look: Look) -> Seen:
        place = world(look.hu.grid) @ rotation / SCALE
        generator = np.random.default_rng(0)
        place[generator.random(place.shape[:3]) < wrong] = 0.9
        coords = torch.from_numpy(np.moveaxis(place, -1, 0).copy()).float()[None]
        axes = np.asarray(look.hu.grid.affine)[:3, :3] / look.hu.grid.spacing
        askew = np.degrees(Rotation.from_matrix(rotation.T @ axes).magnitude())
        return Seen(look, coords, 0.9 - askew / 100)

    return see


def look_at(volume: Volume, see, **rest) -> Seen:
    known = {"size": 32, "crop": "foreground", "intensity": "hu", "device": torch.device("cpu")}
    return best_look(volume, see, **known | rest)


@pytest.mark.parametrize("rotation", [turn(30, 0, 0), turn(0, -25, 0), turn(0, 0, 45), turn(15, 20, -30)])
def test_a_turned_patient_is_looked_at_upright(rotation):
    volume = turned_exam(rotation)
    seen = look_at(volume, knowing(rotation, wrong=0.15))
    axes = np.asarray(seen.look.hu.grid.affine)[:3, :3] / seen.look.hu.grid.spacing
    assert np.degrees(Rotation.from_matrix(rotation.T @ axes).magnitude()) < 1.5
    # What the network sees is what lies there in the exam.
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.grid.spacing)
    image.SetOrigin((np.diag([-1.0, -1, 1]) @ volume.grid.affine[:3, 3]).tolist())
    image.SetDirection((-1.0, 0, 0, 0, -1, 0, 0, 0, 1))
    place = world(seen.look.hu.grid)[8:24:5, 8:24:5, 8:24:5].reshape(-1, 3)
    own = seen.look.hu.array[8:24:5, 8:24:5, 8:24:5].ravel()
    want = [image.EvaluateAtPhysicalPoint(p, sitk.sitkLinear) for p in (place * (-1, -1, 1)).tolist()]
    # At borders between organs the mean over a voxel differs from a sample; few voxels of the lattice lie there.
    assert np.median(np.abs(own - want)) < 2 and np.percentile(np.abs(own - want), 75) < 60


def test_a_patient_who_lies_straight_is_looked_at_once():
    volume, passes = turned_exam(turn(2, 0, 1)), []
    see = knowing(turn(2, 0, 1))

    def counted(look: Look) -> Seen:
        passes.append(look)
        return see(look)

    assert look_at(volume, counted).look is passes[0] and len(passes) == 1
    # Without a crop an exam is a box that somebody cut, and is not turned.
    rotation = turn(0, 0, 40)
    assert tilt(look_at(turned_exam(rotation), knowing(rotation), crop=None)) is not None


def test_a_second_look_that_fits_worse_is_not_taken():
    rotation = turn(0, 0, 30)
    see, passes = knowing(rotation), []

    def doubting(look: Look) -> Seen:
        passes.append(look)
        return replace(see(look), fit=0.8 if len(passes) == 1 else 0.7)

    assert look_at(turned_exam(rotation), doubting).look is passes[0] and len(passes) == 2


def test_axes_along_which_no_patient_is_found_are_not_taken(monkeypatch):
    def nobody(*arguments):
        raise DataError("no patient found")

    monkeypatch.setattr("deepatlas.model.look.turned_to_model_grid", nobody)
    rotation, passes = turn(0, 0, 30), []
    see = knowing(rotation)

    def counted(look: Look) -> Seen:
        passes.append(look)
        return see(look)

    assert look_at(turned_exam(rotation), counted).look is passes[0] and len(passes) == 1


def test_coordinates_that_mean_nothing_turn_nothing():
    volume = turned_exam(np.eye(3))

    def constant(look: Look) -> Seen:
        return Seen(look, torch.zeros(1, 3, 8, 8, 8), 0.1)

    def mirrored(look: Look) -> Seen:
        found = knowing(np.eye(3))(look)
        return replace(found, coords=found.coords * torch.tensor([-1.0, 1, 1]).reshape(1, 3, 1, 1, 1))

    assert tilt(look_at(volume, constant)) is None
    assert tilt(look_at(volume, mirrored)) is None


def test_a_long_exam_is_looked_at_in_windows_from_the_head_down():
    volume = turned_exam(np.eye(3), half_mm=(70.0, 60.0, 72.0))
    # Two patients above each other: the network knows the lower one, which ends at 62 mm below the middle.
    stacked = np.concatenate([volume.array, volume.array])
    long = Volume(stacked, volume.grid.cropped((0, 0, 0), stacked.shape), "long")

    def see(look: Look) -> Seen:
        centre = look.hu.grid.voxel_to_world(np.array([15.5] * 3))
        place = world(look.hu.grid) / SCALE
        coords = torch.from_numpy(np.moveaxis(place, -1, 0).copy()).float()[None]
        return Seen(look, coords, 0.9 - abs(centre[2]) / 100 - (0.5 if look.hu.grid.extent[2] > 200 else 0))

    seen = look_at(long, see, longest_mm=130.0)
    assert seen.look.hu.grid.extent[2] < 140
    assert abs(seen.look.hu.grid.voxel_to_world(np.array([15.5] * 3))[2]) < 40
    # One that is no longer than the network knows is not cut, unless the network does not know what it saw.
    assert look_at(long, see, longest_mm=270.0).look.hu.grid.extent[2] > 240
    # Of the lower one only a narrow part is left, so that the other one is taken for the patient.
    place = world(long.grid)
    narrow = (np.abs(place[..., :2]).max(axis=-1) < 15) | (place[..., 2] > 72)
    part = Volume(np.where(narrow, stacked, -1000).astype(np.float32), long.grid, "part")
    assert look_at(part, see, longest_mm=145.0).fit < 0
    assert look_at(part, see, longest_mm=145.0, known=0.5).fit > 0.5


def test_the_turned_grid_is_exact_and_what_lies_beside_the_patient_is_left_out():
    rotation = turn(0, 20, 0)
    volume = turned_exam(rotation)
    # A table of 100 HU, four voxels thick, well below the patient.
    array = np.array(volume.array)
    array[:, :3] = 100
    found = turned_to_model_grid(Volume(array, volume.grid, "table"), rotation, 32, "foreground")
    place = world(found.grid) @ rotation
    outside = ((place / (64.0, 52.0, 68.0)) ** 2).sum(-1) > 1
    # The crop has a margin of a few mm, in which nothing but air is left.
    assert (found.array[outside] > 50).mean() < 0.01
    inside = ((place / (52.0, 40.0, 56.0)) ** 2).sum(-1) < 1
    assert (found.array[inside] > 0).mean() > 0.99
