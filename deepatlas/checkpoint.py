"""Saving and restoring a run, atomically and without pickled code."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from deepatlas.errors import DeepAtlasError
from deepatlas.files import atomic_path

FORMAT = 1
NAME = "checkpoint.pt"


def save(path: Path, state: dict) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) so that a reader sees the old file or the new."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    # Through a Python file: torch's own writer turns a full disk into an error of its own with a stack of C++ calls.
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, what: str = "checkpoint") -> dict:
    """Read what :func:`save` wrote, on the CPU; never executes code from the file."""
    path = Path(path)
    if not path.is_file():
        raise DeepAtlasError(f"{path}: no {what} there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on damaged files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeepAtlasError(
            f"{path}: not a readable {what} ({first[:120]}); restore it or train again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise DeepAtlasError(f"{path}: {what} of format {found}, this version reads format {FORMAT}")
    return state
