"""From the host to the device without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. Unlike with ``tensor.to(device)`` nobody waits for what a GPU is still computing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # PyTorch keeps such memory for reuse until the copy out of it has ended
    return tensor.to(device, non_blocking=True)
