"""Records what makes the host wait for the device, for tests that run on the meta device."""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
