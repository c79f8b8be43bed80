"""Models that come with the package: ``<name>/model.pt``, a template of labelled structures, and a model card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL, TEMPLATE = "model.pt", "template.h5"


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MODEL}"))


def resolve(name: str | os.PathLike, file: str) -> Path:
    """The shipped ``file`` of that name; ``name`` itself where it exists or where nothing of that name is shipped."""
    path = Path(name)
    return FOLDER / path / file if str(name) in shipped() and not path.exists() else path
