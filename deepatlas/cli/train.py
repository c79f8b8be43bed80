"""``deepatlas train``: learn the coordinates from a cohort; the same as ``python -m deepatlas.train``."""

from __future__ import annotations

from collections.abc import Sequence

from deepatlas.cli.common import Commands


def add(commands: Commands) -> None:
    """Its line in ``--help``; ``main`` hands its arguments on before this parser sees them."""
    commands.add_parser("train", help="learn the coordinates from a cohort", add_help=False)


def run(rest: Sequence[str]) -> int:
    from deepatlas.train.__main__ import main

    return main(list(rest)) or 0
