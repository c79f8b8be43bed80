"""Real processes: runs that are killed and resumed, and runs that several processes share.

Only what has to die, or has to be one of several, runs in a process of its own; the rest runs in this one. What is
not about the launcher or the start of Python is forked (forked.py).
"""

import json
import os
import random
import signal
import time

import pytest
import torch
from fast_settings import FAST
from forked import Forked, ranks, start_ranks

import deepatlas
from deepatlas import checkpoint
from deepatlas.errors import DeepAtlasError
from deepatlas.presets import preset
from deepatlas.train.__main__ import main
from deepatlas.train.experiment import Experiment
from deepatlas.train.request import Request
from deepatlas.train.world import World

SETTINGS = [
    *(s for s in FAST if "phantom" not in s),
    "autoencoder.batch=3",
    "coarse.batch=3",
    "train.batch=3",
    "train.steps=[2,2,13]",
    # With larger steps, the rounding of sums in another order would grow.
    "coarse.lr=0.0005",
    "train.lr=0.0005",
    "train.warmup=5",
    "data.elastic=0.05",
    "cohort.steps=2",
    "cohort.batch=2",
    "distil.steps=[4]",
    "distil.batch=3",
    "distil.lr=0.0005",
]


@pytest.fixture(scope="module")
def environment(no_pictures, tmp_path_factory):
    """The environment of all processes; the variables of this one are restored after the module."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", cache)
        yield os.environ | {"OMP_NUM_THREADS": "1"}


def start(cohort, out, *settings):
    """The arguments of a new run."""
    data = ["--data", str(cohort), "--preset", "tiny", "--out", str(out), "--device", "cpu"]
    return [*data, *SETTINGS, *settings]


def resume(out):
    return ["--resume", str(out), "--device", "cpu"]


# torchrun with two processes, which are started as those of users are.
LAUNCHER, TWO = "torch.distributed.run", ["--standalone", "--nproc-per-node=2"]


def here(arguments):
    """Run the command in this process, which has one thread as the others have."""
    assert torch.get_num_threads() == 1
    assert main([*arguments, "--quiet"]) == 0


def weights(out):
    return checkpoint.load(out / "checkpoint.pt")["modules"]


def records(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def logged(out):
    return (out / "log.jsonl").read_text().count("\n") if (out / "log.jsonl").exists() else 0


def stop(arguments, environment, out, number, lines, wait=0.0, launched=False):
    """Start a run and send it a signal when it has logged so many records, or ``wait`` seconds later."""
    if launched:
        what = LAUNCHER, [*TWO, "-m", "deepatlas.train", *arguments]
    else:
        what = "undrawn", ["train", *arguments]
    process = Forked(*what, environment, out.with_suffix(".txt"))
    until_logged(process, out, lines)
    time.sleep(wait)
    os.kill(process.pid, number)
    error = process.communicate(timeout=300)[1]
    return process.returncode, error


def until_logged(process, out, lines):
    deadline = time.monotonic() + 300
    while logged(out) < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=1)[1]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(cohort, environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    here(start(cohort, out))
    return out


@pytest.mark.slow(6)
@pytest.mark.parametrize(
    ("number", "lines", "resident"),
    [(signal.SIGKILL, 3, "auto"), (signal.SIGKILL, 13, "false"), (signal.SIGTERM, 9, "auto")],
)
def test_a_killed_run_resumes_bit_for_bit(cohort, environment, whole, tmp_path, number, lines, resident):
    """Whether its exams are held in memory, as those of the uninterrupted run, or read from the store in advance."""
    out = tmp_path / "run"
    # With SIGKILL every step is saved before; with SIGTERM the run itself saves the step at which it stops.
    often = ["train.checkpoint_minutes=0"] if number == signal.SIGKILL else []
    arguments = start(cohort, out, *often, f"data.resident={resident}")
    code, error = stop(arguments, environment, out, number, lines)
    assert ("read from" in error) == (resident == "false")
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), error
    assert not (out / "model.pt").exists()
    here(resume(out))
    for module, values in weights(whole).items():
        for name, value in weights(out)[module].items():
            assert torch.equal(value, values[name]), (module, name)
    assert records(out) == records(whole)


@pytest.mark.slow(4)
def test_a_run_killed_at_a_random_step_resumes_bit_for_bit(cohort, environment, whole, tmp_path):
    out, seed = tmp_path / "run", int.from_bytes(os.urandom(3))
    chance = random.Random(seed)
    # Not every step is saved, so that steps are computed again; the signal may also come between two log records.
    often = f"train.checkpoint_minutes={chance.choice([0, 0.002, 0.01])}"
    lines = chance.randint(1, len(records(whole)) - 2)
    wait = chance.uniform(0, 0.3)
    drawn = f"seed {seed}: {lines} lines, then {wait:.3f} s, {often}"
    code, error = stop(start(cohort, out, often), environment, out, signal.SIGKILL, lines, wait)
    # The code is 0 if the run had just ended.
    assert code in (-signal.SIGKILL, 0), error
    here(resume(out))
    for module, values in weights(whole).items():
        for name, value in weights(out)[module].items():
            assert torch.equal(value, values[name]), (module, name, drawn)
    assert records(out) == records(whole), drawn


@pytest.mark.slow(4)
def test_a_batch_in_parts_is_the_same_batch(cohort, environment, whole, tmp_path):
    out = tmp_path / "run"
    here(start(cohort, out, "train.accumulate=2"))
    same_run(out, whole)


@pytest.mark.slow(4)
def test_two_processes_compute_the_run_of_one(cohort, environment, whole, tmp_path):
    out = tmp_path / "run"
    printed = ranks("undrawn", ["train", *start(cohort, out)], environment, 2, tmp_path)
    same_run(out, whole)
    # Only one process prints.
    assert (out / "model.pt").exists() and "".join(printed).count("exams to learn from") == 1


def same_run(out, whole):
    """Equal up to the rounding of sums in another order; test_batch_in_parts.py compares single gradients."""
    ours, theirs = records(out), records(whole)
    assert [(r["phase"], r["step"]) for r in ours] == [(r["phase"], r["step"]) for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for key in set(a) - {"phase", "folds", "overlap"}:
            assert a[key] == pytest.approx(b[key], rel=5e-2, abs=5e-3), (a["phase"], a["step"], key)
    x = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    a, b = (deepatlas.load(folder) for folder in (out, whole))
    with torch.no_grad():
        torch.testing.assert_close(a.network(x), b.network(x), atol=5e-2, rtol=0)
    # Where hardly any exam shows a place of the atlas, its mean divides by almost zero and amplifies rounding.
    difference = (a.atlas - b.atlas).abs().flatten()
    assert difference.quantile(0.999) < 1e-3 and difference.max() < 0.1


@pytest.mark.slow(4)
def test_a_killed_process_ends_the_job_and_another_number_goes_on(cohort, environment, whole, tmp_path):
    out = tmp_path / "run"
    arguments = start(cohort, out, "train.checkpoint_minutes=0")
    first, last = start_ranks("undrawn", ["train", *arguments], environment, 2, tmp_path)
    until_logged(first, out, 9)
    os.kill(last.pid, signal.SIGKILL)
    _, error = first.communicate(timeout=300)
    assert first.returncode not in (0, None)
    assert "lost the others" in error and "--resume continues the run from its last checkpoint" in error, (
        error
    )
    saved = checkpoint.load(out / "checkpoint.pt")
    assert 0 < saved["overall"] and not (out / "model.pt").exists()
    here(resume(out))
    same_run(out, whole)


SURVIVOR = """
import os, signal, sys, time
import torch
from deepatlas.errors import guarded
from deepatlas.train.world import World

def run():
    world = World(torch.device("cpu"))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        world.sum_scalars({"asked": 0.0})
    finally:
        # A run draws its curves before it ends.
        time.sleep(2)
    return 0

sys.exit(guarded(run))
"""


@pytest.mark.slow(5)
def test_the_process_that_is_left_says_why_although_the_launcher_ends_it(environment, tmp_path):
    script = tmp_path / "survivor.py"
    script.write_text(SURVIVOR)
    launcher = Forked(LAUNCHER, [*TWO, str(script)], environment, tmp_path / "printed.txt")
    _, error = launcher.communicate(timeout=300)
    assert launcher.returncode != 0 and "closing signal SIGTERM" in error, error
    assert "deepatlas: error: process 0 of 2 lost the others" in error, error


@pytest.mark.slow(14)
def test_sigterm_to_the_launcher_saves_first(cohort, environment, whole, tmp_path):
    out = tmp_path / "run"
    code, error = stop(start(cohort, out), environment, out, signal.SIGTERM, 5, launched=True)
    assert code != 0 and "stopped and saved" in error, error
    saved, log = checkpoint.load(out / "checkpoint.pt"), records(out)
    # Every step that was logged is in the checkpoint.
    assert len(log) >= 5 and saved["overall"] >= log[-1]["overall"]
    ranks("undrawn", ["train", *resume(out)], environment, 3, tmp_path)
    same_run(out, whole)


def test_more_processes_than_exams_in_a_batch(tmp_path):
    world = World(torch.device("cpu"))
    world.size = 4
    with pytest.raises(DeepAtlasError, match="4 processes cannot share a batch smaller than that"):
        Experiment(tmp_path, preset("tiny").override(SETTINGS), Request(str(tmp_path)), world)
