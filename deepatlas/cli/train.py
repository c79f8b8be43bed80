"""``deepatlas train``: learn the coordinates from a cohort, as ``python -m deepatlas.train`` does."""

from __future__ import annotations

from collections.abc import Sequence

from deepatlas.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the line in ``--help``. ``main`` passes the arguments on before this parser sees them."""
    commands.add_parser("train", help="learn the coordinates from a cohort", add_help=False)


def run(rest: Sequence[str]) -> int:
    """Run the command with its arguments ``rest``."""
    from deepatlas.train.__main__ import main

    return main(list(rest)) or 0
