"""The cohort that tests of training share."""

import pytest
from undrawn import undrawn

from deepatlas.exams.phantoms import write_phantoms
from deepatlas.phantom.patients import PhantomCohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Three phantoms without labels, so that training on them ends without a score. Tests must not write here."""
    root = tmp_path_factory.mktemp("cohort") / "data"
    write_phantoms(PhantomCohort(seed=0), root, range(3), progress=False)
    for seg in root.glob("*/seg.nii.gz"):
        seg.unlink()
    return root


@pytest.fixture(scope="module")
def no_pictures():
    """The runs of a module in this process draw nothing (see undrawn.py)."""
    with undrawn():
        yield
