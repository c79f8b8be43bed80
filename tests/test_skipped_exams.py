"""Exams that are skipped: one line each, also with ``--quiet``, and in the result; errors are in the JSON too."""

from __future__ import annotations

import json
import shutil

import pytest
from affine_model import GRIDS, LABELS, AffineModel, exam
from fast_settings import FAST
from prepare_here import in_this_process
from small_exams import write_cohort

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams, named_exams
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.presets import preset
from deepatlas.train.data import open_store
from deepatlas.train.log import RunLog
from deepatlas.train.request import Request


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A labelled exam, a broken one, and a folder without a CT."""
    root = tmp_path_factory.mktemp("data") / "exams"
    ct, seg = exam(GRIDS["coarse"], "e1")
    write_volume(root / "e1" / "ct.nii.gz", ct)
    write_volume(root / "e1" / "seg.nii.gz", seg)
    (root / "labels.json").write_text(json.dumps(LABELS))
    (root / "broken").mkdir()
    for name in ("ct", "seg"):
        (root / "broken" / f"{name}.nii.gz").write_bytes(b"garbage")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def template(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "t.h5"
    build_template(AffineModel(), data, ["e1"], size=32).save(path)
    return path


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    monkeypatch.setattr(Model, "load", lambda *_, **__: AffineModel())


@pytest.fixture
def here():
    with in_this_process():
        yield


def commands(data, template, out):
    (out / "p.csv").write_text("name,x,y,z\ncarina,1,2,3\n")
    model = ("--model", "affine")
    return {
        "template": [*model, "--data", data, "--out", out / "t.h5", "--size", 32],
        "segment": [*model, "--template", template, data, "--out", out / "o"],
        "evaluate": [*model, "--template", template, "--data", data, "--out", out / "o", "--no-pictures"],
        "locate": [*model, "--from", data / "e1", "--to", data, "--points", out / "p.csv", "--out", out / "f.csv"],
        "prepare": [data, out / "dst", "--keep-ids"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["template", "segment", "evaluate", "locate", "prepare"])
def test_a_command_lists_each_skipped_exam_once_also_if_quiet(data, template, tmp_path, capsys, name, here):
    argv = [name, *map(str, commands(data, template, tmp_path)[name]), "--quiet", "--json"]
    cli.main(argv)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("deepatlas: skipped ")]
    result = json.loads(printed.out)
    listed = (result.get("skipped") or {}) | (result.get("failed") or {}) | (result.get("refused") or {})
    # A source of `prepare` has no layout, so that a folder without a CT is nothing at all.
    assert set(listed) == ({"broken"} if name == "prepare" else {"broken", "empty"})
    assert sorted(line.split(": ")[1].removeprefix("skipped ") for line in lines) == sorted(listed)
    assert all(reason in printed.err for reason in listed.values())


@pytest.mark.parametrize("name", ["template", "segment", "evaluate", "locate", "prepare"])
def test_strict_stops_with_the_error_in_the_json(data, template, tmp_path, capsys, name, here):
    argv = [name, *map(str, commands(data, template, tmp_path)[name]), "--strict", "--quiet"]
    assert cli.main(argv) == 1
    plain = capsys.readouterr()
    assert plain.out == "" and plain.err.count("\n") == 1
    assert cli.main([*argv, "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == plain.err
    assert json.loads(printed.out) == {"error": plain.err.strip().removeprefix("deepatlas: error: ")}


def test_many_refused_exams_are_cut_short_on_the_screen_alone(tmp_path, capsys, here):
    src = write_cohort(tmp_path / "src", 2)
    for i in range(30):
        (src / f"bad{i}.nii.gz").write_bytes((src / "e1" / "ct.nii.gz").read_bytes()[: 3000 + i])
    assert cli.main(["prepare", str(src), str(tmp_path / "dst"), "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 21 and lines[-1].startswith("deepatlas: skipped 10 more, in ")
    assert len(json.loads(printed.out)["refused"]) == 30


def test_the_log_of_a_run_notes_an_exam_once_and_tells_two_of_one_name_apart(tmp_path, capsys):
    log = RunLog(tmp_path, quiet=True)
    for data, reason in (
        ("a", "x/ct: damaged"),
        ("a", "x/ct: damaged"),
        ("b", "y/ct: empty"),
        ("b", "y/ct: empty"),
    ):
        log.skip("x", reason, data)
    log.skip("z", "x/ct: damaged", "a")
    log.close()
    assert log.skipped == {"x": "x/ct: damaged", "b/x": "y/ct: empty", "z": "x/ct: damaged"}
    assert capsys.readouterr().err.splitlines() == [
        "deepatlas: skipped x: x/ct: damaged",
        "deepatlas: skipped x: y/ct: empty",
        "deepatlas: skipped z: x/ct: damaged",
    ]


@pytest.mark.slow
def test_a_run_lists_what_it_skips_once_and_in_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    root = write_cohort(tmp_path / "exams", 4)
    test = tmp_path / "test"
    shutil.copytree(root, test)
    for folder in (root, test):
        (folder / "broken").mkdir()
        (folder / "broken" / "ct.nii.gz").write_bytes(b"garbage")
        shutil.copy(folder / "e1" / "seg.nii.gz", folder / "broken" / "seg.nii.gz")
    argv = [
        "--data",
        str(root),
        "--test",
        str(test),
        "--out",
        str(tmp_path / "run"),
        "--preset",
        "tiny",
        *FAST,
        # What a run does between the two is not the subject.
        *("loss.similarity=intensity", "network.channels=[8,16]", "train.steps=[1,1]", "train.head_steps=0"),
        "refine.steps=0",
    ]
    assert cli.main(["train", *argv, "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["skipped"]) == {"broken", "test/broken"} and json.loads(printed.out) == result
    assert printed.err.count("skipped broken: ") == 2


def test_the_store_of_a_run_notes_skipped_exams_in_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    root = write_cohort(tmp_path / "exams", 2)
    (root / "broken").mkdir()
    (root / "broken" / "ct.nii.gz").write_bytes(b"garbage")
    log = RunLog(tmp_path, quiet=True)
    open_store(root, preset("tiny"), Request(out="x", data=str(root)), log, progress=False).close()

    log.close()
    assert set(log.skipped) == {"broken"} and capsys.readouterr().err.count("\n") == 1


def test_an_error_of_train_is_json_too(tmp_path, capsys):
    assert cli.main(["train", "--data", str(tmp_path / "none"), "--json"]) == 1
    printed = capsys.readouterr()
    assert "no such data directory" in json.loads(printed.out)["error"] and printed.err.count("\n") == 1


def test_skipped_folders_reach_callers_of_named_exams(data):
    skipped: dict[str, str] = {}
    assert set(named_exams([data], skipped)) == {"e1", "broken"}
    assert skipped == find_exams(data).skipped and set(skipped) == {"empty"}
    with pytest.raises(DataError, match="no such data directory"):
        find_exams(data / "none")
