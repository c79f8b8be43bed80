"""Where the exams of the data tests are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_exams import write_cohort


@pytest.fixture
def cohort_dir(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "data")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real exams, named by DEEPATLAS_DATA or at ../shared/data beside the repository."""
    given = os.environ.get("DEEPATLAS_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (root / "openkbp" / "train").is_dir():
        pytest.skip(f"no real exams: {root / 'openkbp'} is missing (set DEEPATLAS_DATA)")
    return root
