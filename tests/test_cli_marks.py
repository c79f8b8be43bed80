"""The commands that carry points, lines, boxes and masks, with a model whose coordinates are known."""

from __future__ import annotations

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, LABELS, SCALE, exam
from affine_user import AffineUser

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import read_markups, write_markups
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import NO_ERROR
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups, Point, Polyline

AFFINE = ("--model", "affine")
LINEAR = np.array([[0.95, 0.12, 0.0], [-0.12, 1.05, 0.0], [0.0, 0.0, 1.08]])
SHIFT = np.array([3.0, -4.0, 5.0])
TURN, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
TURN = TURN * np.linalg.det(TURN)
POINTS = Markups((Point("carina", (5.0, -4.0, 12.0)), Point("far", (-20.0, 10.0, 30.0))))
LINES = Markups(POINTS.points, (Polyline("spine", [(0, -20, -30), (2, -18, 0), (1, -21, 28)]),))
BOXES = Markups(boxes=(Box("chest", (4.0, 3.0, 2.0), TURN @ np.diag((20.0, 14.0, 17.0))),))


def to_anatomy(place):
    return place @ LINEAR.T + SHIFT


def to_exam(place):
    return (np.asarray(place) - SHIFT) @ np.linalg.inv(LINEAR).T


class Passes:
    count = 0


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    """``--model affine`` and a run folder stand for the model with known coordinates, of which e2 has another map."""
    Passes.count = 0

    def known(name, **settings):
        model = AffineUser()
        model.refine, model.average = settings["refine"] or 0, settings["average"]
        plain = model.map_exam

        def counted(volume):
            Passes.count += 1
            model.maps = {volume.name: to_anatomy} if "e2" in volume.name else {}
            return plain(volume)

        model.map_exam = counted
        return model

    monkeypatch.setattr(Model, "load", known)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two exams; what is drawn in the first lies beside it, in several formats."""
    root = tmp_path_factory.mktemp("data")
    for name, grid, to in (("e1", "oblique", None), ("e2", "flipped", to_anatomy)):
        ct, seg = exam(GRIDS[grid], name, to)
        write_volume(root / name / "ct.nii.gz", ct)
        write_volume(root / name / "seg.nii.gz", seg)
    (root / "labels.json").write_text(json.dumps(LABELS))
    write_markups(root / "points.csv", POINTS)
    write_markups(root / "lines.mrk.json", LINES)
    write_markups(root / "points.fcsv", POINTS)
    write_markups(root / "boxes.mrk.json", BOXES)
    write_markups(root / "boxes.csv", BOXES)
    return root


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow(1)
def test_propagate_carries_masks_points_and_boxes_without_a_template(data, tmp_path, capsys):
    out = tmp_path / "o"
    code, text, err = run(capsys, "propagate", *AFFINE, "--from", data / "e1", "--masks", data / "e1" / "seg.nii.gz",
                          "--points", data / "lines.mrk.json", "--boxes", data / "boxes.csv",
                          "--to", data / "e1", data / "e2", "--out", out, "--each",
                          "--format", "json", "--json", "--quiet")  # fmt: skip
    assert (code, err) == (0, "")
    result = json.loads(text)
    assert result["labels"] == LABELS == json.loads((out / "labels.json").read_text())
    assert result["marks"]["e2"] == {"asked": 4, "found": 4}
    mine, true = nibabel.load(out / "e2.nii.gz"), nibabel.load(data / "e2" / "seg.nii.gz")
    np.testing.assert_allclose(mine.affine, true.affine, atol=1e-4)
    for name, identity in LABELS.items():
        truth = np.asarray(true.dataobj) == identity
        assert dice(np.asarray(mine.dataobj) == identity, truth) > 0.93
        assert dice(np.asarray(nibabel.load(out / "e2" / f"{name}.nii.gz").dataobj) == 1, truth) > 0.93
    marks = read_markups(out / "e2.json")
    np.testing.assert_allclose(
        [p.position for p in marks.points], to_exam([p.position for p in POINTS.points]), atol=0.05
    )
    np.testing.assert_allclose(marks.lines[0].points, to_exam(LINES.lines[0].points), atol=0.05)
    np.testing.assert_allclose(marks.boxes[0].corners(), to_exam(BOXES.boxes[0].corners()), atol=0.1)


def test_exams_of_one_name_keep_their_own_coordinates(data, tmp_path, capsys):
    for name in ("e1", "e2"):
        (tmp_path / name).mkdir()
        shutil.copy(data / name / "ct.nii.gz", tmp_path / name / "img.nii.gz")
    there = [Point(p.name, tuple(to_exam(p.position))) for p in POINTS.points]
    write_markups(tmp_path / "there.csv", Markups(tuple(there)))
    sources = [tmp_path / name / "img.nii.gz" for name in ("e1", "e2")]
    code, _, err = run(capsys, "propagate", *AFFINE, "--from", *sources, "--points", data / "points.csv",
                       tmp_path / "there.csv", "--to", data / "e1", "--out", tmp_path / "o", "--quiet")  # fmt: skip
    assert (code, err) == (0, "")
    found = read_markups(tmp_path / "o" / "e1.mrk.json").points
    want = [p.position for p in POINTS.points]
    np.testing.assert_allclose([p.position for p in found], want, atol=0.05)


def test_a_template_holds_everything_and_is_described_and_used(data, tmp_path, capsys):
    t = tmp_path / "t.h5"
    e1 = data / "e1"
    code, text, _ = run(capsys, "template", *AFFINE, "--image", e1 / "ct.nii.gz", "--masks", e1 / "seg.nii.gz",
                        "--labels", data / "labels.json", "--points", data / "lines.mrk.json",
                        "--boxes", data / "boxes.mrk.json", "--box", "organs=liver,heart+10",
                        "--size", 48, "--out", t, "--json")  # fmt: skip
    result = json.loads(text)
    assert code == 0 and result["labels"] == LABELS and result["exams"] == ["e1"]
    assert (result["points"], result["lines"], result["boxes"]) == (
        ["carina", "far"],
        ["spine"],
        ["chest", "organs"],
    )
    code, text, _ = run(capsys, "info", t, "--json")
    about = json.loads(text)
    assert set(about["structures"]) == set(LABELS) and about["boxes"] == ["chest", "organs"]

    code, text, err = run(
        capsys,
        "locate",
        *AFFINE,
        "--template",
        t,
        "--to",
        data / "e2",
        "--out",
        tmp_path / "f.csv",
        "--quiet",
    )
    assert (code, err) == (0, "") and "5 of 5 points, lines and boxes found" in text
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert [(r["name"], r["kind"], r["vertex"]) for r in rows] == [
        ("carina", "point", ""), ("far", "point", ""), *(("spine", "line", str(i)) for i in (1, 2, 3)),
        ("chest", "box", ""), ("organs", "box", ""),
    ]  # fmt: skip
    np.testing.assert_allclose([float(rows[5][c]) for c in "xyz"], to_exam(BOXES.boxes[0].centre), atol=0.1)
    assert float(rows[5]["coverage"]) == 1 and float(rows[5]["shear_degrees"]) > 0.5

    # Only some, as a file of 3D Slicer for one target; the shear that it cannot hold is said.
    one = tmp_path / "one.mrk.json"
    code, _, err = run(capsys, "locate", *AFFINE, "--template", t, "--to", data / "e2", "--out", one, "--quiet",
                       "--structures", "chest", "carina")  # fmt: skip
    assert code == 0 and err.count("\n") == 1 and "degrees off right angles" in err
    back = read_markups(one)
    assert [p.name for p in back.points] == ["carina"] and [b.name for b in back.boxes] == ["chest"]
    assert np.abs(back.boxes[0].centre - to_exam(BOXES.boxes[0].centre)).max() < 0.1


def test_points_without_a_position_are_named_before_they_are_left_out(data, tmp_path, capsys):
    write_markups(tmp_path / "some.mrk.json", Markups((*POINTS.points, Point("later", None))))
    argv = (
        "propagate",
        *AFFINE,
        "--from",
        data / "e1",
        "--to",
        data / "e2",
        "--out",
        tmp_path / "o",
        "--quiet",
    )
    code, _, err = run(capsys, *argv, "--points", tmp_path / "some.mrk.json")
    assert (
        code == 0 and err.count("\n") == 1 and "e1: left out 'later', which no exam has a position of" in err
    )
    assert [p.name for p in read_markups(tmp_path / "o" / "e2.mrk.json").points] == ["carina", "far"]


def test_locate_says_that_nothing_was_written(data, tmp_path, capsys):
    out = tmp_path / "found.csv"
    code, text, err = run(capsys, "locate", *AFFINE, "--from", data / "e1", "--points", data / "points.csv",
                          "--to", tmp_path / "none.nii.gz", "--out", out, "--quiet")  # fmt: skip
    assert code == 1 and "skipped none" in err and not out.exists()
    assert text == f"{out}: not written, since no target could be used\n"


def test_a_template_of_a_data_directory_takes_boxes_too(data, tmp_path, capsys):
    code, text, _ = run(capsys, "template", *AFFINE, "--data", data, "--size", 32, "--out", tmp_path / "t.h5",
                        "--box", "l=liver+20%", "--quiet")  # fmt: skip
    assert code == 0 and "3 structures, 1 box from 2 exams" in text


@pytest.mark.parametrize("given", ["points.csv", "points.fcsv", "lines.mrk.json"])
def test_locate_reads_and_writes_every_format(data, tmp_path, capsys, given):
    for form in ("mrk.json", "fcsv", "json", "csv"):
        if form in ("fcsv", "csv") and given == "lines.mrk.json":
            continue
        argv = (
            "locate",
            *AFFINE,
            "--from",
            data / "e1",
            "--points",
            data / given,
            "--to",
            data / "e1",
            data / "e2",
        )
        code, _, err = run(capsys, *argv, "--out", tmp_path / "o", "--format", form, "--quiet")
        assert (code, err) == (0, "")
        for name, to in (("e1", np.asarray), ("e2", to_exam)):
            found = read_markups(tmp_path / "o" / f"{name}.{form}")
            np.testing.assert_allclose(
                [p.position for p in found.points], to([p.position for p in POINTS.points]), atol=0.05
            )
            assert len(found.lines) == (given == "lines.mrk.json")
    code, _, _ = run(capsys, *argv, "--out", tmp_path / "all.json", "--quiet")
    whole = json.loads((tmp_path / "all.json").read_text())["exams"]
    assert set(whole) == {"e1", "e2"} and whole["e2"]["points"][0]["found"] and whole["e2"]["fit"] == 1


def test_not_in_this_scan_is_an_answer(data, tmp_path, capsys):
    """The target ends above the box and one of the points."""
    whole = read_volume(data / "e1" / "ct.nii.gz")
    upright = exam(GRIDS["plain"], "cut")[0]
    part = upright.cropped((44, 0, 0), (upright.grid.shape[0] - 44, *upright.grid.shape[1:]))
    assert whole.grid.shape and part.grid.voxel_to_world([0, 0, 0])[2] > 14
    write_volume(tmp_path / "cut" / "ct.nii.gz", part)
    code, text, err = run(capsys, "locate", *AFFINE, "--from", data / "e1", "--points", data / "points.csv", "--boxes",
                          data / "boxes.csv", "--to", tmp_path / "cut", "--out", tmp_path / "f.json",
                          "--quiet")  # fmt: skip
    assert (code, err) == (0, "") and "1 of 3" in text
    found = json.loads((tmp_path / "f.json").read_text())["exams"]["cut"]
    assert [p["found"] for p in found["points"]] == [False, True] and found["points"][0]["reason"]
    (box,) = found["boxes"]
    assert not box["found"] and box["coverage"] < 0.5 and "inside the target exam" in box["reason"]


def test_coordinates_are_kept_in_a_folder_or_beside_the_run(data, tmp_path, capsys):
    argv = (
        "locate",
        "--from",
        data / "e1",
        "--points",
        data / "points.csv",
        "--to",
        data / "e1",
        data / "e2",
    )
    for _ in range(2):
        assert (
            run(capsys, *argv, *AFFINE, "--out", tmp_path / "f.csv", "--cache", tmp_path / "c", "--quiet")[0]
            == 0
        )
    assert Passes.count == 2 and len(list((tmp_path / "c").iterdir())) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").touch()
    for _ in range(2):
        assert run(capsys, *argv, "--model", tmp_path / "run", "--out", tmp_path / "f.csv", "--quiet")[0] == 0
    assert Passes.count == 4 and len(list((tmp_path / "run" / "coordinates").iterdir())) == 2
    assert (
        run(capsys, *argv, "--model", tmp_path / "run", "--out", tmp_path / "f.csv", "--quiet", "--no-cache")[
            0
        ]
        == 0
    )
    assert Passes.count == 7
    entry = next((tmp_path / "c").iterdir())
    entry.write_bytes(entry.read_bytes()[:1000])
    code, _, err = run(
        capsys, *argv, *AFFINE, "--out", tmp_path / "f.csv", "--cache", tmp_path / "c", "--quiet"
    )
    assert code == 0 and err.count("\n") == 1 and "they are made again" in err


def test_templates_are_edited(data, tmp_path, capsys):
    for name, masks in (
        ("a", ("--masks", data / "e1" / "seg.nii.gz")),
        ("b", ("--points", data / "points.csv")),
    ):
        assert run(capsys, "template", *AFFINE, "--image", data / "e1", *masks, "--size", 32,
                   "--out", tmp_path / f"{name}.h5", "--quiet")[0] == 0  # fmt: skip
    a, b, out = tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "ab.h5"
    code, text, err = run(capsys, "template-edit", a, b, "--out", out, "--box", "l=liver+5", "--export", tmp_path / "x",
                          "--rename", "liver=big one", f"{b}:carina=bifurcation", "--json")  # fmt: skip
    # The box is put around names as they are after renaming.
    assert code == 1 and "no structure 'liver'" in err and not out.exists()
    code, text, err = run(capsys, "template-edit", a, b, "--out", out, "--box", "l=big one+5",
                          "--export", tmp_path / "x",
                          "--rename", "liver=big one", f"{b}:carina=bifurcation", "--json")  # fmt: skip
    result = json.loads(text)
    assert code == 0 and set(result["labels"]) == {"big one", "spleen", "heart"}
    assert result["points"] == ["bifurcation", "far"] and result["boxes"] == ["l"]
    made = Template.load(out)
    assert made.labels["big one"] == LABELS["liver"]
    np.testing.assert_allclose(made.marks.points[0].position * SCALE, POINTS.points[0].position, atol=0.01)
    assert (tmp_path / "x" / "masks" / "big one.nii.gz").is_file() and (
        tmp_path / "x" / "boxes" / "l.nii.gz"
    ).is_file()
    for option in (("--rename", "nose=ear"), ("--structures", "nose")):
        code, _, err = run(capsys, "template-edit", a, b, "--out", tmp_path / "n.h5", *option)
        assert code == 1 and f"{a}, {b}: no structure 'nose'; " in err and err.count("\n") == 1
    code, _, err = run(
        capsys, "crop", data / "e2", *AFFINE, "--template", a, "--box", "nose", "--out", tmp_path / "c"
    )
    assert code == 1 and f"{a}: no box or structure 'nose'; " in err and not (tmp_path / "c").exists()
    code, _, err = run(capsys, "template-edit", a, out, "--out", tmp_path / "n.h5")
    assert code == 1 and "has a structure 'spleen', and so has" in err and err.count("\n") == 1
    code, _, err = run(capsys, "template-edit", a, "--out", a)
    assert code == 1 and "would be overwritten" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("propagate", "--from", "{d}/e1", "--to", "{d}/e2", "--out", "{t}/o"), "nothing to carry"),
        (("propagate", "--from", "{d}/e1", "--masks", "{d}/e1/seg.nii.gz", "{d}/e2/seg.nii.gz", "--to", "{d}/e2",
          "--out", "{t}/o"), "--masks: 2 files for 1 exams"),
        (("propagate", "--from", "{d}/e1", "--masks", "{d}/e1/seg.nii.gz", "--to", "{d}/e2", "--out", "{d}/e1"),
         None),
        (("propagate", "--from", "{d}/e1", "--points", "{d}/boxes.csv", "--to", "{d}/e2", "--out", "{t}/o"),
         "give it as --boxes"),
        (("locate", "--to", "{d}/e2", "--out", "{t}/o.csv"), "give either --from A"),
        (("locate", "--from", "{d}/e1", "--to", "{d}/e2", "--out", "{t}/o.csv"), "give either --from A"),
        (("locate", "--from", "{d}/e1", "--points", "{d}/boxes.csv", "--to", "{d}/e2", "--out", "{t}/o.csv"),
         "give it as --boxes"),
        (("locate", "--from", "{d}/e1", "--boxes", "{d}/points.csv", "--to", "{d}/e2", "--out", "{t}/o.csv"),
         "give it as --points"),
        (("locate", "--from", "{d}/e1", "--points", "{d}/points.csv", "--to", "{d}/e1", "{d}/e2", "--out",
          "{t}/o.fcsv"), "holds one exam, and there are 2 targets"),
        (("locate", "--from", "{d}/e1", "--points", "{d}/lines.mrk.json", "--to", "{d}/e2", "--out", "{t}/o.fcsv"),
         "fcsv: holds points alone"),
        (("propagate", "--from", "{d}/e1", "--points", "{d}/points.csv", "--boxes", "{d}/boxes.csv", "--to", "{d}/e2",
          "--out", "{t}/o", "--format", "csv"), "csv: a file holds either points or boxes"),
        (("locate", "--from", "{d}/e1", "--points", "{d}/points.csv", "--to", "{d}/e2", "--out", "{t}/o.csv",
          "--cache", "{d}/points.csv"), "the cache of coordinates is a folder"),
        (("template", "--out", "{t}/t.h5"), "give either --data DIR, or --image"),
        (("template", "--image", "{d}/e1", "--out", "{t}/t.h5"), "nothing was drawn in --image"),
        (("template", "--data", "{d}", "--points", "{d}/points.csv", "--out", "{t}/t.h5"), "--points goes with"),
        (("template", "--image", "{d}/e1", "--masks", "{d}/e1/seg.nii.gz", "--box", "b=nose+1", "--out", "{t}/t.h5",
          "--size", "16"), "box b: no structure 'nose'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(data, tmp_path, capsys, argv, words):
    argv = [a.format(d=data, t=tmp_path) for a in argv]
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    code, out, err = run(capsys, argv[0], *AFFINE, *argv[1:], "--quiet")
    if words is None:
        # Masks go beside the exam without touching it.
        assert code == 0 and all(p.stat().st_mtime_ns == t for p, t in before.items() if p.is_file())
        for name in ("e2.nii.gz", "labels.json"):
            (data / "e1" / name).unlink()
        return
    assert code == 1 and out == "" and err.startswith("deepatlas: error: ") and err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_masks_of_other_structures_keep_their_names(data, tmp_path, capsys):
    argv = ("propagate", *AFFINE, "--from", data / "e1", "--masks", data / "e1" / "seg.nii.gz", "--to", data / "e2",
            "--out", tmp_path / "o", "--quiet")  # fmt: skip
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "labels.json").write_text('{"nose": 1}')
    code, _, err = run(capsys, *argv)
    assert (
        code == 1
        and "names other structures" in err
        and (tmp_path / "o" / "labels.json").read_text() == '{"nose": 1}'
    )


def test_two_boxes_of_one_name_are_not_one_view(data, tmp_path, capsys):
    boxes = tmp_path / "two.csv"
    write_markups(boxes, Markups(boxes=(BOXES.boxes[0], BOXES.boxes[0].moved(np.diag([0.5, 0.5, 0.5, 1.0])))))
    argv = ("crop", data / "e2", *AFFINE, "--boxes", boxes, "--from", data / "e1", "--out", tmp_path / "o")
    code, _, err = run(capsys, *argv, "--quiet")
    assert code == 1 and f"{boxes}: two boxes are called 'chest'; rename one of them" in err


def test_locate_asks_for_a_suffix_that_tells_the_format(data, tmp_path, capsys):
    argv = ["locate", *AFFINE, "--from", data / "e1", "--points", data / "points.csv", "--to", data / "e2"]
    code, _, err = run(capsys, *argv, "--out", tmp_path / "found")
    assert code == 1 and "has no suffix that tells the format" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_point_without_an_expected_error_says_why(data, tmp_path, capsys, monkeypatch):
    class Believed:
        evidence, reason = "some", NO_ERROR

        def millimetres(self, points):
            error = np.where(points[:, 0] > 0, 3.0, np.nan)
            return error, error + 2

    monkeypatch.setattr("deepatlas.localize.trust.estimate.exam_trust", lambda *_: Believed())
    meta = {"model": AffineUser().fingerprint, "trust": {"a": 1}}
    made = Template(np.zeros((1, 8, 8, 8), np.float32), ("liver",), (1,), meta)
    made.save(tmp_path / "t.h5")
    given = Markups((*POINTS.points, Point("away", (900.0, 0.0, 0.0))))
    write_markups(tmp_path / "p.csv", given)
    code, text, err = run(capsys, "locate", *AFFINE, "--from", data / "e1", "--points", tmp_path / "p.csv",
                          "--to", data / "e1", "--out", tmp_path / "found.mrk.json", "--trust", tmp_path / "t.h5",
                          "--json", "--quiet")  # fmt: skip
    assert (code, err) == (0, f"deepatlas: warning: e1: no errors in mm: {NO_ERROR}\n")
    written = json.loads((tmp_path / "found.mrk.json").read_text())["markups"][0]["controlPoints"]
    assert [w["description"][:17] for w in written] == ["expected error 4.", "", "outside the sourc"]
    points = json.loads(text)["exams"]["e1"]["points"]
    assert points[0] == {
        "name": "carina",
        "trust": pytest.approx(18**0.5, abs=0.01),
        "bound": points[0]["bound"],
    }
    assert points[0]["bound"] > points[0]["trust"]
    assert points[1] == {
        "name": "far", "trust": None, "bound": None, "reason": "no labelled exam tells the error at this place"
    }  # fmt: skip
    assert points[2] == {"name": "away", "trust": None, "bound": None, "reason": "outside the source exam"}


@pytest.mark.parametrize("command", ["template", "propagate"])
def test_masks_without_names_are_told(data, tmp_path, capsys, command):
    shutil.copytree(data / "e1", tmp_path / "x" / "e1")
    (tmp_path / "x" / "e1" / "seg.nii.gz").rename(tmp_path / "drawn.nii.gz")
    image, masks = tmp_path / "x" / "e1", tmp_path / "drawn.nii.gz"
    given = ("--image", image) if command == "template" else ("--from", image, "--to", image)
    out = tmp_path / ("t.h5" if command == "template" else "o")
    code, _, err = run(capsys, command, *AFFINE, *given, "--masks", masks, "--out", out, "--quiet")
    unnamed = ", ".join(f"structure_{i}" for i in sorted(LABELS.values()))
    assert code == 0 and err.startswith(
        f"deepatlas: warning: {unnamed}: nothing names these structures, neither"
    )
    assert err.count("\n") == 1 and "give --labels FILE" in err
