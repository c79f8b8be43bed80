"""``deepatlas uncrop``: masks that were drawn or found on a view of an exam, back on the exam's own grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import Commands, add_command, print_result
from deepatlas.cli.register import one_exam
from deepatlas.errors import DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "uncrop", run, "bring labels of a view that `deepatlas crop` made back to the exam"
    )
    c.add_argument("labels", type=Path, metavar="LABELS", help="label image on the grid of the view")
    c.add_argument(
        "--exam", required=True, type=Path, metavar="EXAM", help="exam that the view was cut out of"
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="OUT",
        help="file to write, on the grid of the exam: .nii.gz, .nii, .nrrd or .mha",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file, files_of_exams, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.io.codec import WRITABLE, write_volume
    from deepatlas.space.labels_back import labels_back

    check_out_file(args.out, WRITABLE)
    exam = one_exam(args.exam, "--exam")
    refuse_overwriting([args.out], [args.labels, *files_of_exams([exam])])
    drawn = read_volume(args.labels, labels=True)
    found = labels_back(drawn, read_volume(exam.ct, kind=exam.kind).grid)
    counts = {str(i): int(found.mask(i).sum()) for i in sorted(found.ids())}
    if drawn.ids() and not counts:
        raise DataError(
            f"{args.labels}: lies outside {args.exam}; give the exam that the view was cut out of"
        )
    write_volume(args.out, found)
    print_result(
        args,
        {"out": str(args.out), "voxels": counts},
        f"{args.out}: {len(counts)} structure{'' if len(counts) == 1 else 's'}",
    )
    return 0
