"""``deepatlas phantom``: write a cohort of synthetic exams with known anatomy as a data directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import Commands, add_command, print_result
from deepatlas.errors import DeepAtlasError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "phantom", run, "write a cohort of synthetic exams with known anatomy")
    c.add_argument("out", type=Path, metavar="OUT", help="data directory to write")
    c.add_argument("--exams", type=int, default=8, metavar="N", help="number of exams (default: 8)")
    c.add_argument("--first", type=int, default=0, metavar="K", help="number of the first exam (default: 0)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the cohort (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_folder
    from deepatlas.exams.phantoms import write_phantoms
    from deepatlas.phantom.patients import PhantomCohort

    if args.exams < 1:
        raise DeepAtlasError(f"phantom: --exams must be at least 1, got {args.exams}")
    if args.first < 0:
        raise DeepAtlasError(f"phantom: --first must be at least 0, got {args.first}")
    check_out_folder(args.out, "OUT")
    exams = range(args.first, args.first + args.exams)
    write_phantoms(PhantomCohort(seed=args.seed), args.out, exams, progress=not args.quiet)
    data = {"data": str(args.out), "exams": args.exams}
    print_result(args, data, f"{args.out}: {args.exams} phantom exams")
    return 0
