"""The tree of regions: what a file may say, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deepatlas.errors import DataError
from deepatlas.model.regions import Region, Regions, TemplateNeeded, shipped_trees
from deepatlas.phantom.structures import ALL_STRUCTURES
from deepatlas.train.cascade import check_tree

HEAD = '[[region]]\nname = "head"\nlow = [-1, -0.8, 0.1]\nhigh = [1, 0.8, 1]\n'
EYES = '[[region]]\nname = "eyes"\nwithin = "head"\nstructures = ["left", "right"]\nmargin = 0.05\n'


def template():
    masks = np.zeros((3, 21, 21, 21), dtype=np.float32)
    masks[0, 12:15, 3:6, 2:5] = 1
    masks[1, 12:15, 3:6, 16:19] = 1
    return SimpleNamespace(masks=masks, names=("left", "right", "nothing"))


def read(tmp_path, text: str) -> Regions:
    path = tmp_path / "tree.toml"
    path.write_text(text)
    return Regions.read(path, template())


def test_boxes_by_corners_and_by_structures(tmp_path):
    tree = read(tmp_path, EYES + HEAD)
    # Those of the level above come first, whatever the order in the file.
    assert tree.names == ["head", "eyes"]
    assert [r.name for r in tree.path("eyes")] == ["head", "eyes"]
    np.testing.assert_allclose(np.ptp(tree["head"].box.corners(), axis=0), (2, 1.6, 0.9))
    # Voxels 2 to 18 along x, with their faces: 17 of 20 steps of .1, and a twentieth on either side.
    corners = tree["eyes"].box.corners()
    np.testing.assert_allclose(corners.min(axis=0), (-0.85 - 0.085, -0.75 - 0.015, 0.15 - 0.015))
    np.testing.assert_allclose(np.ptp(corners, axis=0), (1.7 * 1.1, 0.3 * 1.1, 0.3 * 1.1))


def test_a_region_survives_its_card(tmp_path):
    region = read(tmp_path, HEAD + EYES)["eyes"]
    again = Region.from_dict(region.to_dict())
    assert (again.name, again.within, again.coverage) == ("eyes", "head", region.coverage)
    np.testing.assert_array_equal(again.box.matrix, region.box.matrix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[region]\n", "not TOML"),
        ("", r"no \[\[region\]\]"),
        ("[[region]]\nlow = [0, 0, 0]\nhigh = [1, 1, 1]\n", "no name"),
        (HEAD + 'colour = "red"\n', "unknown key colour"),
        (HEAD + HEAD, "head is there twice"),
        (HEAD.replace("low", "within = 'head'\nlow"), "head -> head lie within each other"),
        (HEAD + EYES.replace('"head"', '"haed"'), "within haed, which is not there.*head"),
        (
            HEAD + EYES + EYES.replace('"eyes"', '"lens"').replace('within = "head"', 'within = "eyes"'),
            "lens -> eyes -> head are 3 levels deep",
        ),
        (HEAD.replace("high = [1, 0.8, 1]", "high = [1, -0.8, 1]"), "first corner has the smaller"),
        (HEAD.replace("high = [1, 0.8, 1]", "high = [1.5, 0.8, 1]"), "leaves the atlas"),
        (HEAD.replace("high = [1, 0.8, 1]\n", ""), "smaller|three numbers"),
        (HEAD + 'structures = ["left"]\n', "either the corners low and high, or structures"),
        (EYES.replace('within = "head"\n', "").replace("right", "nose"), "no structure nose"),
        (EYES.replace('within = "head"\n', "").replace('"left", "right"', '"nothing"'), "are empty"),
        (HEAD + "coverage = 1.5\n", "coverage must be in"),
        (HEAD + "margin = -1\n", "margin must be from"),
        (EYES.replace('within = "head"\n', "") + "part = [0.5, 0.2]\n", "part must be two growing numbers"),
        (HEAD + "part = [0, 0.5]\n", "part must be two growing numbers"),
    ],
)
def test_what_is_no_tree_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'tree.toml'}: ") and "\n" not in str(refused.value)
    assert str(refused.value).count(": region ") <= 1


def test_structures_need_a_template_and_a_file_must_be_there(tmp_path):
    path = tmp_path / "tree.toml"
    path.write_text(EYES.replace('within = "head"\n', ""))
    with pytest.raises(TemplateNeeded, match="needs a template"):
        Regions.read(path)
    # Before its parent is trained, there is no template yet.
    check_tree(path)
    with pytest.raises(DataError, match="no such file of regions.*headneck"):
        Regions.read(tmp_path / "none.toml")


@pytest.mark.parametrize("name", shipped_trees())
def test_the_trees_of_the_package_name_structures_of_phantoms_or_corners(name):
    masks = np.ones((len(ALL_STRUCTURES), 4, 4, 4), dtype=np.float32)
    tree = Regions.read(name, SimpleNamespace(masks=masks, names=tuple(ALL_STRUCTURES)))
    assert len(tree.names) >= 2
