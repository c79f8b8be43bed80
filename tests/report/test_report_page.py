"""Reports as one page: of a run, of exams and of a comparison."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from affine_model import ANATOMY, GRIDS, LABELS, exam
from believed import calibrated
from made_evaluations import many, row, write_evaluation
from scipy.ndimage import gaussian_filter
from served import STRANGER, KnowingModel, template, write_exams
from small_exams import one_line

from deepatlas.api import Model
from deepatlas.cli import report
from deepatlas.cli.main import main
from deepatlas.config import Config
from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.cohort import ExamFiles, named_exams
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.report.exams import report_exams
from deepatlas.report.run import report_run
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The tags, the text and the tables of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def pictures(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


def insist_on_self_contained(page: Page) -> None:
    """The page loads nothing and runs nothing."""
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"#|data:image/png;base64,", attrs.get(name) or "#"), (tag, attrs)


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    folder = write_exams(tmp_path_factory.mktemp("data"), ("plain", "oblique", STRANGER))
    return named_exams([folder])


@pytest.mark.slow(1)
def test_exams_have_their_structures_in_pictures_and_in_a_table(exams, tmp_path):
    model = KnowingModel()
    given = {EVIL: exams["plain"], "oblique": exams["oblique"]}
    done = report_exams(model, template(model), given, tmp_path / "r.html")
    assert list(done.fits) == list(given) and done.failed == {} and done.trust == {}
    page = Page(tmp_path / "r.html")
    insist_on_self_contained(page)
    assert EVIL in page.text
    assert len(page.pictures()) == 2 and all(p["src"].startswith("data:image/png") for p in page.pictures())
    rows = {row[0]: row for row in page.rows[1:4]}
    assert list(rows) == list(LABELS)
    for name, (identity, _, radii) in ANATOMY.items():
        assert float(rows[name][1]) == pytest.approx(4 / 3 * np.pi * np.prod(radii) / 1000, rel=0.08)
        # The smaller half of some voxels at the border belongs to the body.
        assert float(rows[name][3]) == pytest.approx(60 + 10 * identity, abs=6)
        assert rows[name][2] == ""
    assert "Fit 0.80, known" in page.text


@pytest.mark.slow(2)
def test_an_exam_that_is_not_known_or_cannot_be_read_is_said(exams, tmp_path):
    model = KnowingModel()
    missing = ExamFiles("gone", tmp_path / "gone.nii.gz")
    given = {STRANGER: exams[STRANGER], "gone": missing}
    done = report_exams(model, template(model), given, tmp_path / "r.html")
    assert list(done.fits) == [STRANGER] and list(done.failed) == ["gone"]
    page = Page(tmp_path / "r.html")
    numbers = "2exams 1could not be used 3structures 1not known to the model"
    assert numbers in " ".join(page.text.split())
    assert "does not know such an exam (fit 0.10" in page.text and "Cannot be used:" in page.text
    with pytest.raises(DataError, match="does not know"):
        report_exams(model, template(model), given, tmp_path / "s.html", strict=True)
    with pytest.raises(DataError, match="no exam can be used"):
        report_exams(model, template(model), {"gone": missing}, tmp_path / "s.html")
    assert not (tmp_path / "s.html").exists()


@pytest.mark.slow(1)
def test_trust_has_its_columns_and_its_calibration_is_shown(exams, tmp_path):
    model = KnowingModel()
    names = list(LABELS)
    believed = calibrated(template(model), tuple(names[1:]))
    report_exams(model, believed, {"plain": exams["plain"]}, tmp_path / "r.html", trust=True)
    page = Page(tmp_path / "r.html")
    insist_on_self_contained(page)
    assert page.rows[0][-2:] == ["trust: predicted Dice", "9 of 10 reach"]
    rows = {row[0]: row[-2:] for row in page.rows[1 : 1 + len(names)]}
    labels = segment(model, read_volume(exams["plain"].ct), believed, trust=True)
    assert (
        rows[names[0]] == ["–", "–"] and "No trust: no labelled exam of the calibration shows it" in page.text
    )
    for name in names[1:]:
        one = labels.trust[name]
        assert rows[name] == [f"{one.value:.2f}", f"{one.bound:.2f}"] and 0 < one.bound < one.value < 1
    assert "How far trust can be believed" in page.text and len(page.pictures()) == 2
    facts = believed.meta["trust"]["facts"]
    first = [names[1], "20", f"{facts['structures'][names[1]]['dice']:.2f}"]
    assert first in [row[:3] for row in page.rows]
    # Without a calibration the reason is said, and nothing is shown that nobody knows.
    report_exams(model, template(model), {"plain": exams["plain"]}, tmp_path / "s.html", trust=True)
    plain = Page(tmp_path / "s.html")
    assert "No trust: the template has no calibration" in plain.text
    assert {tuple(row[-2:]) for row in plain.rows[1:4]} == {("–", "–")} and len(plain.pictures()) == 1


def test_the_threshold_counts_and_how_much_of_a_structure_there_is_is_said(tmp_path):
    model = KnowingModel()
    ct, _ = exam(GRIDS["plain"], "part")
    # The liver is cut off a third of its height above its middle.
    (_, centre, radii) = ANATOMY["liver"]
    level = int(ct.grid.world_to_voxel(np.array([[0, 0, centre[2] + radii[2] / 3]]))[0, 2])
    write_volume(
        tmp_path / "part.nii.gz", ct.cropped((level, 0, 0), (ct.grid.shape[0] - level, *ct.grid.shape[1:]))
    )
    exams = named_exams([tmp_path / "part.nii.gz"])
    # A soft mask, so that thresholds differ.
    made = template(model)
    soft = replace(made, masks=np.stack([gaussian_filter(mask, 2) for mask in made.masks]))
    volumes = {}
    for threshold in (0.2, 0.8):
        report_exams(model, soft, exams, tmp_path / "r.html", threshold=threshold)
        rows = {row[0]: row for row in Page(tmp_path / "r.html").rows[1:4]}
        assert re.fullmatch(r"cut off, [1-4]\d % shown", rows["liver"][2])
        expected = segment(model, read_volume(tmp_path / "part.nii.gz"), soft, threshold)
        for name, identity in LABELS.items():
            volume = expected.mask(identity).sum() * expected.grid.voxel_volume / 1000
            assert rows[name][1] == (f"{volume:.2f}" if volume else "not found")
        volumes[threshold] = float(rows["liver"][1])
    assert volumes[0.2] > 1.3 * volumes[0.8]


def test_the_command_gives_trust_as_json_and_says_why_there_is_none(exams, tmp_path, capsys, monkeypatch):
    model = KnowingModel()
    monkeypatch.setattr(report, "load_model", lambda args: model)
    plain, believed = template(model), calibrated(template(model), tuple(LABELS)[1:])
    arguments = ["report", str(exams["plain"].ct.parent), "--model", "x", "--trust", "--json", "--quiet"]
    arguments += ["--out", str(tmp_path / "r.html")]
    for made, known in ((believed, list(LABELS)[1:]), (plain, [])):
        monkeypatch.setattr(report, "load_template", lambda args, model, made=made: made)
        assert main(arguments) == 0
        printed = capsys.readouterr()
        trust = json.loads(printed.out)["exams"]["plain"]["structures"]
        assert list(trust) == list(LABELS) and all({"trust", "bound"} <= set(one) for one in trust.values())
        assert [name for name, one in trust.items() if one["trust"] is not None] == known
        lines = [line for line in printed.err.splitlines() if "no trust of" in line]
        assert len(lines) == 1
        assert ("no labelled exam" in lines[0]) if known else ("has no calibration" in lines[0])


def test_an_exam_of_the_wrong_kind_is_named_by_its_file(tmp_path, exams):
    model = Model.load("headneck", refine=0)
    write_volume(
        tmp_path / "mr" / "ct.nii.gz", Volume(np.full((9, 9, 9), 90, np.int16), Grid((9, 9, 9), np.eye(4)))
    )
    given = {"mr": ExamFiles("mr", tmp_path / "mr" / "ct.nii.gz"), "plain": exams["plain"]}
    with pytest.warns(DataWarning) as warned:
        done = report_exams(model, Template.load("headneck"), given, tmp_path / "r.html")
    assert done.failed["mr"].startswith(f"{tmp_path / 'mr' / 'ct.nii.gz'}: ")
    # What is odd about an exam is on the page as well.
    text = Page(tmp_path / "r.html").text
    for one in warned:
        assert str(one.message).removeprefix(f"{exams['plain'].ct}: ") in text


def write_run(folder: Path) -> Path:
    """A run in the middle of its training."""
    folder.mkdir()
    saved = {"config": Config().to_dict(), "request": {"data": [EVIL], "init": None}}
    (folder / "config.json").write_text(json.dumps(saved))
    lines = [{"phase": "register", "step": i, "overall": i, "total": 1 / (i + 1)} for i in range(1, 9)]
    # A line that is being written.
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"phase": "reg')
    return folder


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path):
    run = write_run(tmp_path / "run")
    assert report_run(run, tmp_path / "r.html") == {
        "steps": 8, "finished": False, "dice": None, "refined_dice": None,
    }  # fmt: skip
    page = Page(tmp_path / "r.html")
    insist_on_self_contained(page)
    assert "not finished; continue it" in page.text and EVIL in page.text
    assert [p["alt"] for p in page.pictures()] == ["Every logged number over the steps of the run"]
    assert ["train.batch", json.dumps(Config().train.batch)] in page.rows


def test_a_finished_run_has_its_card_its_score_and_its_pictures(tmp_path):
    import shutil

    from deepatlas.pretrained import FOLDER

    run = write_run(tmp_path / "run")
    shutil.copyfile(FOLDER / "headneck" / "model.pt", run / "model.pt")
    refined = {"steps": 20, "dice": 0.8964}
    (run / "result.json").write_text(
        json.dumps({"dice": 0.7231, "structures": {"liver": 0.9}, "refined": refined})
    )
    write_evaluation(run / "evaluation", [row("pt_1", EVIL, 0.75, 4.0)])
    write_evaluation(run / "evaluation-refined", [row("pt_1", EVIL, 0.85, 3.0)])
    png = bytes.fromhex("89504e470d0a1a0a")
    (run / "figures").mkdir()
    for name in ("overview", "level-3"):
        (run / "figures" / f"{name}.png").write_bytes(png)
    assert report_run(run, tmp_path / "r.html") == {
        "steps": 8, "finished": True, "dice": 0.7231, "refined_dice": 0.8964,
    }  # fmt: skip
    page = Page(tmp_path / "r.html")
    assert [EVIL, "1", "0.750"] in [cells[:3] for cells in page.rows]
    assert [EVIL, "1", "0.850"] in [cells[:3] for cells in page.rows]
    assert "0.896Dice with 20 steps of refinement" in page.text
    assert "0.723" in page.text and "Exams are known from a fit of 0.56" in page.text
    assert len(page.pictures()) == 3
    assert ["structures.liver", "0.9"] in page.rows


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("config.json", "{", "damaged"),
        ("config.json", "[]", "no run"),
        ("config.json", None, "no run"),
        ("log.jsonl", '{"a": 1}', "damaged log"),
        ("log.jsonl", '{"phase": "x", "overall": 1}}', "damaged log"),
        ("result.json", "{", "damaged"),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, file, text, line):
    run = write_run(tmp_path / "run")
    (run / file).unlink(missing_ok=True)
    if text is not None:
        (run / file).write_text(text)
    with pytest.raises(DataError, match=line) as caught:
        report_run(run, tmp_path / "r.html")
    one_line(caught.value)
    assert not (tmp_path / "r.html").exists()


def test_several_evaluations_become_the_page_of_compare(tmp_path, capsys):
    one, two = many(tmp_path, ["one", "two"], ["liver", "spleen"], 4)
    assert main(["report", f"first={one}", f"second={two}", "--out", str(tmp_path / "r.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiments"] == ["first", "second"]
    page = Page(tmp_path / "r.html")
    insist_on_self_contained(page)
    assert "Comparison of experiments" in page.text and "second" in page.text


def test_the_command_reports_a_run_and_refuses_what_it_cannot(tmp_path, exams, capsys):
    run = write_run(tmp_path / "run")
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    exam = str(exams["plain"].ct)
    for arguments, line in (
        ([str(run), "--out", str(tmp_path / "r.pdf.csv")], "suffix of another format"),
        ([str(tmp_path), "--out", str(tmp_path / "s.html")], "no run"),
        ([exam, "--template", "headneck", "--out", str(tmp_path / "s.html")], "give --model M as well"),
        ([exam, "--trust", "--out", str(tmp_path / "s.html")], "give --model M as well"),
        ([str(run), "--threshold", "0.4", "--out", str(tmp_path / "s.html")], "--threshold: is for exams"),
        ([str(run), "--shape-only", "--out", str(tmp_path / "s.html")], "--shape-only: is for exams"),
        ([str(run), "--average", "3", "--out", str(tmp_path / "s.html")], "--average: is for exams"),
        ([str(run), "--fast", "--out", str(tmp_path / "s.html")], "--refine: is for exams"),
        ([exam, "--model", "headneck", "--out", str(tmp_path / "s.html")], "needs --template"),
    ):
        assert main(["report", *arguments]) == 1
        assert line in capsys.readouterr().err
    assert not (tmp_path / "s.html").exists()
