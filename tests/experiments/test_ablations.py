"""Ablations: which settings run, that finished ones are not run again, and the table of the results."""

import json
import os

import pytest
from fast_settings import FAST

from deepatlas.exams.phantoms import write_phantoms
from deepatlas.experiments import ablations, tables
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import preset


def test_every_setting_differs_from_the_default_and_is_valid():
    for name in ("tiny", "headneck"):
        base = preset(name)
        settings = ablations.settings(base)
        assert [s.name for s in settings[:3]] == ["default", "default seed=1", "default seed=2"]
        changed = [base.override(s.assignments()).validate() for s in settings[3:]]
        assert base not in changed and len({json.dumps(c.to_dict()) for c in changed}) == len(changed) >= 15


@pytest.mark.skipif(
    not os.environ.get("DEEPATLAS_LONG_TESTS"), reason="three short runs; DEEPATLAS_LONG_TESTS=1 runs it"
)
def test_a_directory_is_scored_and_what_is_finished_is_not_run_again(tmp_path, monkeypatch, capsys):
    for part, exams in (("train", range(3)), ("test", [3])):
        write_phantoms(PhantomCohort(seed=0), tmp_path / part, exams, progress=False)
    out, work = tmp_path / "out.json", tmp_path / "work"
    smallest = [s for s in FAST if "phantom" not in s and "train.steps" not in s]
    arguments = [
        str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--out", str(out), "--work", str(work),
        "--preset", "tiny", "--set", *smallest, "network.channels=[8,16]", "train.steps=[1,1]", "--only",
    ]  # fmt: skip
    assert ablations.main([*arguments, "loss.prewitt=0.0"]) == 0
    trained = []
    train = ablations.train
    monkeypatch.setattr(ablations, "train", lambda given: trained.append(given[1]) or train(given))
    assert ablations.main([*arguments, "loss.prewitt=0.0", "default"]) == 0
    # Neither the shared start nor the finished setting is trained again.
    assert trained == [str(work / "default")]
    saved = json.loads(out.read_text())
    assert (
        set(saved["results"]) == {"loss.prewitt=0.0", "default"} and saved["base"]["loss"]["prewitt"] == 0.5
    )
    runs = [
        json.loads((work / name / "config.json").read_text())["config"]
        for name in ("default", "loss.prewitt=0.0")
    ]
    assert (
        runs[0]["loss"].pop("prewitt") == 0.5 and runs[1]["loss"].pop("prewitt") == 0 and runs[0] == runs[1]
    )
    for result in saved["results"].values():
        assert 0 <= result["dice"] <= 1 and len(result["dice_per_structure"]) > 10
    assert "| `loss.prewitt=0.0` |" in capsys.readouterr().out
    assert ablations.main([*arguments[:-1], "train.batch=3", "--only", "default"]) == 1
    assert "holds runs of another default" in capsys.readouterr().err


def test_the_table_shows_the_spread_of_the_default():
    def result(error, changes=None):
        return {"changes": changes or {}, "coordinate_error_mm": error, "dice": 0.5, "folds": 0.001}

    results = {"default": result(10.0), "default seed=1": result(11.5), "x=1": result(8.0, {"x": 1})}
    assert tables.table(results, ablations.DEFAULT).splitlines() == [
        "| setting | error, mm | Dice | folds, % |",
        "| --- | --- | --- | --- |",
        "| default, 2 seeds | 10.75 (spread 1.50) | 0.500 (spread 0.000) | 0.10 (spread 0.00) |",
        "| `default` | 10.00 | 0.500 | 0.10 |",
        "| `default seed=1` | 11.50 | 0.500 | 0.10 |",
        "| `x=1` | 8.00 | 0.500 | 0.10 |",
    ]
