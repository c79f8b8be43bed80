"""Running a plan: what is done stays done, a failure lets the others go on, and the end is a comparison.

A small program takes the place of ``deepatlas``: it notes its arguments and writes what the command would have written.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from made_evaluations import row, write_evaluation

from deepatlas.experiments import runner
from deepatlas.experiments.__main__ import main

PLAN = """
baseline = "b"
[cohorts]
train = { path = "DATA" }
test = { phantoms = 2 }
[evaluations.test]
cohort = "test"
template = { cohort = "train" }
[experiments.a]
cohorts = ["train"]
[experiments.b]
cohorts = ["train"]
settings = ["seed=1"]
[experiments.c]
command = "finetune"
model = "b"
cohorts = ["train"]
"""

# Notes its arguments, fails where a file says so, and copies a ready evaluation where one is asked for.
STAND_IN = """
import pathlib, shutil, sys
root, arguments = pathlib.Path(sys.argv[1]), sys.argv[2:]
with open(root / "calls.txt", "a") as file:
    file.write(" ".join(arguments) + "\\n")
fail = (root / "fail.txt").read_text() if (root / "fail.txt").exists() else ""
out = pathlib.Path(arguments[arguments.index("--out") + 1] if "--out" in arguments else arguments[1])
if "--resume" in arguments:
    out = pathlib.Path(arguments[arguments.index("--resume") + 1])
if arguments[0] in ("train", "finetune"):
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text("{}")
if fail and fail in " ".join(arguments):
    print("some line", file=sys.stderr)
    print("deepatlas: error: no more room", file=sys.stderr)
    sys.exit(1)
if arguments[0] == "evaluate":
    shutil.copytree(root / "ready" / str(len(list(root.glob("given*")))), out)
    (root / f"given{len(list(root.glob('given*')))}").touch()
else:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A plan in a folder of its own; ``study(...)`` runs it and returns the status and the new calls."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "plan.toml").write_text(PLAN)
    for number in range(6):
        rows = [row(f"e{e}", "liver", 0.5 + 0.05 * number + e / 100, 2) for e in range(3)]
        write_evaluation(tmp_path / "ready" / str(number), rows)
    program = (sys.executable, "-S", str(tmp_path / "stand_in.py"), str(tmp_path))
    monkeypatch.setattr(runner, "DEEPATLAS", program)
    monkeypatch.setattr(runner, "_POLL", 0.01)
    calls = tmp_path / "calls.txt"

    def run(*options, fail=""):
        (tmp_path / "fail.txt").write_text(fail)
        before = len(calls.read_text().splitlines()) if calls.exists() else 0
        status = main([str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), *options])
        lines = calls.read_text().splitlines() if calls.exists() else []
        return status, [line.split()[0] for line in lines[before:]]

    run.root = tmp_path
    return run


@pytest.mark.slow(2)
def test_a_plan_runs_each_part_once_and_ends_with_a_comparison(study, capsys):
    status, calls = study("--jobs", "2")
    assert status == 0
    assert sorted(calls) == sorted(
        ["phantom", "train", "train", "finetune", "template", "template", "evaluate", "evaluate", "evaluate"]
    )
    assert calls.index("finetune") > calls.index("train") and calls[-1] == "evaluate"
    facts = json.loads((study.root / "out" / "comparison" / "comparison.json").read_text())
    assert list(facts["experiments"]) == ["a", "b", "c"] and facts["baseline"] == "b" and not facts["failed"]
    assert "comparison.html" in capsys.readouterr().out
    assert study() == (0, []), "what is done was run again"
    # Another setting is another run; what does not depend on it stays.
    (study.root / "plan.toml").write_text(PLAN.replace("seed=1", "seed=2"))
    status, calls = study()
    assert sorted(calls) == sorted(["train", "template", "evaluate", "finetune", "evaluate"])
    (study.root / "plan.toml").write_text(PLAN)
    assert study() == (0, [])


@pytest.mark.slow(1)
def test_a_failed_run_lets_the_others_go_on_and_the_tables_say_so(study, capsys):
    status, calls = study(fail="seed=1")
    assert status == 1 and calls.count("evaluate") == 1 and "finetune" not in calls
    said = capsys.readouterr()
    assert "b failed: train b: no more room (exit status 1;" in said.err
    assert "fewer than two experiments" in said.out and not (study.root / "out" / "comparison").exists()
    status, calls = study(fail="finetune")
    assert status == 1 and "train" in calls
    facts = json.loads((study.root / "out" / "comparison" / "comparison.json").read_text())
    assert list(facts["experiments"]) == ["a", "b"]
    assert facts["failed"]["c"].startswith("finetune c: no more room (exit status 1; ")
    assert "c failed" in (study.root / "out" / "comparison" / "comparison.html").read_text()
    status, calls = study()
    assert status == 0 and calls == ["finetune", "evaluate"]
    # A run that was stopped continues in its folder.
    resumed = [line for line in (study.root / "calls.txt").read_text().splitlines() if "--resume" in line]
    assert [line.split()[0] for line in resumed] == ["train", "finetune"]


@pytest.mark.slow(1)
def test_what_was_deleted_is_made_again(study):
    assert study()[0] == 0
    (folder,) = (study.root / "out" / "evaluations").glob("a-test-*")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert study() == (0, ["evaluate"])


@pytest.mark.slow(1)
def test_commands_are_printed_by_stages_and_each_runs_its_part(study, capsys):
    assert study("--commands") == (0, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# stage 1 of 4: 3 at once" and not (study.root / "out").exists()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == 10 and commands[-1][-2:] == ["--part", "compare"]
    status, calls = study("--part", "template a for test")
    assert status == 1 and calls == []
    assert "needs train a, which is not done" in capsys.readouterr().err
    for command in commands:
        assert command[1:3] == ["-m", "deepatlas.experiments"]
        assert main(command[3:]) == 0
    assert (study.root / "out" / "comparison" / "comparison.html").exists()
    capsys.readouterr()
    assert study("--commands") == (0, [])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_only_some_experiments_and_what_they_need(study):
    status, calls = study("--only", "b", "c")
    assert status == 0 and calls.count("train") == 1 and calls.count("evaluate") == 2
    facts = json.loads((study.root / "out" / "comparison" / "comparison.json").read_text())
    assert list(facts["experiments"]) == ["b", "c"]


def test_one_experiment_alone_is_no_failure(study, capsys):
    status, calls = study("--only", "b")
    assert status == 0 and calls.count("evaluate") == 1 and "nothing to compare" in capsys.readouterr().out
    assert study("--only", "a", fail="evaluate")[0] == 1


def test_names_with_an_equals_sign_are_whole_names(study):
    names = ("window=5", "window=7")
    plan = PLAN.replace('"b"', f'"{names[0]}"')
    for old, new in zip("ba", names, strict=True):
        plan = plan.replace(f"[experiments.{old}]", f'[experiments."{new}"]')
    (study.root / "plan.toml").write_text(plan)
    assert study()[0] == 0
    facts = json.loads((study.root / "out" / "comparison" / "comparison.json").read_text())
    assert sorted(facts["experiments"]) == ["c", *names] and facts["baseline"] == names[0]


def test_a_plan_may_run_in_its_own_folder(study, monkeypatch):
    assert study()[0] == 0
    monkeypatch.chdir(study.root / "out")
    assert main(["../plan.toml", "--out", "."]) == 0
    assert len((study.root / "calls.txt").read_text().splitlines()) == 9, "what is done was run again"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "bb"], "--only: no experiment 'bb'"),
        (["--part", "train bb"], "no part 'train bb'; did you mean train b"),
        (["--data", "train"], "--data train: give COHORT=DIR"),
        (["--jobs", "0"], "--jobs must be 1 or more"),
    ],
)
def test_wrong_options_are_one_line(study, capsys, options, words):
    assert study(*options) == (1, [])
    assert words in capsys.readouterr().err and not (study.root / "out").exists()


def test_a_part_that_ends_well_and_writes_nothing_has_failed(study, capsys, monkeypatch):
    script = study.root / "stand_in.py"
    script.write_text(script.read_text() + "\nif arguments[0] == 'template': out.rmdir()\n")
    assert study("--only", "a", "c")[0] == 1
    assert "a failed: template a for test" in capsys.readouterr().err


def test_a_stopped_plan_ends_its_processes_and_continues_later(study, capsys):
    script, whole = study.root / "stand_in.py", (study.root / "stand_in.py").read_text()
    wait = (
        "import os, signal, time\nif arguments[0] == 'finetune':\n    os.kill(os.getppid(), signal.SIGTERM)\n"
    )
    script.write_text(whole + wait + "    time.sleep(60)\n")
    began, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    status, calls = study("--only", "b", "c")
    assert status == 130 and "run the same command to continue" in capsys.readouterr().err
    assert time.monotonic() - began < 30 and signal.getsignal(signal.SIGTERM) is handler
    script.write_text(whole)
    status, again = study("--only", "b", "c")
    assert status == 0 and "finetune" in again and "train" not in again


def test_logs_hold_the_command_and_its_output(study):
    study(fail="finetune")
    (log,) = Path(study.root / "out" / "logs").glob("finetune-c-*.log")
    assert log.read_text().startswith("$ deepatlas finetune --out ") and "some line" in log.read_text()
