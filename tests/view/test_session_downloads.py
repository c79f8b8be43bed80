"""What is downloaded from the page, against the other commands."""

from __future__ import annotations

import csv
import io
import json
import threading
import warnings

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

from deepatlas.errors import DataWarning
from deepatlas.exams.read import read_volume
from deepatlas.io.export.markups import read_markups
from deepatlas.localize.segment import segment
from deepatlas.localize.trust.estimate import Trust
from deepatlas.view import carry, shown
from deepatlas.view.heard import heard


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
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert [(row["target"], row["name"], row["found"], row["known"]) for row in rows] == [
        ("moved", "tip", "true", "true"), ("moved", 'two, "quoted"', "true", "true"),
        (STRANGER, "tip", "false", "false"), (STRANGER, 'two, "quoted"', "false", "false"),
    ]  # fmt: skip
    got = [float(rows[1][axis]) for axis in "xyz"]
    np.testing.assert_allclose(got, np.array([0.1, 0.0, -0.2]) * SCALE - shifted(np.zeros(3)), atol=0.1)


def test_points_have_the_errors_that_the_page_shows(folder, monkeypatch):
    class Believed:
        structures = {
            "liver": Trust(0.91, 0.83),
            "spleen": Trust(None, None, "unknown"),
            "heart": Trust(0.8, 0.7),
        }

        def __init__(self, name):
            self.error = {"plain": 3.0, "moved": 4.0}.get(name, np.nan)

        def millimetres(self, points):
            return np.full(len(points), self.error), np.full(len(points), 2 * self.error)

    session = session_of(folder)
    ids = {exam.name: exam.id for exam in session.gallery}
    trusted = {i: Believed(name) for name, i in ids.items()}
    monkeypatch.setattr(session, "believed", trusted.get)
    with serving(session) as server:
        client = Client(server)
        put(client, point(ids["plain"]), point("atlas", (0.1, 0.0, -0.2), "of the atlas", "p2"))
        data = client.download({"what": "points", "to": [ids["plain"], ids["moved"], ids["oblique"]]})[1]
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        assert [(row["target"], row["name"], row["error_mm"], row["bound_mm"]) for row in rows] == [
            # Where it was drawn, a point is where it is.
            ("plain", "tip", "0.000", "0.000"), ("plain", "of the atlas", "3.000", "6.000"),
            # The errors of two exams are independent.
            ("moved", "tip", "5.000", "10.000"), ("moved", "of the atlas", "4.000", "8.000"),
            ("oblique", "tip", "", ""), ("oblique", "of the atlas", "", ""),
        ]  # fmt: skip
        name, data = client.download({"what": "trust", "exam": ids["moved"]})
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        assert name == "trust.csv" and [row["exam"] for row in rows] == ["moved"] * 3
        assert [(row["structure"], row["trust"], row["bound"], row["reason"]) for row in rows] == [
            ("liver", "0.910", "0.830", ""), ("spleen", "", "", "unknown"), ("heart", "0.800", "0.700", ""),
        ]  # fmt: skip


def test_a_box_is_written_as_it_was_drawn_in_its_own_exam(client, ids, tmp_path):
    centre, axes = [10.123456, -3.0, 5.7], [[20.25, 0, 0], [0, 15.5, 0], [0, 0, 10.125]]
    box = {"id": "b1", "kind": "box", "name": "roi", "exam": ids["oblique"], "centre": centre, "axes": axes}
    # Another of the same name elsewhere is not taken for it.
    other = {**box, "id": "b2", "exam": ids["plain"], "centre": [0.0, 0.0, 0.0]}
    put(client, box, other)
    name, data = client.download({"what": "points", "to": [ids["oblique"]]})
    own, carried = csv.DictReader(io.StringIO(data.decode()))
    assert [float(own[k]) for k in "xyz"] == pytest.approx(centre, abs=5e-4)
    half = [float(own[f"{edge}{k}"]) for edge in "abc" for k in "xyz"]
    assert half == pytest.approx(np.array(axes).T.ravel(), abs=5e-4)
    assert (own["found"], own["shear_degrees"], own["residual_mm"]) == ("true", "0.000", "0.000")
    assert [float(carried[k]) for k in "xyz"] == pytest.approx([0, 0, 0], abs=0.5)
    name, data = client.download({"what": "markups", "exam": ids["oblique"]})
    (tmp_path / name).write_bytes(data)
    read = read_markups(tmp_path / name).boxes
    assert len(read) == 2
    np.testing.assert_allclose(read[0].centre, centre, atol=1e-6)
    np.testing.assert_allclose(read[0].axes, axes, atol=1e-6)


def test_a_warning_reaches_the_page_and_not_the_terminal(client, ids, monkeypatch, capsys):
    """Each time, and not only the first time that a line of code warns."""
    made = carry.template_of

    def warning(*arguments, **more):
        warnings.warn("lump: leaves 30 % of its labels unexplained", DataWarning, stacklevel=1)
        return made(*arguments, **more)

    monkeypatch.setattr(carry, "template_of", warning)
    put(client, painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14))
    asked = {"mark": "m1", "to": [ids["moved"]]}
    assert client.post("/api/carry", asked)["notes"] == ["lump: leaves 30 % of its labels unexplained"]
    # The template of a mask is made once.
    assert client.post("/api/carry", asked)["notes"] == []
    for _ in range(2):
        client.download({"what": "template"})
        assert client.note == "lump: leaves 30 % of its labels unexplained"
    client.download({"what": "names", "painted": True})
    assert client.note == ""
    assert "unexplained" not in capsys.readouterr().err


def test_warnings_are_heard_by_the_thread_that_makes_them_alone(recwarn):
    one, two = threading.Barrier(2), threading.Barrier(2)
    found = {}

    def listening():
        with heard() as lines:
            one.wait(10)
            two.wait(10)
            for _ in range(2):
                warnings.warn("mine\n and in one line", DataWarning, stacklevel=1)
        found["lines"] = lines

    thread = threading.Thread(target=listening)
    thread.start()
    one.wait(10)
    warnings.warn("of another", DataWarning, stacklevel=1)
    two.wait(10)
    thread.join()
    assert found["lines"] == ["mine and in one line"]
    assert [str(one.message) for one in recwarn] == ["of another"]


def test_masks_that_are_probably_poor_are_named(folder, monkeypatch):
    class Believed:
        structures = {
            "liver": Trust(0.41, 0.2),
            "spleen": Trust(0.9, 0.8),
            "kidney": Trust(None, None, "unknown"),
        }

        def millimetres(self, points):
            return np.full((2, len(points)), 2.0)

    monkeypatch.setattr(shown, "exam_trust", lambda *_, threshold: Believed())
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
