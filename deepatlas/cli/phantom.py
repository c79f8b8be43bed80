"""``deepatlas phantom``: write a cohort of synthetic exams with known anatomy as a data directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import POSITIVE, Commands, add_command, print_result
from deepatlas.errors import DeepAtlasError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "phantom", run, "write a cohort of synthetic exams with known anatomy")
    c.add_argument("out", type=Path, metavar="OUT", help="data directory to write")
    c.add_argument("--exams", type=int, default=8, metavar="N", help="number of exams (default: 8)")
    c.add_argument("--first", type=int, default=0, metavar="K", help="number of the first exam (default: 0)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the cohort (default: 0)")
    c.add_argument(
        "--structures",
        choices=("large", "all"),
        default="large",
        help="label 21 large structures, or all 42, with lenses, cochleas, adrenals and other small ones "
        "(default: large)",
    )
    c.add_argument(
        "--spacing", type=float, metavar="MM", help="voxel size (default: a grid of about 6 x 4 x 4 mm)"
    )
    c.add_argument(
        "--anatomy",
        type=int,
        default=0,
        metavar="N",
        help="number of a population with another mean body (default: 0, the template body)",
    )
    c.add_argument(
        "--workers",
        type=POSITIVE,
        metavar="N",
        help="number of exams drawn at once, half a GB of memory each at 1.5 mm (default: one per core, at most 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_folder
    from deepatlas.exams.phantoms import unresolved, unresolved_lines, write_phantoms
    from deepatlas.phantom.patients import PhantomCohort

    if args.exams < 1:
        raise DeepAtlasError(f"phantom: --exams must be at least 1, got {args.exams}")
    if args.first < 0:
        raise DeepAtlasError(f"phantom: --first must be at least 0, got {args.first}")
    check_out_folder(args.out, "OUT")
    try:
        cohort = PhantomCohort(
            seed=args.seed, structures=args.structures, spacing=args.spacing, anatomy=args.anatomy
        )
    except ValueError as error:
        raise DeepAtlasError(f"phantom: {error}") from error
    exams = range(args.first, args.first + args.exams)
    folders = write_phantoms(cohort, args.out, exams, progress=not args.quiet, workers=args.workers)
    missing = unresolved(folders)
    data = {"data": str(args.out), "exams": args.exams, "unresolved": missing}
    lines = [f"{args.out}: {args.exams} phantom exams", *unresolved_lines(missing, len(folders))]
    print_result(args, data, "\n".join(lines))
    return 0
