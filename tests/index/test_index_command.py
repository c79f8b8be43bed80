"""``deepatlas index`` as a user calls it: processes, the shipped model, and what it refuses."""

from __future__ import annotations

import json

import pytest
from small_exams import write_cohort

from deepatlas.cli.main import main

HEADNECK = ("--model", "headneck", "--template", "headneck")


@pytest.mark.slow
def test_index_describes_a_data_directory_in_processes(tmp_path, capsys):
    data = write_cohort(tmp_path / "data", 2)
    assert main(["index", str(data), *HEADNECK, "--fast", "--jobs", "1", "--json", "--quiet"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["exams"], done["added"], done["failed"]) == (2, 2, {})
    assert main(["query", str(data), "labelled", "--json"]) == 0
    (exam,) = json.loads(capsys.readouterr().out)["exams"]
    # An elliptic trunk is no head, and the model says so.
    assert exam["id"] == "e1" and exam["known"] is False and exam["body_part"] is None
    assert main(["index", str(data), *HEADNECK, "--fast", "--jobs", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 0
    assert main(["index", str(data), *HEADNECK, "--jobs", "1", "--quiet"]) == 1
    assert "made with --refine 0, not 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{data}", "--shard", "0/2", *HEADNECK], "give --out FILE"),
        (["{data}", "--out", "{data}", *HEADNECK], "is a folder"),
        (["{data}", "--out", "{data}/e1/ct.nii.gz", *HEADNECK], "suffix of another format"),
        (["{data}", "--trust", *HEADNECK, "--structures", "Larynx"], "no calibration"),
        (["{data}", "--average", "2", *HEADNECK], "--average"),
        (["{data}", "--depth", "0", *HEADNECK], "--depth"),
        (["{data}/none", *HEADNECK], "no such data directory"),
        (
            ["{data}/none.sqlite", "--merge", "--model", "headneck", "--out", "{data}/i.sqlite"],
            "no such index",
        ),
    ],
)
def test_what_cannot_be_indexed_is_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    data = write_cohort(tmp_path / "data", 2)
    # A shipped template may be calibrated by now; here it is not.
    from deepatlas.localize.template.file import Template

    load = Template.load

    def plain(path):
        found = load(path)
        found.meta.pop("trust", None)
        return found

    monkeypatch.setattr(Template, "load", plain)
    assert main(["index", *(a.format(data=data) for a in arguments), "--quiet"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and len(error) == 1
    assert not (data / "index.sqlite").exists()
