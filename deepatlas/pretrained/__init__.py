"""The models that come with the package, each a folder with ``model.pt``, ``template.h5`` and a model card."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from deepatlas.errors import DataWarning

FOLDER = Path(__file__).parent
MODEL, TEMPLATE = "model.pt", "template.h5"


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MODEL}"))


def resolve(name: str | os.PathLike[str], file: str) -> Path:
    """The path of a file of a shipped model.

    Args:
        name: the name of a shipped model, or a path. Of a shipped model and a file or run of the same name in the
            working directory, the latter is taken; any other folder of that name is not what is meant. A
            :class:`~deepatlas.errors.DataWarning` says which it is. ``./name`` is always a path.
        file: :data:`MODEL` or :data:`TEMPLATE`.

    Returns:
        The file of the shipped model, or ``name`` as a path where there is no shipped model of that name.
    """
    path = Path(name)
    if os.fspath(name) not in shipped():
        return path
    shipped_file = FOLDER / path / file
    if not path.exists():
        return shipped_file
    # What a run begins with, and what it ends with.
    is_run = any((path / part).is_file() for part in ("config.json", MODEL))
    if path.is_dir() and not is_run:
        _say(f"{name}: the shipped model is used, not the folder of that name, which is no run")
        return shipped_file
    what = "run in the folder" if is_run else "file"
    _say(f"{name}: the {what} of that name is used, not the shipped model")
    return path / file if (path / file).is_file() else path


def _say(line: str) -> None:
    warnings.warn(line, DataWarning, stacklevel=3)
