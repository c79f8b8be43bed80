"""Errors of a run, each in one line and without loss of work; and what it shows while it runs."""

import json
import re
import shutil

import pytest
from fast_settings import FAST
from full_disk import small_files

from deepatlas import checkpoint
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.train.__main__ import main
from deepatlas.train.log import RunLog

SETTINGS = [
    *(s for s in FAST if "phantom" not in s),
    "loss.similarity=intensity",
    "network.channels=[8,16]",
    "train.steps=[1,2]",
    "train.head_steps=0",
]


@pytest.fixture(autouse=True)
def cache(no_pictures, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "cache-of-refusals"
    monkeypatch.setenv("DEEPATLAS_CACHE", str(folder))
    return folder


def start(data, out, *more):
    return ["--data", str(data), "--preset", "tiny", "--out", str(out), "--device", "cpu", *SETTINGS, *more]


@pytest.fixture(scope="module")
def finished(no_pictures, cohort, tmp_path_factory):
    """A run on a copy of the cohort: (data, run)."""
    data, out = (tmp_path_factory.mktemp("finished") / name for name in ("data", "run"))
    shutil.copytree(cohort, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(data.parent / "cache"))
        assert main([*start(data, out), "--quiet"]) == 0
    return data, out


def refused(arguments, capsys):
    capsys.readouterr()
    assert main([*arguments, "--quiet"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("deepatlas: error: ") and len(error.splitlines()) == 1, error
    return error


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a directory", "a store"])
def test_resuming_without_the_data_is_one_line(cohort, tmp_path, capsys, what):
    data = tmp_path / "gone"
    if what == "a store":
        prepare_cohort(cohort, data, progress=False).close()
    else:
        shutil.copytree(cohort, data)
    assert main([*start(data, tmp_path / "run"), "--quiet"]) == 0
    data.rename(tmp_path / "elsewhere")
    before = (tmp_path / "run" / checkpoint.NAME).read_bytes()
    error = refused(["--resume", str(tmp_path / "run")], capsys)
    assert str(data) in error and "no such" in error
    assert (tmp_path / "run" / checkpoint.NAME).read_bytes() == before
    (tmp_path / "elsewhere").rename(data)
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0


@pytest.mark.slow
def test_resuming_with_other_exams_is_refused(finished, tmp_path, capsys):
    data, out = finished
    moved = tmp_path / "phantom_0002"
    shutil.move(data / "phantom_0002", moved)
    try:
        error = refused(["--resume", str(out)], capsys)
        assert "1 missing (phantom_0002)" in error and str(data) in error
        shutil.copytree(moved, data / "phantom_0003")
        assert "1 missing (phantom_0002), 1 new (phantom_0003)" in refused(["--resume", str(out)], capsys)
    finally:
        shutil.rmtree(data / "phantom_0003", ignore_errors=True)
        shutil.move(moved, data / "phantom_0002")
    assert main(["--resume", str(out), "--quiet"]) == 0


def test_a_damaged_checkpoint_or_config_is_one_line(finished, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished[1], copy)
    (copy / checkpoint.NAME).write_bytes((copy / checkpoint.NAME).read_bytes()[:1000])
    assert f"{copy / checkpoint.NAME}: not a readable checkpoint" in refused(["--resume", str(copy)], capsys)
    (copy / "config.json").write_text('{"config": {')
    assert f"{copy / 'config.json'}: damaged" in refused(["--resume", str(copy)], capsys)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on_with_room(cohort, tmp_path, capsys):
    out = tmp_path / "run"
    # This run prepares the data.
    assert main([*start(cohort, tmp_path / "first"), "--quiet"]) == 0
    # A limit on the size of files stands for the end of the disk: the log fits, the checkpoint does not.
    with small_files(100_000):
        error = refused(start(cohort, out), capsys)
    assert f"{out / checkpoint.NAME}: cannot write: " in error
    assert not (out / checkpoint.NAME).exists() and not list(out.rglob(".*"))
    assert main(["--resume", str(out), "--quiet"]) == 0


@pytest.mark.slow
def test_the_bar_and_the_log_show_how_it_goes(cohort, tmp_path, capsys):
    assert main(start(cohort, tmp_path / "run")) == 0
    bars = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("level-0:")]
    # Level, share done, time so far and left, throughput, loss terms, overlap and folds.
    shown = r"level-0: 100%.* 2/2 \[\d\d:\d\d<\d\d:\d\d, .*(step/s|s/step), "
    shown += r"total=\S+ explicit=\S+ implicit=\S+ overlap=\S+ folds=\S+\]"
    assert re.match(shown, bars[-1]), bars
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {"explicit_smoothness", "implicit_edges", "overlap", "folds", "lr", "steps_per_second"} < set(last)


@pytest.mark.slow(1)
def test_tensorboard_of_a_resumed_run_has_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, quiet=True)
    for overall in (1, 2, 3):
        log.record("phase", overall, overall, loss=overall)
    log.close()
    log = RunLog(tmp_path, quiet=True)
    log.rewind(1)
    for overall in (2, 3, 4):
        log.record("phase", overall, overall, loss=10 * overall)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 20), (3, 30), (4, 40)]


def test_regions_of_a_model_without_a_run_need_data_before_anything_is_copied(tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--parent", "headneck", "--regions", "headneck", "--out", str(out)]
    assert "give --data DIR too" in refused(argv, capsys) and not out.exists()
