"""Checkpoint files: written atomically, and read without executing pickled code."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from deepatlas.errors import DeepAtlasError
from deepatlas.files import atomic_path, refuse_pointer

FORMAT = 1
NAME = "checkpoint.pt"


def save(path: Path, state: dict) -> None:
    """Write ``state`` atomically.

    Args:
        path: the checkpoint file.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises :class:`~deepatlas.errors.WriteError` if the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    # torch's own file writer would report a full disk as a RuntimeError with a C++ stack trace, so Python writes.
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, what: str = "checkpoint") -> dict:
    """Read a file that :func:`save` wrote, with all tensors on the CPU. No code from the file is executed.

    ``what`` is what error messages call the file.

    Raises :class:`~deepatlas.errors.DeepAtlasError` if the file is missing, damaged or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise DeepAtlasError(f"{path}: no such {what}; check the path")
    refuse_pointer(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many types of exceptions for damaged files.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeepAtlasError(
            f"{path}: not a readable {what} ({first[:120]}); restore it or train again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise DeepAtlasError(f"{path}: {what} of format {found}, this version reads format {FORMAT}")
    return state
