"""A training step never waits for the device: it runs on the meta device, which has no values to wait for.

There ``.item()``, ``nonzero`` and boolean indices raise by themselves; copies from the host are recorded.
"""

import contextlib
import sys

import pytest
import torch
from small_recipe import PHASES, phases, process
from torch.utils._python_dispatch import TorchDispatchMode

from deepatlas_ops.reference import invert

aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Records the operations that make the host wait for the device."""

    def __init__(self, patch):
        super().__init__()
        self.found = []
        # These two copy without the dispatcher.
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, self._watched(getattr(torch, name)))

    def _watched(self, function):
        def call(data, *args, device=None, **kwargs):
            # The PyTorch bodies of the ops run here, but not on a GPU, whose kernels take Python numbers.
            body = sys._getframe(1).f_globals["__name__"].startswith("deepatlas_ops.reference")
            there = device is not None and torch.device(device).type == "meta"
            if there and not body and not isinstance(data, torch.Tensor):
                self.found.append(f"{function.__name__}({data}, device=...)")
            return function(data, *args, device=device, **kwargs)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if function is aten.copy_.default else args[0]
            blocking = not (
                kwargs.get("non_blocking") or (function is aten.copy_.default and args[2:] == (True,))
            )
            if blocking and source.device.type == "cpu" and result.device.type == "meta":
                self.found.append(f"copy of {list(source.shape)}")
        if function in (aten.index.Tensor, aten.index_put_.default):
            for index in args[1]:
                if index is not None and index.device != args[0].device:
                    self.found.append(f"index {list(index.shape)} on the host")
        return result


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
