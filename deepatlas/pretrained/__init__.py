"""The models that come with the package, each a folder with ``model.pt``, ``template.h5`` and a model card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL, TEMPLATE = "model.pt", "template.h5"


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MODEL}"))


def resolve(name: str | os.PathLike[str], file: str) -> Path:
    """The path of a file of a shipped model.

    Args:
        name: the name of a shipped model, or a path. A path that exists has precedence over a shipped model.
        file: :data:`MODEL` or :data:`TEMPLATE`.

    Returns:
        The file of the shipped model, or ``name`` as a path where there is no shipped model of that name.
    """
    path = Path(name)
    return FOLDER / path / file if str(name) in shipped() and not path.exists() else path
