"""``deepatlas <command>``: the parser, and the dispatch to the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deepatlas.cli import (
    cache,
    calibrate,
    compare,
    crop,
    evaluate,
    export,
    finetune,
    follow,
    index,
    info,
    locate,
    phantom,
    prepare,
    propagate,
    query,
    register,
    report,
    segment,
    template,
    template_edit,
    train,
    uncrop,
    view,
)
from deepatlas.errors import PROGRAM, guarded, lenient_output

# The commands in the order in which --help lists them. To add a command, write a file with ``add`` and ``run``, and
# list it here.
COMMANDS = (
    train, finetune, prepare, export, template, template_edit, calibrate, segment, propagate, locate, register, follow,
    crop, uncrop, evaluate, compare, report, view, index, query, phantom, info, cache,
)  # fmt: skip
# Those whose arguments are parsed by a parser of their own, since settings may stand anywhere among the options.
OWN = {"train": train, "finetune": finetune}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Those in :data:`OWN` have their arguments elsewhere."""
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

    Args:
        argv: the arguments, without the name of the program; None takes those of the process.

    Returns:
        The exit code: 0 on success, 1 on failure (with one line on stderr), 130 after Ctrl-C or SIGTERM. For wrong
        usage argparse ends the program with 2.
    """
    lenient_output()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and (command := OWN.get(argv[0])):
        return guarded(command.run, argv[1:])
    args = build_parser().parse_args(argv)
    return guarded(args.run, args, as_json=args.json)
