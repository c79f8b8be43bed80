"""A cascade on disk: the file of the model, and one for every region beside it."""

from __future__ import annotations

import warnings

import pytest
import torch
from fast_settings import FAST

import deepatlas
from deepatlas.errors import DataError, DataWarning
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Region
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.presets import preset
from deepatlas.space.box import Box


def cascade(path, seed=0, names=("head", "neck"), within=None):
    """A model with random weights and regions, written file by file; ``within`` is a region of the first of them."""
    torch.manual_seed(seed)
    config = preset("tiny").override(
        [s for s in FAST if s.startswith(("network.", "loss.size", "train.steps"))]
    )

    def engine(card):
        return Engine(config, CoordinateNetwork(config.network), Atlas(config.network.atlas_size), card)

    root = engine({})
    root.save(path)
    above = {}
    for name in (*names, within) if within else names:
        file = path.parent / "regions" / name / "model.pt"
        file.parent.mkdir(parents=True)
        outer = names[0] if name == within else None
        region = Region(name, Box.between(name, (-0.5,) * 3, (0.5,) * 3), outer).to_dict()
        region |= {"parent": root.fingerprint, "above": {outer: above[outer]} if outer else {}}
        network = engine({"region": region})
        network.save(file)
        above[name] = network.fingerprint
    return root


@pytest.mark.parametrize("half", [False, True])
def test_a_cascade_that_is_saved_keeps_its_regions(tmp_path, half):
    cascade(tmp_path / "a" / "model.pt")
    model = deepatlas.load(tmp_path / "a" / "model.pt")
    model.save(tmp_path / "b" / "model.pt", half=half)
    with warnings.catch_warnings():
        # None of the regions is left out, although rounding changes what the model is known by.
        warnings.simplefilter("error", DataWarning)
        saved = deepatlas.load(tmp_path / "b" / "model.pt")
    assert [n.region.name for n in saved.regions] == ["head", "neck"]
    assert (saved.fingerprint == model.fingerprint) is not half
    for ours, theirs in zip(model.regions, saved.regions, strict=True):
        for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
            assert torch.equal(a.half().float() if half else a, b)
    # What was read is as it was.
    again = deepatlas.load(tmp_path / "a" / "model.pt")
    assert [n.card["region"]["parent"] for n in again.regions] == [model.fingerprint] * 2
    # Saving once more, in the other form, replaces all files.
    model.save(tmp_path / "b" / "model.pt", half=not half)
    assert len(deepatlas.load(tmp_path / "b" / "model.pt").regions) == 2


@pytest.mark.parametrize("half", [False, True])
def test_a_region_within_a_region_knows_the_level_above(tmp_path, half):
    cascade(tmp_path / "a" / "model.pt", names=("head",), within="eye")
    model = deepatlas.load(tmp_path / "a" / "model.pt")
    assert [n.region.name for n in model.regions] == ["head", "eye"]
    model.save(tmp_path / "b" / "model.pt", half=half)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        saved = deepatlas.load(tmp_path / "b" / "model.pt")
    head, eye = saved.regions
    assert eye.card["region"]["above"] == {"head": head.fingerprint}
    assert (head.fingerprint == model.regions[0].fingerprint) is not half
    # The level above is trained again: what was trained upon its answers must not be used with others.
    cascade(tmp_path / "c" / "model.pt", seed=1, names=("head",))
    other = Engine.load(tmp_path / "c" / "regions" / "head" / "model.pt", "cpu")
    other.card["region"] = other.card["region"] | {"parent": saved.fingerprint}
    other.save(tmp_path / "b" / "regions" / "head" / "model.pt")
    with pytest.warns(
        DataWarning, match=f"eye.model.pt: trained for the region head {head.fingerprint}, but this"
    ):
        assert [n.region.name for n in deepatlas.load(tmp_path / "b" / "model.pt").regions] == ["head"]


def test_the_regions_that_answer_are_those_down_to_the_depth(tmp_path):
    cascade(tmp_path / "model.pt", names=("head",), within="eye")
    models = [deepatlas.load(tmp_path / "model.pt", depth=depth) for depth in (0, 1, 2, None)]
    assert [answering(m.regions, m.depth) for m in models] == [
        [f"{n.region.name} {n.fingerprint}" for n in models[0].regions[:count]] for count in (0, 1, 2, 2)
    ]


def test_regions_of_a_model_that_is_not_there_are_not_overwritten(tmp_path):
    cascade(tmp_path / "a" / "model.pt")
    cascade(tmp_path / "b" / "model.pt", seed=1)
    (tmp_path / "b" / "model.pt").unlink()
    region = tmp_path / "b" / "regions" / "head" / "model.pt"
    model, before = deepatlas.load(tmp_path / "a" / "model.pt"), region.read_bytes()
    with pytest.raises(DataError, match="head.*is the region of another model; save into another folder"):
        model.save(tmp_path / "b" / "model.pt")
    assert region.read_bytes() == before and not (tmp_path / "b" / "model.pt").exists()
