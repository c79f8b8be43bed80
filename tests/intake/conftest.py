"""What several tests of the intake share."""

from __future__ import annotations

import pytest

from deepatlas.intake.run import pipeline


class Here:
    """Does in this process what the engines of ``deepatlas.intake.run.engines`` do in others."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, jobs):
        return ((job, function(job)) for job in jobs)


@pytest.fixture
def in_this_process(monkeypatch, request):
    """Most tests are about what is done, not where: a process for each would take longer than the work."""
    if "processes" not in request.keywords:
        monkeypatch.setattr(pipeline, "open_engine", lambda *_, **__: Here())
