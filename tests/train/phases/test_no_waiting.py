"""A training step never waits for the device: it runs on the meta device, which has no values to wait for.

There ``.item()``, ``nonzero`` and boolean indices raise by themselves; copies from the host are recorded.
"""

import contextlib

import pytest
import torch
from small_recipe import PHASES, phases, process
from waits import Waits

from deepatlas_ops.reference import invert


def test_it_sees_what_would_wait(monkeypatch):
    there = torch.zeros(3, 4, device="meta")
    with Waits(monkeypatch) as waits:
        torch.tensor([1.0, 2.0], device="meta")
        torch.eye(3, 4).to(there)
        there[torch.arange(2)]
        there.copy_(torch.ones(3, 4))
        assert len(waits.found) == 4
        torch.eye(3, 4).to(there, non_blocking=True)
        torch.eye(3, 4, device="meta") * 2.0
    assert len(waits.found) == 4
    with pytest.raises(RuntimeError):
        there.sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        there[there > 0]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_of_a_phase_waits(array, monkeypatch, accumulate):
    for name, value in {
        "device": torch.device("meta"),
        "volumes": array.volumes.to("meta"),
        "masks": array.masks.to("meta"),
    }.items():
        monkeypatch.setattr(array, name, value)
    # The PyTorch body asks after each iteration whether all voxels have converged; the kernel does not ask the host.
    monkeypatch.setattr(invert, "_may_look", lambda: False)
    # The meta device has no autocast, which is disabled here in any case.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    world = process(0, 1)
    world.device = torch.device("meta")
    names = []
    for phase in phases(array, world, accumulate):
        with Waits(monkeypatch) as waits:
            for loss, _scalars in phase.step(0):
                loss.backward()
        assert waits.found == [], phase.name
        names.append(phase.name)
    assert names == PHASES
