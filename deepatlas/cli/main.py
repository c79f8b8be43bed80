"""``deepatlas <command>``: the parser, and the way from its arguments to a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deepatlas.cli import evaluate, info, locate, phantom, prepare, segment, template, train
from deepatlas.errors import PROGRAM, guarded

# In the order in which --help lists them. A new command is one file with ``add`` and ``run``, and one entry here.
COMMANDS = (train, prepare, template, segment, locate, evaluate, phantom, info)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. The arguments of ``train`` are those of :mod:`deepatlas.train.__main__`."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="One coordinate for every point of the body: find anatomy in CT from one example.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 when it is done, 1 when it failed (after one line on stderr), 2 for wrong usage and 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        return guarded(train.run, argv[1:])
    args = build_parser().parse_args(argv)
    return guarded(args.run, args)
