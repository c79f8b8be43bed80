"""The threads of the library for NumPy arrays, in a program of their own, also under sanitizers."""

from __future__ import annotations

import pytest
from on_host import PORTABLE, RACES, build_and_run


@pytest.mark.parametrize("flags", [PORTABLE, RACES])
def test_threads(flags):
    build_and_run("threads_on_host", [], flags)
