"""What the server of the page answers, against exams with known anatomy, and against the other commands."""

from __future__ import annotations

import json
import threading

import h5py
import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, LABELS, SCALE
from served import (
    EXAMS,
    STRANGER,
    Client,
    KnowingModel,
    grid_in,
    serving,
    session_of,
    shifted,
    template,
    unpack,
    write_exams,
)  # fmt: skip
from small_exams import one_line

from deepatlas.api import Model
from deepatlas.cli.main import build_parser, main
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import read_markups
from deepatlas.localize.points import locate
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume
from deepatlas.view.gallery import Gallery
from deepatlas.view.marks import MOST_MARKS, Mark, Marks, mask_to_dict
from deepatlas.view.picture import picture
from deepatlas.view.server import serve
from deepatlas.view.session import Session
from deepatlas.view.shown import labels_body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_exams(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server(folder):
    with serving(session_of(folder)) as it:
        yield it


@pytest.fixture
def client(server):
    it = Client(server)
    yield it
    it.post("/api/marks/change", {"delete": [m["id"] for m in it.post("/api/marks", {})["marks"]]})


@pytest.fixture(scope="module")
def ids(server):
    return {exam.name: exam.id for exam in server.session.gallery}


def body(client, path):
    answer = client.ask(path)
    assert answer.status == 200, answer.data
    return unpack(answer.data)


@pytest.mark.parametrize("name", ["plain", "moved"])
def test_a_picture_is_the_exam_as_nibabel_reads_it(client, ids, folder, name):
    header, arrays = body(client, f"/api/exam/{ids[name]}/picture")
    image = nibabel.as_closest_canonical(nibabel.load(folder / name / "ct.nii.gz"))
    np.testing.assert_array_equal(arrays["image"], np.asarray(image.dataobj).T)
    np.testing.assert_allclose(header["affine"], image.affine, atol=1e-3)
    assert arrays["image"].dtype == np.int16
    # The test's exams have flat organs, which is unusual.
    assert [line for line in header["lines"] if "clipped" not in line] == []


def test_an_oblique_exam_is_turned_to_the_axes_of_the_patient(client, ids, folder):
    header, arrays = body(client, f"/api/exam/{ids['oblique']}/picture")
    grid = grid_in(header)
    np.testing.assert_allclose(grid.affine[:3, :3], np.diag(np.diag(grid.affine[:3, :3])), atol=1e-9)
    assert any("oblique grid (22 degrees)" in line for line in header["lines"])
    # The body is where it is in the file, in millimetres.
    native = read_volume(folder / "oblique" / "ct.nii.gz")
    truth = native.grid.voxel_to_world(np.argwhere(native.array > -500)[:, ::-1]).mean(axis=0)
    shown = grid.voxel_to_world(np.argwhere(arrays["image"] > -500)[:, ::-1]).mean(axis=0)
    np.testing.assert_allclose(shown, truth, atol=0.3)


def test_a_large_exam_is_averaged_to_256_voxels_and_says_so(client, ids):
    header, arrays = body(client, f"/api/exam/{ids['large']}/picture")
    assert max(arrays["image"].shape) <= 256
    assert "large (281 × 59 × 37 voxels), shown with 140 × 59 × 37" in header["lines"][0]
    grid = EXAMS["large"][0]
    np.testing.assert_allclose(grid_in(header).spacing, np.array(grid.spacing) * [2, 1, 1])
    shown, lines = picture(
        Volume(
            np.arange(600.0).reshape(1, 1, 600).repeat(4, 0).repeat(4, 1), type(grid)((4, 4, 600), np.eye(4))
        )
    )
    np.testing.assert_array_equal(shown.array[0, 0, :3], [1, 4, 7])
    assert shown.grid.shape == (4, 4, 200) and len(lines) == 1


@pytest.mark.parametrize("name", ["plain", "moved", "oblique", "large"])
def test_the_coordinates_that_are_sent_are_those_of_the_anatomy(client, ids, name):
    header, arrays = body(client, f"/api/exam/{ids[name]}/coordinates")
    grid, coords = grid_in(header), arrays["coords"].astype(np.float64)
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    place = grid.voxel_to_world(np.stack([x, y, z], axis=-1))
    truth = (shifted(place) if name == "moved" else place) / SCALE
    seen = arrays["flags"] & 1 > 0
    assert seen.mean() > 0.7
    # Half precision near 1 has steps of a thousandth: 0.04 mm here.
    np.testing.assert_allclose(np.moveaxis(coords, 0, -1)[seen], truth[seen], atol=2e-3)
    inside = arrays["flags"] == 3
    assert inside.mean() > 0.1 and inside.mean() < 0.9
    assert (header["fit"], header["known"], header["warning"]) == (0.8, True, "")
    np.testing.assert_allclose(header["unit_mm"], SCALE, rtol=0.01)


def test_an_exam_that_is_not_known_says_so(client, ids):
    header, _ = body(client, f"/api/exam/{ids[STRANGER]}/coordinates")
    assert (header["fit"], header["known"]) == (0.1, False)
    assert "does not know such an exam (fit 0.10, known are those from 0.50)" in header["warning"]


@pytest.mark.parametrize("name", ["plain", "moved"])
def test_structures_are_those_of_segment(client, ids, folder, name):
    _, arrays = body(client, f"/api/exam/{ids[name]}/masks")
    model = KnowingModel()
    volume = read_volume(folder / name / "ct.nii.gz")
    volume.name = name
    expected = segment(model, volume, template(model)).canonical()
    np.testing.assert_array_equal(arrays["labels"], expected.array)
    header, _ = body(client, f"/api/exam/{ids[name]}/masks")
    for identity in LABELS.values():
        volume_ml = (expected.array == identity).sum() * expected.grid.voxel_volume / 1000
        assert header["millilitres"][str(identity)] == pytest.approx(volume_ml)


def test_what_structures_hide_of_each_other_is_sent_as_well():
    grid = GRIDS["coarse"]
    array = np.zeros(grid.shape, np.uint8)
    array[3:9, 3:9, 3:9] = 1
    array[5:7, 5:7, 5:7] = 2
    hidden = np.zeros(grid.shape, bool)
    hidden[5:7, 5:7, 5:7] = True
    header, arrays = unpack(labels_body(Labels(array, grid, "x", {1: BoxMask.of(hidden)})))
    np.testing.assert_array_equal(arrays["labels"], array)
    box = header["hidden"]["1"]
    bits = np.unpackbits(arrays["hidden1"], count=8).reshape(box["shape"])
    assert box["start"] == [5, 5, 5] and bits.all()
    assert header["millilitres"]["1"] == pytest.approx(6**3 * grid.voxel_volume / 1000)


def test_the_atlas_lies_in_its_own_coordinates(client):
    header, arrays = body(client, "/api/exam/atlas/picture")
    np.testing.assert_allclose(grid_in(header).corners()[[0, -1]], [[-1, -1, -1], [1, 1, 1]])
    # The window of the network from black to white.
    np.testing.assert_array_equal(np.unique(arrays["image"]), [-256, round(0.54 * 512 - 256)])
    _, masks = body(client, "/api/exam/atlas/masks")
    assert set(np.unique(masks["labels"])) == {0, *LABELS.values()}


def point(exam, at=(22.0, 4.0, -8.0), name="tip", identity="p1"):
    return {"id": identity, "kind": "point", "name": name, "exam": exam, "at": list(at)}


def painted(exam, grid, centre, radius, name="lump", identity="m1"):
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    place = grid.voxel_to_world(np.stack([x, y, z], axis=-1))
    mask = BoxMask.of(((place - centre) ** 2).sum(-1) < radius**2)
    return {"id": identity, "kind": "mask", "name": name, "exam": exam, "mask": mask_to_dict(mask)}


def put(client, *marks):
    return client.post("/api/marks/change", {"put": list(marks), "delete": []})


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


def test_many_requests_at_once_pass_each_exam_through_the_network_once(folder):
    passes = []

    class Counting(KnowingModel):
        def map_exam(self, volume):
            passes.append(volume.name)
            return super().map_exam(volume)

    model = Counting()
    gallery = Gallery([folder])
    session = Session(gallery, lambda: (model, template(model)), title="counting")
    names = ("plain", "moved", "oblique")
    with serving(session) as server:
        client = Client(server)
        wanted = [
            f"/api/exam/{gallery.named(n).id}/{part}"
            for n in names
            for part in ("masks", "coordinates", "picture")
        ]
        threads = [threading.Thread(target=client.ask, args=(path,)) for path in wanted * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(passes) == sorted(names)


def test_the_exams_are_listed_before_the_model_is_loaded(folder):
    let = threading.Event()
    model = KnowingModel()

    def load():
        let.wait(20)
        return model, None

    with serving(Session(Gallery([folder]), load, title="slow")) as server:
        client = Client(server)
        assert [exam["name"] for exam in client.get("/api/session")["exams"]] == sorted(EXAMS)
        let.set()
        assert client.get("/api/model")["structures"] == []
        exam = client.get("/api/session")["exams"][0]["id"]
        assert b"no template was given" in client.ask(f"/api/exam/{exam}/masks").data


def test_a_model_that_cannot_be_loaded_ends_the_server(folder):
    from deepatlas.view.server import Server

    def load():
        raise DeepAtlasError("no such model")

    error = serve(Server(Session(Gallery([folder]), load, title="gone")))
    assert isinstance(error, DeepAtlasError) and str(error) == "no such model"


# -- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["headneck", "nowhere.nii.gz"], "nowhere.nii.gz: no such file or folder"),
        (["nothing", "--no-browser"], "no run folder or model file there"),
        (["headneck", "--template", "{other}", "--no-browser"], "made for the model affine-model"),
        (["headneck", "--template", "missing.h5", "--no-browser"], "no such template file"),
        (["headneck", "--port", "{port}", "--no-browser"], "is in use by another program"),
        (["headneck", "--marks", "{marks}", "--no-browser"], "damaged file of marks"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_ends_the_command_with_one_line(arguments, line, server, tmp_path, capsys):
    other = tmp_path / "other.h5"
    template(KnowingModel()).save(other)
    marks = tmp_path / "marks.json"
    marks.write_text("{")
    given = [a.format(other=other, port=server.gate.port, marks=marks) for a in arguments]
    assert main(["view", *given, "--quiet"]) == 1
    errors = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert len(errors) == 1 and line in errors[0]


def test_the_shipped_model_comes_with_its_template(folder):
    from deepatlas.cli.view import open_server

    args = build_parser().parse_args(
        ["view", "headneck", str(folder / "plain"), "--data", str(folder), "--no-browser"]
    )
    server = open_server(args)
    try:
        assert isinstance(server.session.model, Model)
        assert len(server.session.template.names) == 7
        # The exam that was named is shown at first, and all of the folder can be chosen.
        names = {exam.id: exam.name for exam in server.session.gallery}
        assert [names[i] for i in server.session.opened] == ["plain"] and len(names) == len(EXAMS)
    finally:
        server.server_close()


def test_a_template_file_is_what_the_page_says(client, tmp_path, ids):
    put(client, painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14))
    (tmp_path / "t.h5").write_bytes(client.download({"what": "template"})[1])
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["format"] == "deepatlas-template"
