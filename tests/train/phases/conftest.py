"""The exams that tests of phases share."""

import pytest

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.train.feed.resident import TrainingArray


@pytest.fixture(scope="session")
def store(cohort, tmp_path_factory):
    """The prepared store of three phantoms."""
    path = tmp_path_factory.mktemp("phases") / "store.h5"
    with prepare_cohort(cohort, path, progress=False) as store:
        yield store


@pytest.fixture(scope="module")
def array(store):
    """Three phantoms at 16^3."""
    return TrainingArray(store, 16)
