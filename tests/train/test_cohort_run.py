"""A run on two data directories, of which a split file names the parts."""

from __future__ import annotations

import json

import pytest
from small_crops import SETTINGS, write_crops

from deepatlas.cli.main import main as command
from deepatlas.train.__main__ import main


def start(*arguments) -> int:
    return main(
        [*map(str, arguments), "--preset", "mr", "--device", "cpu", "--quiet", *SETTINGS, "distil.steps=[]"]
    )


@pytest.fixture
def cohorts(no_pictures, tmp_path, monkeypatch):
    """Two data directories; the exams e1 to e3 have labels, and e4 to e6 do, too."""
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    a = write_crops(tmp_path / "a")
    for folder in (a / "e4").iterdir():
        folder.unlink()
    (a / "e4").rmdir()
    b = write_crops(tmp_path / "b", first=4)
    split = {"train": ["e1", "e2"], "validation": ["e3"], "labelled": ["e2"]}
    (a / "splits.json").write_text(json.dumps(split))
    return a, b


@pytest.mark.slow(4)
def test_a_run_and_the_commands_after_it_keep_to_the_split(cohorts, tmp_path, capsys):
    a, b = cohorts
    run = tmp_path / "run"
    assert start("--data", a, "--data", b, "--out", run) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["template_exams"] == ["e2"] and result["test_exams"] == ["e3"]
    saved = json.loads((run / "config.json").read_text())["request"]
    assert saved["data"] == [str(a), str(b)]
    assert saved["parts"]["train"] == ["e1", "e2", "e4", "e5", "e6", "e7"] and saved["parts"]["labelled"] == [
        "e2"
    ]
    model = ["--model", str(run), "--data", str(a), "--data", str(b), "--fast", "--quiet", "--json"]
    capsys.readouterr()
    template = str(tmp_path / "t.h5")
    assert command(["template", *model, "--out", template]) == 0
    assert json.loads(capsys.readouterr().out)["exams"] == ["e2"]
    score = ["evaluate", *model, "--template", template, "--no-pictures", "--out"]
    assert command([*score, str(tmp_path / "validation")]) == 0
    assert list(json.loads(capsys.readouterr().out)["seconds"]["per_exam"]) == ["e3"]
    assert command([*score, str(tmp_path / "train"), "--part", "train"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["seconds"]["per_exam"]) == ["e1", "e2", "e4", "e5", "e6"] and found["unlabelled"] == [
        "e7"
    ]
    assert command([*score, str(tmp_path / "none"), "--part", "test"]) == 1
    assert "names no part 'test'" in capsys.readouterr().err
    assert command(["info", str(a), "--json"]) == 0
    assert '"labelled": 1' in capsys.readouterr().out


def test_bad_cohorts_leave_no_run(cohorts, tmp_path, capsys):
    a, b = cohorts
    run, own = tmp_path / "run", tmp_path / "own.json"

    def refused(*arguments) -> str:
        capsys.readouterr()
        assert start(*arguments, "--out", run) == 1
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1 and not run.exists()
        return error

    own.write_text('{"train": ["e1", "e99"]}')
    assert "train names exam 'e99', which the data lack" in refused("--data", a, "--split", own)
    assert "is given twice" in refused("--data", a, "--data", a)
    assert "a split is one of data" in refused("--split", own)
    (b / "e1").mkdir()
    assert "has an exam 'e1', as" in refused("--data", a, "--data", b)
    assert "setting data.limit must be null or a fraction in (0, 1]" in refused("--data", a, "data.limit=0")
