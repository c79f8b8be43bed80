"""Fixtures that several tests of the intake share."""

from __future__ import annotations

import prepare_here
import pytest


@pytest.fixture
def in_this_process(request):
    """Work in this process, unless the test is marked ``processes``: most tests are about what is done, not where."""
    if "processes" in request.keywords:
        yield
    else:
        with prepare_here.in_this_process():
            yield
