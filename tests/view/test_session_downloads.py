"""What is downloaded from the page, against the other commands."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, LABELS, SCALE
from page_marks import painted, point, put
from served import (
    STRANGER,
    Client,
    KnowingModel,
    serving,
    session_of,
    shifted,
    template,
)  # fmt: skip

from deepatlas.exams.read import read_volume
from deepatlas.io.export.markups import read_markups
from deepatlas.localize.segment import segment
from deepatlas.localize.trust.estimate import Trust
from deepatlas.view import shown


def test_structures_and_points_are_downloaded_as_segment_and_locate_write_them(client, ids, folder, tmp_path):
    model = KnowingModel()
    volume = read_volume(folder / "oblique" / "ct.nii.gz")
    volume.name = "oblique"
    name, data = client.download({"what": "masks", "exam": ids["oblique"]})
    assert name == "oblique.nii.gz"
    (tmp_path / name).write_bytes(data)
    image = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, segment(model, volume, template(model)).array)
    np.testing.assert_allclose(image.affine, volume.grid.affine, atol=1e-3)
    assert client.note == ""
    # A label image has no place for it.
    for what in ("masks", "names"):
        client.download({"what": what, "exam": ids[STRANGER]})
        assert client.note.startswith(f"{STRANGER}: the model does not know such an exam") is (
            what == "masks"
        )
    assert json.loads(client.download({"what": "names"})[1]) == LABELS
    put(client, point(ids["plain"]), point("atlas", (0.1, 0.0, -0.2), 'two, "quoted"', "p2"))
    name, data = client.download({"what": "points", "to": [ids["moved"], ids[STRANGER], "atlas"]})
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert [(row["target"], row["name"], row["found"], row["known"]) for row in rows] == [
        ("moved", "tip", "true", "true"), ("moved", 'two, "quoted"', "true", "true"),
        (STRANGER, "tip", "false", "false"), (STRANGER, 'two, "quoted"', "false", "false"),
    ]  # fmt: skip
    got = [float(rows[1][axis]) for axis in "xyz"]
    np.testing.assert_allclose(got, np.array([0.1, 0.0, -0.2]) * SCALE - shifted(np.zeros(3)), atol=0.1)


def test_masks_that_are_probably_poor_are_named(folder, monkeypatch):
    class Believed:
        structures = {
            "liver": Trust(0.41, 0.2),
            "spleen": Trust(0.9, 0.8),
            "kidney": Trust(None, None, "unknown"),
        }

        def millimetres(self, points):
            return np.full((2, len(points)), 2.0)

    monkeypatch.setattr(shown, "exam_trust", lambda *_: Believed())
    session = session_of(folder, ("plain",))
    ids = {exam.name: exam.id for exam in session.gallery}
    session.template.meta["trust"] = {"calibrated": True}
    with serving(session) as server:
        client = Client(server)
        client.download({"what": "masks", "exam": ids["plain"]})
        assert client.note == "look at liver (0.41) before use: the predicted Dice is low"
        client.download({"what": "masks", "exam": ids[STRANGER]})
        assert client.note.startswith(f"{STRANGER}: the model does not know such an exam")


def test_points_and_boxes_are_downloaded_for_slicer(client, ids, tmp_path):
    box = {"id": "b1", "kind": "box", "name": "roi", "exam": ids["plain"], "centre": [10.0, 0.0, 5.0],
           "axes": [[20, 0, 0], [0, 15, 0], [0, 0, 10]]}  # fmt: skip
    put(client, point(ids["plain"]), point(ids["plain"], (68.0, 50.0, 0.0), "air", "p2"), box)
    name, data = client.download({"what": "markups", "exam": ids["moved"]})
    (tmp_path / name).write_bytes(data)
    read = read_markups(tmp_path / name)
    tip, air = read.points
    np.testing.assert_allclose(tip.position, np.array([22.0, 4.0, -8.0]) - shifted(np.zeros(3)), atol=0.1)
    assert air.position is None
    np.testing.assert_allclose(
        read.boxes[0].centre, np.array([10.0, 0.0, 5.0]) - shifted(np.zeros(3)), atol=0.2
    )
    np.testing.assert_allclose(read.boxes[0].edges, [40, 30, 20], atol=0.4)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"what": "nothing"}, "there is no such download"),
        ({"what": "points", "to": []}, "click a point or draw a box first"),
        ({"what": "template"}, "paint a mask or click a point or draw a box first"),
        ({"what": "markups", "exam": "atlas"}, "choose an exam"),
        ({"what": "masks", "exam": "../../etc"}, "no such exam"),
        ({"what": "masks"}, "no such exam"),
        ({"what": "masks", "exam": ["x"]}, "no such exam"),
    ],
)
def test_what_cannot_be_downloaded_gives_one_line(client, data, line):
    assert line in client.post("/api/download", data, 422)["error"]


def test_a_mask_of_an_unknown_exam_makes_no_template(client, ids):
    put(client, painted(ids[STRANGER], GRIDS["coarse"], (10, 5, 0), 14))
    assert (
        "does not know the exam stranger" in client.post("/api/download", {"what": "template"}, 422)["error"]
    )
    error = client.post("/api/download", {"what": "painted", "exam": ids["plain"]}, 422)["error"]
    assert "does not know" in error
