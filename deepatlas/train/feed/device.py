"""Copies from the host to the device that do not wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. Unlike ``tensor.to(device)``, it does not wait for the GPU to finish earlier work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # PyTorch does not reuse page-locked memory before the copy out of it has ended.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
