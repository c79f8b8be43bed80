"""The cohort that tests of training share."""

import pytest

from deepatlas.exams.phantoms import write_phantoms
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.train import experiment, score
from deepatlas.train.log import RunLog


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
    """The runs of a module in this process draw nothing: in a run of a few steps, drawing takes half of the time.

    What a run draws is tested in test_experiment.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "save_panel", lambda *_: None)
        patch.setattr(RunLog, "draw", lambda *_, **__: None)
        patch.setattr(score, "save_overview", lambda *_: None)
        evaluate = score.evaluate_cohort
        patch.setattr(score, "evaluate_cohort", lambda *a, **k: evaluate(*a, **{**k, "pictures": False}))
        yield
