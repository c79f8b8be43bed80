"""Every command through ``main``, with a model whose coordinates are known, and once in a separate process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings

import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, LABELS, AffineModel, exam
from small_dataset import write_dataset

from deepatlas import checkpoint
from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.engines import ENGINES
from deepatlas.errors import DataWarning, DeepAtlasError, guarded
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.kind import exam_name
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.folder import exam_path
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template

AFFINE = ("--model", "affine")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two labelled exams and a broken one."""
    root = tmp_path_factory.mktemp("data")
    for name, grid in (("e1", "coarse"), ("e2", "anisotropic")):
        ct, seg = exam(GRIDS[grid], name)
        write_volume(root / name / "ct.nii.gz", ct)
        write_volume(root / name / "seg.nii.gz", seg)
    (root / "labels.json").write_text(json.dumps(LABELS))
    (root / "broken").mkdir()
    (root / "broken" / "ct.nii.gz").write_bytes(b"garbage")
    (root / "broken" / "seg.nii.gz").write_bytes(b"garbage")
    return root


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    """``--model affine`` stands for the model with known coordinates. All other models are loaded as usual."""
    load = Model.load

    def known(name, **settings):
        if name != "affine":
            return load(name, **settings)
        model = AffineModel()
        model.refine, model.average = settings["refine"], settings["average"]
        return model

    monkeypatch.setattr(Model, "load", known)


@pytest.fixture(scope="module")
def template(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "t.h5"
    build_template(AffineModel(), data, ["e1"], size=64).save(path)
    return path


def run(capsys, *argv) -> tuple[int, str, str]:
    """The exit code of a command, and what it prints on stdout and on stderr."""
    code = cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_refinement_reaches_the_model_and_the_template_says_what_it_was_made_with(data, tmp_path, capsys):
    t, out = tmp_path / "t.h5", tmp_path / "seg"
    made = run(capsys, "template", *AFFINE, "--data", data, "--exams", "e1", "--out", t, "--size", 64,
               "--refine", 3)  # fmt: skip
    assert made[0] == 0 and Template.load(t).meta["refine"] == 3
    for given in ((), ("--refine", 5)):
        assert run(capsys, "segment", *AFFINE, "--template", t, data / "e2", "--out", out, *given)[0] == 0
    code, text, _ = run(capsys, "evaluate", *AFFINE, "--template", t, "--data", data, "--exams", "e2",
                        "--out", tmp_path / "report", "--refine", 4, "--no-pictures", "--json")  # fmt: skip
    assert code == 0 and json.loads((tmp_path / "report" / "summary.json").read_text())["refine"] == 4
    with pytest.raises(SystemExit) as stopped:
        cli.main(["segment", *AFFINE, "--template", str(t), "e2", "--out", str(out), "--refine", "-1"])
    assert stopped.value.code == 2 and "a whole number, 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.slow(1)
def test_template_segment_and_evaluate_work_together(data, tmp_path, capsys):
    t = tmp_path / "t.h5"
    code, out, err = run(capsys, "template", *AFFINE, "--data", data, "--out", t, "--size", 64, "--json")
    result = json.loads(out)
    assert code == 0 and result["exams"] == ["e1", "e2"] and result["labels"] == LABELS
    assert (
        "broken" in result["skipped"] and "deepatlas: skipped broken:" in err and "template 1/3 liver" in err
    )

    code, out, err = run(capsys, "segment", *AFFINE, "--template", t, data / "e1", data / "e2" / "ct.nii.gz",
                         "--out", tmp_path / "seg", "--json", "--quiet")  # fmt: skip
    assert code == 0 and err == "" and set(json.loads(out)["segmented"]) == {"e1", "e2"}
    assert json.loads((tmp_path / "seg" / "labels.json").read_text()) == LABELS
    for name in ("e1", "e2"):
        truth = read_volume(data / name / "seg.nii.gz", labels=True)
        found = read_volume(tmp_path / "seg" / f"{name}.nii.gz", labels=True)
        assert found.grid.matches(truth.grid, 1e-3)
        assert min(dice(truth.array == i, found.array == i) for i in LABELS.values()) > 0.9

    code, out, err = run(
        capsys, "evaluate", *AFFINE, "--template", t, "--data", data, "--out", tmp_path / "eval"
    )
    assert code == 0 and "mean over structures" in out and "eq. 16" in out and "report.html" in out
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {
        "metrics.csv", "summary.json", "report.html", "figures"
    }  # fmt: skip
    assert "deepatlas: skipped broken" in err


@pytest.mark.parametrize("source", ["data", "image"])
def test_templates_of_the_same_exams_share_coordinates_that_are_kept(
    source, data, tmp_path, capsys, monkeypatch
):
    given = ["--data", data, "--exams", "e1"] if source == "data" else ["--image", data / "e1" / "ct.nii.gz"]
    given += [] if source == "data" else ["--masks", data / "e1" / "seg.nii.gz"]
    argv = ["template", *AFFINE, *given, "--size", 32, "--cache", tmp_path / "kept", "--quiet"]
    assert run(capsys, *argv, "--out", tmp_path / "a.h5")[0] == 0
    assert len(list((tmp_path / "kept").iterdir())) == 1

    def gone(*_):
        raise AssertionError("a pass of the network")

    monkeypatch.setattr(AffineModel, "map_exam", gone)
    assert run(capsys, *argv, "--out", tmp_path / "b.h5", "--structures", "liver")[0] == 0
    a, b = Template.load(tmp_path / "a.h5"), Template.load(tmp_path / "b.h5")
    np.testing.assert_array_equal(a.select(["liver"]).masks, b.masks)
    with pytest.raises(AssertionError, match="a pass of the network"):
        run(capsys, *argv, "--out", tmp_path / "c.h5", "--no-cache")


def test_masks_of_another_template_keep_their_names(data, template, tmp_path, capsys):
    argv = ("segment", *AFFINE, data / "e1", "--out", tmp_path / "o", "--quiet")
    assert run(capsys, *argv, "--template", template)[0] == 0
    fewer = tmp_path / "fewer.h5"
    Template.load(template).select(["liver"]).save(fewer)
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    code, _, err = run(capsys, *argv, "--template", fewer)
    assert (
        code == 1
        and err.count("\n") == 1
        and "labels.json: names other structures than this template, model or" in err
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before
    assert run(capsys, *argv, "--template", template)[0] == 0


def test_segment_continues_after_a_bad_exam_and_fails_in_the_end(data, template, tmp_path, capsys):
    argv = ("segment", "--model", "affine", "--template", template, data, "--out", tmp_path / "o")
    code, out, err = run(capsys, *argv, "--json")
    assert code == 1
    result = json.loads(out)
    assert set(result["segmented"]) == {"e1", "e2"} and set(result["failed"]) == {"broken"}
    assert "deepatlas: skipped broken:" in err and "broken/ct.nii.gz" in err
    tables = {"labels.json", "labels.label", "labels.ctbl"}
    assert {p.name for p in (tmp_path / "o").iterdir()} == {*tables, "e1.nii.gz", "e2.nii.gz"}
    code, out, err = run(capsys, *argv, "--strict", "--quiet")
    assert code == 1 and out == "" and err.count("\n") == 1 and err.startswith("deepatlas: error: ")


def test_structures_are_chosen_from_a_template_by_any_spelling(data, template, tmp_path, capsys):
    argv = ("segment", *AFFINE, "--template", template, data / "e1", "--out", tmp_path / "o", "--quiet")
    assert run(capsys, *argv, "--structures", "SPLEEN", "hepar")[0] == 0
    # The files keep the names and ids of the template.
    written = {"spleen": LABELS["spleen"], "liver": LABELS["liver"]}
    assert json.loads((tmp_path / "o" / "labels.json").read_text()) == written
    found = read_volume(tmp_path / "o" / "e1.nii.gz", labels=True).array
    assert set(np.unique(found)) == {0, *written.values()}
    # An exam behind the option is not taken for a structure in silence.
    code, _, err = run(capsys, *argv, "--structures", "liver", data / "e2")
    assert code == 1 and err.startswith(f"deepatlas: error: {template}: no structure '{data / 'e2'}'; ")
    assert err.count("\n") == 1
    code, out, _ = run(capsys, "evaluate", *AFFINE, "--template", template, "--data", data, "--exams", "e1",
                       "--out", tmp_path / "e", "--no-pictures", "--structures", "Liver", "--json")  # fmt: skip
    assert code == 0 and list(json.loads(out)["structures"]) == ["liver"]
    code, _, err = run(
        capsys, "template", *AFFINE, "--data", data, "--out", tmp_path / "t.h5", "--structures", "livr"
    )
    assert (
        code == 1 and "no structure 'livr'; did you mean liver?" in err and not (tmp_path / "t.h5").exists()
    )


def test_locate_writes_the_points_of_every_target(data, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("name,x,y,z\ncarina,1,2,3\nfar,-20,10,30\n")
    argv = ("locate", *AFFINE, "--from", data / "e1", "--to", data, "--points", tmp_path / "p.csv")
    code, out, err = run(capsys, *argv, "--out", tmp_path / "out.csv", "--quiet")
    # One of the targets cannot be read.
    assert code == 1 and "skipped broken" in err
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [r["target"] for r in rows] == ["e1", "e1", "e2", "e2"]
    for row, want in zip(rows, [(1, 2, 3), (-20, 10, 30)] * 2, strict=True):
        assert row["found"] == "true"
        np.testing.assert_allclose([float(row[c]) for c in "xyz"], want, atol=0.02)


def test_a_template_of_another_model_needs_any_model(data, template, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(AffineModel, "fingerprint", "another")
    argv = ("segment", "--model", "affine", "--template", template, data / "e1", "--out", tmp_path / "o")
    code, _, err = run(capsys, *argv)
    assert code == 1 and "made for the model affine-model" in err and "--any-model" in err
    assert not (tmp_path / "o").exists()
    code, _, err = run(capsys, *argv, "--any-model")
    assert code == 0 and "warning" in err and (tmp_path / "o" / "e1.nii.gz").is_file()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("info", "{tmp}/none.pt"), "none.pt"),
        (("template", *AFFINE, "--data", "{tmp}/none", "--out", "{tmp}/t.h5"), "no such data directory"),
        (("template", *AFFINE, "--data", "{data}", "--exams", "e9", "--out", "{tmp}/t.h5"), "no exam 'e9'"),
        (("segment", *AFFINE, "--template", "{tmp}/no.h5", "{data}/e1", "--out", "{tmp}/o"), "no.h5"),
        (("evaluate", "--model", "{tmp}/none", "--template", "t", "--data", "d", "--out", "o"), "none"),
        (("prepare", "{tmp}/none", "{tmp}/x"), "no such file or folder"),
        (("prepare", "{data}"), "no destination; give DST"),
        (("prepare", "{data}", "{tmp}/x", "--shard", "0/2", "--merge"), "--merge comes after"),
        (("phantom", "{tmp}/p", "--exams", "0"), "--exams must be at least 1"),
        (("phantom", "{tmp}/p", "--first", "-1"), "--first must be at least 0"),
        (("locate", *AFFINE, "--from", "{data}/e1", "--to", "{data}/e2", "--points", "{tmp}/no.csv",
          "--out", "{tmp}/o.csv"), "no.csv"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_exit_1(data, tmp_path, capsys, argv, words):
    code, out, err = run(capsys, *[a.format(tmp=tmp_path, data=data) for a in argv])
    assert code == 1 and out == ""
    assert err.startswith("deepatlas: error: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_two_exams_of_one_name_are_refused(data, template, tmp_path, capsys):
    other = tmp_path / "e1" / "ct.nii.gz"
    other.parent.mkdir()
    other.write_bytes((data / "e1" / "ct.nii.gz").read_bytes())
    code, _, err = run(capsys, "segment", "--model", "affine", "--template", template, data / "e1", other,
                       "--out", tmp_path / "o")  # fmt: skip
    assert code == 1 and "has the same name (e1)" in err
    assert exam_name(data / "scan.of.me.nii.gz") == "scan.of.me"


@pytest.mark.slow(5)
def test_prepare_and_phantom_write_their_folders(data, tmp_path, capsys):
    code, out, err = run(capsys, "prepare", data, tmp_path / "x", "--json", "--quiet", "--workers", 1)
    result = json.loads(out)
    assert code == 0 and result["exams"] == 2 and "broken" in result["refused"]
    assert err.count("\n") == 1 and err.startswith("deepatlas: skipped broken: ")
    code, out, _ = run(capsys, "phantom", tmp_path / "p", "--exams", 1, "--first", 4, "--seed", 3, "--quiet")
    assert code == 0 and [p.parent.name for p in (tmp_path / "p").glob("*/ct.nii.gz")] == ["phantom_0004"]
    assert (tmp_path / "p" / "labels.json").is_file()


def test_prepare_offers_every_engine(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    assert f"--engine {{{','.join(ENGINES)}}}" in capsys.readouterr().out


def test_info_shows_versions_the_backend_and_the_model(capsys):
    code, out, _ = run(capsys, "info", "--json")
    result = json.loads(out)
    assert code == 0 and result["ops"]["backend"] in ("native", "torch")
    assert {"deepatlas", "python", "packages", "devices"} <= set(result)
    code, out, _ = run(capsys, "info", "affine")
    assert code == 0 and "fingerprint: affine-model" in out and "backend" in out


def described(capsys, *argv) -> dict:
    code, out, err = run(capsys, "info", *argv, "--json")
    assert code == 0 and err == ""
    plain = run(capsys, "info", *argv)[1]
    assert plain.count("\n") < 40
    return json.loads(out)


@pytest.mark.slow(1)
def test_info_describes_what_a_path_holds(data, template, tmp_path, capsys):
    about = described(capsys, template)
    assert set(about["structures"]) == set(LABELS) and about["model"] == "affine-model"
    assert about["exams"] == ["e1"] and about["voxels"] == [64, 64, 64]

    about = described(capsys, data)
    assert (about["exams"], about["labelled"], about["structures"]) == (3, 3, list(LABELS))

    # The geometry as nibabel tells it.
    image = nibabel.load(data / "e2" / "ct.nii.gz")
    for path in (data / "e2" / "ct.nii.gz", data / "e2"):
        about = described(capsys, path)
        assert about["voxels"] == list(image.shape)
        np.testing.assert_allclose(about["spacing_mm"], image.header.get_zooms(), atol=1e-3)
        assert about["axes"] == "".join(nibabel.aff2axcodes(image.affine))

    store = prepare_cohort(data, tmp_path / "s.h5", progress=False)
    about = described(capsys, store.path)
    store.close()
    assert (about["exams"], about["labelled"]) == (2, 2) and "broken" in about["skipped"]

    write_dataset(tmp_path / "dataset")
    about = described(capsys, tmp_path / "dataset")
    assert (about["exams"], about["labelled"], about["structures"]) == (3, 2, ["bone", "lung"])
    about = described(capsys, exam_path(tmp_path / "dataset", "e1"))
    assert about["id"] == "e1" and about["structures"] == ["bone", "lung"]


def test_info_describes_a_run_that_has_not_ended(tmp_path, capsys):
    asked = {"config": {"preset": "tiny"}, "request": {"data": "exams", "init": "headneck"}}
    (tmp_path / "config.json").write_text(json.dumps(asked))
    about = described(capsys, tmp_path)
    assert (about["preset"], about["data"], about["from"]) == ("tiny", "exams", "headneck")
    assert about["finished"].startswith("no (before its first checkpoint)")
    state = {"done": ["coarse"], "overall": 30, "seconds": 4.0, "pending": {"phase": "level-2"}}
    checkpoint.save(tmp_path / checkpoint.NAME, state)
    about = described(capsys, tmp_path)
    assert about["phases done"] == ["coarse"] and about["steps"] == 30
    assert about["finished"] == f"no (in level-2); continue it with --resume {tmp_path}"


def test_info_takes_a_model_by_either_argument(capsys):
    code, out, _ = run(capsys, "info", "--model", "headneck", "--json")
    assert code == 0 and json.loads(out)["model"]["crop"] == "midline"
    assert json.loads(run(capsys, "info", "headneck", "--json")[1]) == json.loads(out)
    assert list(json.loads(out))[0] == "model"
    code, _, err = run(capsys, "info", "headneck", "--model", "headneck")
    assert code == 1 and "give one of them" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n0000", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["x.h5", "x.pt", "x.txt", "x.nii.gz", "x"])
def test_info_on_a_file_that_nobody_knows_is_one_line(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    code, out, err = run(capsys, "info", tmp_path / name)
    assert code == 1 and out == "" and err.count("\n") == 1 and str(tmp_path / name) in err


def test_exit_codes_of_interrupts_and_usage(monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "load", stop)
    code, out, err = run(capsys, "template", "--model", "m", "--data", "d", "--out", "o")
    assert (code, out, err) == (130, "", "deepatlas: interrupted\n")
    assert guarded(lambda: 7) == 7
    for argv in ([], ["nonsense"], ["segment"], ["evaluate", "--threshold", "2"]):
        with pytest.raises(SystemExit) as leave:
            cli.main(argv)
        assert leave.value.code == 2
    for broken in (OSError("no\nroom"), DeepAtlasError("bad")):

        def fail(error=broken):
            raise error

        capsys.readouterr()
        assert guarded(fail) == 1
        assert capsys.readouterr().err.count("\n") == 1
    # A bug must show its traceback.
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_train_receives_every_argument(monkeypatch):
    import deepatlas.train.__main__ as train

    seen = []
    monkeypatch.setattr(train, "main", lambda argv: seen.append(argv) or 0)
    assert cli.main(["train", "--preset", "tiny", "seed=1", "--help"]) == 0
    assert seen == [["--preset", "tiny", "seed=1", "--help"]]


@pytest.mark.slow(2)
def test_python_m_deepatlas_fails_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "deepatlas", "prepare", str(tmp_path / "none"), str(tmp_path / "x.h5")],
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("deepatlas: error: ") and done.stderr.count("\n") == 1


def test_warnings_are_lines_of_ours_on_the_command_line_only(tmp_path, capsys):
    def warns(error=None):
        warnings.warn("two\nlines", DataWarning, stacklevel=1)
        if error:
            raise error
        return 0

    shown = warnings.showwarning
    assert guarded(warns) == 0
    assert capsys.readouterr().err == "deepatlas: warning: two lines\n"
    assert guarded(warns, DeepAtlasError("bad")) == 1
    assert capsys.readouterr().err == "deepatlas: warning: two lines\ndeepatlas: error: bad\n"
    assert warnings.showwarning is shown
    with pytest.warns(DataWarning, match="two"):
        warns()


@pytest.mark.slow(2)
def test_an_unusual_exam_gives_one_line_without_a_line_of_code(data, template, tmp_path):
    ct = read_volume(data / "e1" / "ct.nii.gz")
    path = write_volume(tmp_path / "odd.nii", ct)
    header = bytearray(path.read_bytes())
    # The codes that say how the voxels lie.
    header[252:256] = bytes(4)
    path.write_bytes(header)
    script = (
        "import sys\nfrom affine_model import AffineModel\nfrom deepatlas.api import Model\n"
        "from deepatlas.cli.main import main\nModel.load = lambda *_, **__: AffineModel()\nsys.exit(main())\n"
    )
    argv = ("segment", *AFFINE, "--template", template, "odd.nii", "--out", "o", "--quiet")
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, encoding="utf-8", cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "no orientation" in line]
    assert len(lines) == 1 and lines[0].startswith("deepatlas: warning: odd.nii: "), done.stderr
    assert "Warning:" not in done.stderr and "warnings.warn" not in done.stderr


def test_info_says_none_where_there_is_nothing():
    from deepatlas.cli.info import _outline

    assert _outline({"lines": [], "a": None, "b": {"c": [1, 2]}}) == [
        "lines: none",
        "a: none",
        "b:",
        "  c: 1, 2",
    ]
