"""The device of PyTorch that a model runs on."""

from __future__ import annotations

import torch

from deepatlas.errors import DeepAtlasError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; without a name a GPU if there is one, and otherwise the CPU.

    Raises :class:`~deepatlas.errors.DeepAtlasError` where PyTorch cannot use the device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        # A build of PyTorch without CUDA raises AssertionError.
        reason = str(error).splitlines()[0]
        raise DeepAtlasError(f"device {name} cannot be used here ({reason}); use cpu") from None
