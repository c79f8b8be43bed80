"""The loop: learning rates, resuming after an interruption, losses that are not finite, and damaged checkpoints."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from deepatlas import checkpoint
from deepatlas.errors import DeepAtlasError
from deepatlas.presets import preset
from deepatlas.train.log import RunLog
from deepatlas.train.loop import BAD_BATCH, Session, deferred_signals
from deepatlas.train.phase import Phase, Schedule
from deepatlas.train.world import World


def test_schedule_warms_up_and_decays_every_fifty_steps():
    schedule = Schedule(lr=1.0, decay=0.5, warmup=10, warmup_from=0.1)
    assert schedule.at(0) == pytest.approx(0.1)
    assert schedule.at(5) == pytest.approx(0.55)
    assert [schedule.at(s) for s in (10, 49, 50, 100)] == pytest.approx([1, 1, 0.5, 0.25])


def make(folder, steps=12, stop_at=None, bad_at=None):
    """A session that fits a line to random points; ``stop_at`` interrupts it as Ctrl-C would."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    session = Session(
        preset("tiny"),
        folder,
        World(torch.device("cpu")),
        RunLog(folder, quiet=True),
        {"network": model},
        torch.Generator().manual_seed(1),
    )

    def batch(generator):
        return {"exams": ["exam_7"], "x": torch.randn(8, 3, generator=generator)}

    def step(number):
        x = batch(session.generator)["x"]
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == bad_at:
            loss = loss * float("nan")
        yield loss, lambda: {"mse": loss.item()}

    def phases():
        for name in ("one", "two"):
            yield Phase(
                name,
                steps,
                [(list(model.parameters()), 1.0)],
                Schedule(0.05, 0.9, 3),
                step,
                batch,
                averaged=tuple(model.parameters()),
                average=0.9,
                ended=(lambda: os.kill(os.getpid(), signal.SIGTERM)) if stop_at == "picture" else None,
            )

    return session, model, phases


@pytest.mark.slow(1)
@pytest.mark.parametrize("stop_at", [0, 5, 11, "picture"])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, stop_at):
    session, whole, phases = make(tmp_path / "whole")
    session.run(phases())

    session, _, phases = make(tmp_path / "cut", stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt), deferred_signals() as session.stop:
        session.run(phases())
    assert session.overall == (12 if stop_at == "picture" else stop_at + 1)
    session, resumed, phases = make(tmp_path / "cut")
    session.restore(checkpoint.load(tmp_path / "cut" / checkpoint.NAME))
    session.run(phases())

    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_finite_names_the_exams_and_spares_the_weights(tmp_path):
    session, model, phases = make(tmp_path, bad_at=3)
    with pytest.raises(DeepAtlasError, match="not finite in phase one at step 3, exams exam_7"):
        session.run(phases())
    assert all(torch.isfinite(p).all() for p in model.parameters())

    saved = checkpoint.load(tmp_path / BAD_BATCH)
    assert (saved["phase"], saved["step"], saved["exams"]) == ("one", 3, ["exam_7"])
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(8, 3, generator=generator) for _ in range(4)]
    # The batch is that of the failing step.
    assert torch.equal(saved["x"], drawn[3])
    for name, value in model.state_dict().items():
        assert torch.equal(saved["modules"]["network"][name], value)


def test_records_after_the_checkpoint_are_forgotten(tmp_path):
    log = RunLog(tmp_path, quiet=True)
    for overall in (1, 2, 3):
        log.record("phase", overall, overall, loss=overall)
    log.rewind(2)
    log.record("phase", 3, 3, loss=30)
    assert [json.loads(s)["loss"] for s in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 30]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(DeepAtlasError, match="not a readable checkpoint") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(DeepAtlasError, match="format 99, this version reads"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"value": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(DeepAtlasError, match="cannot write") as caught:
            checkpoint.save(path, {"value": torch.rand(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(caught.value)
    assert checkpoint.load(path)["value"] == 1 and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
