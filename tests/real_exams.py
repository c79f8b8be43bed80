"""Where the real exams are that some tests need; nothing of them is part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_GIVEN = os.environ.get("DEEPATLAS_DATA")
ROOT = Path(_GIVEN) if _GIVEN else Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str) -> Path:
    """A file or folder below the one that DEEPATLAS_DATA names (or ../shared/data beside the repository).

    The calling test is skipped, with a reason, where it is not there.
    """
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"no real exams: {path} is missing (set DEEPATLAS_DATA)")
    return path
