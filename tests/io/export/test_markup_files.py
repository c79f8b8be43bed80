"""Files of points, lines and boxes: what comes back, and what 3D Slicer would take them for."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from drawn_objects import rotation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepatlas.errors import DataError, DataWarning, WriteError
from deepatlas.io.export.markups import read_markups, write_markups
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups, Point, Polyline

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def turned_box(name: str, seed: int = 0) -> Box:
    turn = rotation(np.random.default_rng(seed))
    turn[:, 0] *= np.sign(np.linalg.det(turn))
    return Box(name, np.array([10.0, -20.5, 33.25]), turn * [20.0, 7.5, 3.0])


def markups() -> Markups:
    rng = np.random.default_rng(1)
    return Markups(
        (Point("tip, left", np.array([1.25, -2.0, 3.5]), "seen"), Point("apex", None, "outside the scan")),
        (
            Polyline("cord", rng.normal(size=(5, 3)) * 50),
            Polyline("ring", rng.normal(size=(4, 3)), closed=True),
        ),
        (turned_box("left orbit"), turned_box("right orbit", 3)),
    )


def same(got: Markups, want: Markups) -> None:
    assert [p.name for p in got.points] == [p.name for p in want.points]
    for a, b in zip(got.points, want.points, strict=True):
        assert (a.position is None) == (b.position is None) and a.note == b.note
        if a.position is not None:
            np.testing.assert_allclose(a.position, b.position, atol=1e-9)
    assert [(line.name, line.closed) for line in got.lines] == [
        (line.name, line.closed) for line in want.lines
    ]
    for a, b in zip(got.lines, want.lines, strict=True):
        np.testing.assert_allclose(a.points, b.points, atol=1e-9)
    assert [box.name for box in got.boxes] == [box.name for box in want.boxes]
    for a, b in zip(got.boxes, want.boxes, strict=True):
        np.testing.assert_allclose(a.centre, b.centre, atol=1e-9)
        np.testing.assert_allclose(a.axes, b.axes, atol=1e-9)


@pytest.mark.parametrize("name", ["a.mrk.json", "a.json"])
def test_points_lines_and_boxes_come_back(name, tmp_path):
    assert write_markups(tmp_path / name, markups()) == []
    same(read_markups(tmp_path / name, notes := []), markups())
    assert notes == []


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_a_table_holds_points_or_boxes(kind, tmp_path):
    whole = markups()
    part = Markups(points=whole.points) if kind == "points" else Markups(boxes=whole.boxes)
    assert write_markups(tmp_path / "a.csv", part) == []
    got = read_markups(tmp_path / "a.csv")
    same(got, Markups(tuple(Point(p.name, p.position) for p in part.points), (), part.boxes))
    with pytest.raises(WriteError, match=r"a\.csv: a CSV holds either points or boxes"):
        write_markups(tmp_path / "a.csv", whole)
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as handle:
        row = next(csv.DictReader(handle))
    if kind == "boxes":
        box = whole.boxes[0]
        np.testing.assert_allclose([float(row[c]) for c in ("ax", "ay", "az")], box.axes[:, 0])


def roi_of_slicer(node) -> np.ndarray:
    """The 4x4 matrix from an ROI's own coordinates in [-1, 1]^3 to RAS mm.

    3D Slicer (vtkMRMLMarkupsROIJsonStorageNode) turns the centre and the first six numbers of the orientation round
    for LPS, and multiplies with the half of the size.
    """
    numbers, centre = list(node["orientation"]), list(node["center"])
    assert node["coordinateSystem"] == "LPS"
    for i in range(6):
        numbers[i] = -numbers[i]
    for i in range(2):
        centre[i] = -centre[i]
    matrix = np.eye(4)
    for i in range(3):
        matrix[i, :3] = [numbers[3 * i + j] * node["size"][j] / 2 for j in range(3)]
        matrix[i, 3] = centre[i]
    return matrix


def test_slicer_sees_boxes_where_they_are(tmp_path):
    write_markups(tmp_path / "a.mrk.json", markups())
    whole = json.loads((tmp_path / "a.mrk.json").read_text())
    assert whole["@schema"] == SCHEMA
    rois = [node for node in whole["markups"] if node["type"] == "ROI"]
    for node, box in zip(rois, markups().boxes, strict=True):
        np.testing.assert_allclose(roi_of_slicer(node), box.matrix, atol=1e-9)
        turn = np.array(node["orientation"]).reshape(3, 3)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) > 0 and node["roiType"] == "Box" and len(node["controlPoints"]) == 1


def test_the_file_follows_the_schema_of_slicer(tmp_path):
    """The entries that the schema (v1.0.3) names, with its types and lists of values."""
    write_markups(tmp_path / "a.mrk.json", markups())
    whole = json.loads((tmp_path / "a.mrk.json").read_text())
    assert [n["type"] for n in whole["markups"]] == ["Fiducial", "Curve", "ClosedCurve", "ROI", "ROI"]
    for node in whole["markups"]:
        assert node["coordinateSystem"] == "LPS" and node["coordinateUnits"] == "mm"
        assert isinstance(node["name"], str) and isinstance(node["locked"], bool)
        for point in node["controlPoints"]:
            texts = [point[key] for key in ("id", "label", "description", "associatedNodeID")]
            assert all(isinstance(text, str) for text in texts)
            assert all(isinstance(point[key], bool) for key in ("selected", "locked", "visibility"))
            assert len(point["orientation"]) == 9
            assert point["positionStatus"] in ("undefined", "defined")
            assert ("position" in point) == (point["positionStatus"] == "defined")
    first, second = whole["markups"][0]["controlPoints"]
    assert first["position"] == [-1.25, 2.0, 3.5] and second["positionStatus"] == "undefined"


def slicer_file(tmp_path, *nodes, schema=SCHEMA):
    path = tmp_path / "made.mrk.json"
    path.write_text(json.dumps({"@schema": schema, "markups": list(nodes)}))
    return path


def test_what_slicer_may_write_is_read(tmp_path):
    control = {"label": "a", "position": [1.0, 2.0, 3.0]}
    coded = {"type": "Fiducial", "coordinateSystem": "RAS", "coordinateUnits": ["um", "UCUM", "micrometer"]}
    path = slicer_file(
        tmp_path,
        {"type": "Fiducial", "controlPoints": [control, {"position": [0, 0, 1]}]},
        {**coded, "controlPoints": [{**control, "label": "b"}]},
        {"type": "Line", "name": "l", "controlPoints": [control, {**control, "position": [0, 0, 0]}]},
        {"type": "Plane", "controlPoints": [control]},
        schema=SCHEMA.replace("1.0.3", "1.0.1"),
    )
    with pytest.warns(DataWarning, match="'Plane'.*left out"):
        got = read_markups(path)
    assert [p.name for p in got.points] == ["a", "point-2", "b"]
    np.testing.assert_allclose(got.points[0].position, [-1, -2, 3])
    np.testing.assert_allclose(got.points[2].position, [1e-3, 2e-3, 3e-3])
    np.testing.assert_allclose(got.lines[0].points, [[-1, -2, 3], [0, 0, 0]])


def test_a_mirrored_roi_is_the_same_box(tmp_path):
    node = {
        "type": "ROI",
        "center": [0, 0, 0],
        "size": [2, 4, 6],
        "orientation": [1, 0, 0, 0, 1, 0, 0, 0, -1],
    }
    (box,) = read_markups(slicer_file(tmp_path, node)).boxes
    np.testing.assert_allclose(np.abs(box.axes), np.diag([1.0, 2.0, 3.0]))


ROI = {"type": "ROI", "center": [0, 0, 0], "size": [2, 4, 6], "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
DOT = {"type": "Fiducial", "controlPoints": [{"position": [0, 0, 0]}]}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({**DOT, "coordinateSystem": "IJK"}, "'IJK', and only LPS and RAS"),
        ({**DOT, "coordinateUnits": "cm"}, "unit is 'cm'"),
        (
            {"type": "Fiducial", "controlPoints": [{"position": [0, None, 0]}]},
            "position of point 1 must be 3",
        ),
        ({"type": "Fiducial", "controlPoints": [{}]}, "position of point 1 must be 3"),
        ({"type": "Fiducial", "controlPoints": [{"positionStatus": "lost"}]}, "positionStatus 'lost'"),
        ({"type": "Curve", "controlPoints": [{"position": [0, 0, 0]}]}, "a line of 1 points"),
        ({**ROI, "size": [2, 0, 6]}, "without volume"),
        ({k: v for k, v in ROI.items() if k != "orientation"}, "orientation must be 9"),
        ({**ROI, "orientation": [0] * 9}, "no rotation"),
        ({"type": "Plane"}, "holds no point, line or box"),
    ],
)
def test_a_bad_file_of_slicer_is_one_line(node, words, tmp_path):
    path = slicer_file(tmp_path, node)
    with pytest.raises(DataError) as raised:
        read_markups(path)
    assert str(raised.value).startswith(str(path)) and words in str(raised.value)


def test_files_of_other_kinds_are_refused(tmp_path):
    made = slicer_file(tmp_path, DOT, schema="https://example.org/other.json")
    with pytest.raises(DataError, match="@schema is not markups-schema-v1"):
        read_markups(made)
    for name, text, words in [
        ("a.json", '{"points": []}', "no markups of this package or of 3D Slicer"),
        ("b.json", '{"format": "deepatlas-markups", "space": "LPS"}', "space is 'LPS', and it must be RAS"),
        (
            "c.json",
            '{"format": "deepatlas-markups", "space": "RAS", "points": [{"name": "a"}]}',
            "incomplete",
        ),
        ("d.mrk.json", "{", "damaged, no JSON"),
        ("e.csv", "name,x,y\na,1,2\n", "no column z"),
        ("f.csv", "name,x,y,z\na,1,2,nan\n", "line 2: x, y, z must be numbers"),
        ("g.csv", "name,x,y,z,ax\na,1,2,3,1\n", "no column ay, az"),
        ("h.csv", "name,x,y,z,ax,ay,az,bx,by,bz,cx,cy,cz\na,1,2,3,1,0,0,0,1,0,0,0,0\n", "no volume"),
        ("i.txt", "", "no file of points or boxes"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words) as raised:
            read_markups(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))


def test_a_sheared_box_loses_its_shear_and_says_how_much(tmp_path):
    """An affine map from atlas to exam shears; an ROI of 3D Slicer cannot."""
    map_ = np.eye(4)
    map_[0, 1], map_[1, 1] = 0.3, 0.8
    sheared = turned_box("left orbit").moved(map_)
    (note,) = write_markups(tmp_path / "a.mrk.json", Markups(boxes=(sheared,)))
    assert "'left orbit'" in note and "right angles" in note and "mm" in note
    (box,) = read_markups(tmp_path / "a.mrk.json").boxes
    np.testing.assert_allclose(box.edges, sheared.edges)
    np.testing.assert_allclose(box.axes, sheared.upright()[0].axes, atol=1e-9)
    # The other formats keep it.
    assert write_markups(tmp_path / "a.json", Markups(boxes=(sheared,))) == []
    np.testing.assert_allclose(read_markups(tmp_path / "a.json").boxes[0].axes, sheared.axes)


COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
ROW = "1,1.5,-2,3,0,0,0,1,1,1,0,tip,seen,\n"


@pytest.mark.parametrize(
    ("system", "want"),
    [("LPS", [-1.5, 2, 3]), ("1", [-1.5, 2, 3]), ("RAS", [1.5, -2, 3]), ("0", [1.5, -2, 3])],
)
def test_fcsv_in_every_system(system, want, tmp_path):
    path = tmp_path / "a.fcsv"
    path.write_text(
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n{COLUMNS}{ROW}\n"
    )
    (point,) = read_markups(path).points
    assert (point.name, point.note) == ("tip", "seen")
    np.testing.assert_allclose(point.position, want)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"# Markups fiducial file version = 4.6\n{COLUMNS}{ROW}", "states no coordinate system"),
        ("tip,1,2,3,1,1\n", "states no coordinate system"),
        (f"# CoordinateSystem = 2\n{COLUMNS}{ROW}", "in the system '2'"),
        (f"# CoordinateSystem = LPS\n{COLUMNS}1,a,2,3\n", "point 1: x, y, z must be numbers"),
        (f"# CoordinateSystem = LPS\n{COLUMNS}", "holds no point"),
    ],
)
def test_a_bad_fcsv_is_one_line(text, words, tmp_path):
    (tmp_path / "a.fcsv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_markups(tmp_path / "a.fcsv")


def test_fcsv_is_written_on_request(tmp_path):
    whole = markups()
    notes = write_markups(tmp_path / "a.fcsv", Markups(points=whole.points))
    assert notes == ["1 points without a position left out: apex"]
    text = (tmp_path / "a.fcsv").read_text()
    assert (
        "# CoordinateSystem = LPS\n" in text and '\n1,-1.25,2.0,3.5,0,0,0,1,1,1,0,"tip, left",seen,\n' in text
    )
    same(read_markups(tmp_path / "a.fcsv"), Markups(points=whole.points[:1]))
    with pytest.raises(WriteError, match="points alone"):
        write_markups(tmp_path / "b.fcsv", whole)
    with pytest.raises(WriteError, match="use one of"):
        write_markups(tmp_path / "b.vtk", whole)
    assert [p.name for p in tmp_path.iterdir()] == ["a.fcsv"]


ODD = (None, True, -1, 1e999, 10**400, "", "LPS", [], [1], {}, {"position": 3}, [[1, 2, 3]], "x" * 300)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["a.mrk.json", "a.json"]))
def test_whatever_an_entry_holds_there_is_one_line_or_a_result(data, name, tmp_path):
    write_markups(tmp_path / name, markups())
    whole = json.loads((tmp_path / name).read_text())
    place, places = whole, []
    while isinstance(place, dict | list) and place:
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1)
        )
        places.append((place, key))
        place = place[key]
    inside, key = data.draw(st.sampled_from(places))
    inside[key] = data.draw(st.sampled_from(ODD))
    check_damaged(tmp_path / name, json.dumps(whole).encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.mrk.json", "a.json", "a.csv", "a.fcsv"]),
    at=st.floats(0, 1),
    with_=st.binary(max_size=9),
)
def test_damaged_bytes_give_one_line_or_a_result(name, at, with_, tmp_path):
    write_markups(tmp_path / name, markups() if name.endswith("json") else Markups(points=markups().points))
    raw = (tmp_path / name).read_bytes()
    cut = int(at * len(raw))
    check_damaged(tmp_path / name, raw[:cut] + with_ + raw[cut + len(with_) :])


def test_a_table_or_tree_beyond_the_limits_of_the_parser_is_one_line(tmp_path):
    for name, text in (
        ("a.csv", 'name,x,y,z\n"' + "a" * 200_000 + '",1,2,3\n'),
        ("a.fcsv", f'# CoordinateSystem = LPS\n{COLUMNS}"' + "a" * 200_000),
        ("a.json", "[" * 100_000),
        ("a.mrk.json", "[" * 100_000),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="damaged"):
            read_markups(tmp_path / name)


def check_damaged(path, raw: bytes) -> None:
    """Read a damaged file: any other error than ours is a failure of the test."""
    path.write_bytes(raw)
    try:
        read_markups(path, [])
    except DataError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 1000


@pytest.mark.parametrize("name", ["a.mrk.json", "a.json", "a.csv", "a.fcsv"])
def test_a_full_disk_leaves_nothing(name, tmp_path, monkeypatch):
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_markups(tmp_path / name, Markups(points=markups().points))
    assert list(tmp_path.iterdir()) == []
