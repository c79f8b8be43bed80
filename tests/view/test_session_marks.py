"""What is marked on the page: carried to every exam, kept, and refused where it is none."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, SCALE
from page_marks import painted, point, put
from served import (
    STRANGER,
    KnowingModel,
    shifted,
)  # fmt: skip
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.localize.points import locate
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask
from deepatlas.space.volume import Volume
from deepatlas.view.gallery import Gallery
from deepatlas.view.marks import MOST_MARKS, Mark, Marks
from deepatlas.view.session import Session


@pytest.mark.slow(1)
def test_a_point_is_carried_as_locate_finds_it(client, ids, folder):
    put(client, point(ids["plain"]))
    places = client.post(
        "/api/carry", {"mark": "p1", "to": [ids["moved"], ids[STRANGER], "atlas", ids["plain"]]}
    )["places"]
    model = KnowingModel()
    volumes = [read_volume(folder / name / "ct.nii.gz") for name in ("plain", "moved")]
    for volume, name in zip(volumes, ("plain", "moved"), strict=True):
        volume.name = name
    expected = locate(model, [[22.0, 4.0, -8.0]], *volumes)
    assert places[ids["moved"]]["found"] and expected.found[0]
    np.testing.assert_allclose(places[ids["moved"]]["at"], expected.points[0], atol=1e-3)
    np.testing.assert_allclose(places["atlas"]["at"], np.array([22.0, 4.0, -8.0]) / SCALE, atol=1e-3)
    assert places[ids[STRANGER]] == {"found": False, "reason": f"the model does not know the exam {STRANGER}"}
    assert ids["plain"] not in places


def test_a_point_outside_the_body_is_not_found_anywhere(client, ids):
    put(client, point(ids["plain"], (68.0, 50.0, 0.0)))
    place = client.post("/api/carry", {"mark": "p1", "to": [ids["moved"]]})["places"][ids["moved"]]
    assert not place["found"] and place["reason"] == "outside the body in the source exam"


def test_a_box_is_carried_with_its_size_and_turn(client, ids):
    box = {"id": "b1", "kind": "box", "name": "roi", "exam": ids["moved"], "centre": [12.0, 0.0, 5.0],
           "axes": [[20, 0, 0], [0, 15, 0], [0, 0, 10]]}  # fmt: skip
    put(client, box)
    place = client.post("/api/carry", {"mark": "b1", "to": [ids["oblique"]]})["places"][ids["oblique"]]
    assert place["found"] and place["share"] > 0.95
    np.testing.assert_allclose(place["centre"], shifted(np.array([12.0, 0.0, 5.0])), atol=0.2)
    np.testing.assert_allclose(np.abs(place["axes"]), np.diag([20, 15, 10]), atol=0.2)
    put(client, {**box, "centre": [150.0, 0.0, 0.0]})
    place = client.post("/api/carry", {"mark": "b1", "to": [ids["oblique"]]})["places"][ids["oblique"]]
    assert not place["found"] and "0 % of it lie inside the exam" in place["reason"]


def test_a_painted_mask_is_carried_and_saved_as_a_template_that_segment_uses(client, ids, folder, tmp_path):
    put(client, painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14))
    place = client.post("/api/carry", {"mark": "m1", "to": [ids["moved"]]})["places"][ids["moved"]]
    assert place["millilitres"] == pytest.approx(4 / 3 * np.pi * 1.4**3, rel=0.05)
    name, data = client.download({"what": "template"})
    (tmp_path / name).write_bytes(data)
    made = Template.load(tmp_path / name)
    assert (
        made.names == ("lump",) and made.meta["model"] == "affine-model" and made.meta["exams"] == ["plain"]
    )
    model = KnowingModel()
    volume = read_volume(folder / "moved" / "ct.nii.gz")
    volume.name = "moved"
    labels = segment(model, volume, made)
    middle = labels.grid.voxel_to_world(np.argwhere(labels.array)[:, ::-1]).mean(axis=0)
    np.testing.assert_allclose(middle, np.array([10, 5, 0]) - shifted(np.zeros(3)), atol=0.5)
    # The download is that label image, on the grid of the exam.
    name, data = client.download({"what": "painted", "exam": ids["moved"]})
    (tmp_path / name).write_bytes(data)
    image = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, labels.array)
    np.testing.assert_allclose(image.affine, labels.grid.affine, atol=1e-3)
    # In its own exam it is as it was painted.
    name, data = client.download({"what": "painted", "exam": ids["plain"]})
    (tmp_path / name).write_bytes(data)
    own = np.asarray(nibabel.load(tmp_path / name).dataobj).T > 0
    assert own.sum() == BoxMask(**_mask_of(client)).count()
    assert json.loads(client.download({"what": "names", "painted": True})[1]) == {"lump": 1}


def _mask_of(client):
    import base64

    (mark,) = client.post("/api/marks", {})["marks"]
    mask = mark["mask"]
    packed = np.frombuffer(base64.b64decode(mask["bits"]), np.uint8)
    return {"start": tuple(mask["start"]), "shape": tuple(mask["shape"]), "packed": packed}


def test_masks_of_one_name_in_two_exams_are_two_examples_of_one_structure(client, ids, tmp_path):
    grid = GRIDS["anisotropic"]
    there = np.array([10, 5, 0]) - shifted(np.zeros(3))
    put(
        client,
        painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14),
        painted(ids["moved"], grid, there, 14, identity="m2"),
    )
    (tmp_path / "t.h5").write_bytes(client.download({"what": "template"})[1])
    made = Template.load(tmp_path / "t.h5")
    assert made.names == ("lump",) and made.meta["structures"]["lump"]["exams"] == ["plain", "moved"]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "line"}, {"id": "../x"}, {"id": 5}, {"name": "  "}, {"name": "x" * 81},
        {"exam": "nowhere"}, {"exam": None},
        {"at": [1, 2]}, {"at": [1, 2, float("1e400")]}, {"at": [1, 2, None]}, {"at": [True, 1, 2]}, {"at": [1e9, 0, 0]},
        {"kind": "box"}, {"kind": "box", "centre": [0, 0, 0], "axes": [[1, 0, 0], [0, 1, 0], [0, 0, 0]]},
        {"kind": "box", "centre": [0, 0, 0], "axes": [[1, 0], [0, 1], [0, 0]]},
        {"kind": "mask"}, {"kind": "mask", "mask": {"start": [0, 0, 0], "shape": [2, 2, 2], "bits": "!!"}},
        {"kind": "mask", "mask": {"start": [0, 0, 0], "shape": [2, 2, 2], "bits": "AA=="}},
        {"kind": "mask", "mask": {"start": [0, 0, 0], "shape": [2, 2, 2], "bits": "//8="}},
        {"kind": "mask", "mask": {"start": [0, 0, -1], "shape": [2, 2, 2], "bits": "/w=="}},
        {"kind": "mask", "mask": {"start": [0, 0, 0], "shape": [99999, 99999, 99999], "bits": "/w=="}},
    ],
    ids=str,
)  # fmt: skip
def test_a_mark_that_is_none_is_refused_and_changes_nothing(client, ids, change):
    put(client, point(ids["plain"]))
    bad = {**point(ids["plain"]), **change}
    text = json.dumps({"put": [point(ids["plain"], (1, 1, 1)), bad]}).replace("Infinity", "1e400")
    answer = client.ask("/api/marks/change", "POST", body=text.encode())
    assert answer.status == 422 and "\n" not in json.loads(answer.data)["error"]
    (kept,) = client.post("/api/marks", {})["marks"]
    assert kept["at"] == [22.0, 4.0, -8.0]


def test_a_mask_beyond_the_picture_is_one_line(client, ids):
    mark = painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14)
    mark["mask"]["start"] = [200, 200, 200]
    put(client, mark)
    place = client.post("/api/carry", {"mark": "m1", "to": [ids["moved"]]})["places"][ids["moved"]]
    assert not place["found"] and "does not fit" in place["reason"]


def test_marks_are_kept_in_a_file_under_the_names_of_their_exams(tmp_path):
    path = tmp_path / "marks.json"
    first = Marks(path, {"x1": "one", "x2": "two"})
    first.change([Mark.of(point("x1")), Mark.of(point("x2", name="other", identity="p2"))], [])
    # With other ids, and without one of the exams.
    second = Marks(path, {"y1": "one"})
    (mark,) = second.all()
    assert (mark.exam, mark.name, mark.at) == ("y1", "tip", (22.0, 4.0, -8.0))
    second.change([], ["p1"])
    third = Marks(path, {"z1": "one", "z2": "two"})
    assert [(mark.exam, mark.name) for mark in third.all()] == [("z2", "other")]


def test_marks_of_the_atlas_and_of_an_exam_called_atlas_stay_apart(tmp_path):
    write_volume(
        tmp_path / "atlas.nii.gz", Volume(np.zeros((8, 8, 8), np.int16), Grid.from_spacing((8, 8, 8)))
    )

    def session():
        gallery = Gallery([tmp_path / "atlas.nii.gz"])
        return Session(gallery, lambda: (None, None), title="t", marks=tmp_path / "m.json")

    first = session()
    (exam,) = first.gallery
    first.change_marks({"put": [point(exam.id, name="tip"), point("atlas", name="pole", identity="p2")]})
    second = session()
    (exam,) = second.gallery
    assert {m.name: m.exam for m in second.marks.all()} == {"tip": exam.id, "pole": "atlas"}
    assert second.name_of(exam.id) != second.name_of("atlas") == "atlas"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "deepatlas-marks", "version": 1}', '{"format": "other"}', "\udc00"]
)
def test_a_damaged_file_of_marks_is_one_line_and_is_left_alone(tmp_path, text):
    path = tmp_path / "marks.json"
    path.write_text(
        text, encoding="utf-8", errors="surrogateescape"
    ) if text != "\udc00" else path.write_bytes(b"\xff")
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        Marks(path, {"x": "one"})
    assert str(path) in one_line(caught.value) and path.read_bytes() == before


def test_there_are_not_too_many_marks():
    marks = Marks(None, {"x": "one"})
    with pytest.raises(DataError, match=str(MOST_MARKS)):
        marks.change([Mark.of(point("x", identity=f"p{i}")) for i in range(MOST_MARKS + 1)], [])
    assert marks.all() == []
