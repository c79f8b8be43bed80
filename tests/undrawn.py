"""Runs that draw nothing: in a run of a few steps, drawing takes half of the time.

What a run draws is tested in tests/train/test_experiment.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from deepatlas.cli import main as cli
from deepatlas.train import experiment, score
from deepatlas.train.log import RunLog


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """The runs of this process draw nothing within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "save_panel", lambda *_: None)
        patch.setattr(RunLog, "draw", lambda *_, **__: None)
        patch.setattr(score, "save_overview", lambda *_: None)
        evaluate = score.evaluate_cohort
        patch.setattr(score, "evaluate_cohort", lambda *a, **k: evaluate(*a, **{**k, "pictures": False}))
        yield


def main(arguments: Sequence[str]) -> int:
    """A command of ``deepatlas`` that draws nothing, for the processes of forked.py."""
    with undrawn():
        return cli.main(arguments)
