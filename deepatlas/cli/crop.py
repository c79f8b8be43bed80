"""``deepatlas crop``: a box of the atlas as a standard view of every exam."""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_model,
    add_strict,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_unknown,
    number,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.errors import DataError

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.exams.cohort import ExamFiles
    from deepatlas.localize.crop import Crop, CropView
    from deepatlas.space.box import Box

_SHARE = number(float, lambda v: 0 <= v <= 1, "in [0, 1]")
_MM = number(float, lambda v: 0 < v < math.inf, "a number of mm above 0")
_MARGIN = number(float, lambda v: 0 <= v < math.inf, "a number of mm, 0 or more")
# Names of files for what a box is called.
_FORMATS = ("nifti", "nrrd", "hdf5")


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "crop", run, "cut a box of the atlas out of exams, turned to a standard view")
    add_model(c)
    c.add_argument("--template", type=Path, metavar="T", help="file that holds the box or the structures")
    c.add_argument(
        "--any-model", action="store_true", help="accept a template that was made for another model"
    )
    c.add_argument(
        "--box", nargs="+", default=[], metavar="NAME", help="boxes of the template, each a view of its own"
    )
    c.add_argument(
        "--structures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="one view around these structures of the template",
    )
    c.add_argument(
        "--boxes", type=Path, metavar="FILE", help="boxes that were drawn in the exam --from (.mrk.json, CSV)"
    )
    c.add_argument("--from", type=Path, dest="source", metavar="A", help="the exam of --boxes")
    c.add_argument(
        "--margin",
        type=_MARGIN,
        default=0.0,
        metavar="MM",
        help="added to the box on every side (default: 0)",
    )
    c.add_argument(
        "--shape",
        type=_shape,
        metavar="N",
        help="voxels of the view: 64, or 96x96x64 along x, y and z of the box (default: 64 without --spacing)",
    )
    c.add_argument(
        "--spacing",
        type=_spacing,
        metavar="MM",
        help="size of a voxel: 1, or 1x1x2; without --shape the view is as large as the box (default: what fits "
        "--shape into the box)",
    )
    c.add_argument("--format", choices=_FORMATS, default="nifti", help="of the views (default: nifti)")
    c.add_argument(
        "--labels", action="store_true", help="also the labels of the exams; EXAM are data directories then"
    )
    c.add_argument(
        "--min-coverage",
        type=_SHARE,
        default=0.5,
        metavar="V",
        help="leave out an exam that shows less of the view (default: 0.5)",
    )
    c.add_argument(
        "exams", nargs="+", metavar="EXAM", help="as for `deepatlas segment`; put them before other lists"
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for <box>/<exam>/ct.nii.gz, a data directory, or <box>.h5; and for crops.json and crops.csv",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.cli.register import one_exam
    from deepatlas.exams.mask_files import mask_stems
    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting, same_place
    from deepatlas.localize.crop import CropView
    from deepatlas.localize.crop_files import SUFFIXES, image_paths

    given = [bool(args.box), bool(args.structures), bool(args.boxes)]
    if sum(given) != 1 or bool(args.boxes) != (args.source is not None):
        raise DataError(
            "crop: give one of --box, --structures (both with --template), or --boxes with --from"
        )
    view = CropView(args.shape or (None if args.spacing else 64), args.spacing, args.margin)
    if args.format == "hdf5" and args.shape is None and args.spacing is not None:
        raise DataError("crop: the rows of an HDF5 have one shape; give --shape beside --spacing")
    check_out_folder(args.out)
    if any(same_place(args.out, Path(exam)) for exam in args.exams):
        # A folder of crops is a data directory of its own, which would look like an exam in this one.
        raise DataError(
            f"{args.out}: --out is where the exams come from; choose another folder for the crops"
        )
    skipped: dict[str, str] = {}
    exams, labels = _exams(args, skipped)
    refuse_skipped(args, skipped)
    source = [one_exam(args.source, "--from")] if args.source else []
    inputs = (
        files_of_exams([*exams.values(), *source]) + model_files(args) + ([args.boxes] if args.boxes else [])
    )
    model = load_model(args)
    boxes = _boxes(args, model, source)
    stems, suffix = mask_stems(boxes), SUFFIXES[args.format]
    image = "ct" if model.intensity == "hu" else "image"
    outputs = [args.out / "crops.json", args.out / "crops.csv"]
    for stem in stems.values():
        if args.format == "hdf5":
            outputs.append(args.out / f"{stem}.h5")
            continue
        outputs.append(args.out / stem / "labels.json")
        for name in exams:
            outputs += image_paths(args.out / stem, name, suffix, image, labels)
    refuse_overwriting(outputs, inputs)
    rows, failed = _cut(args, model, exams, labels, boxes, stems, view, image)
    _write_table(args.out, rows)
    list_skipped(skipped | failed)
    written = sum(bool(row["file"]) for row in rows)
    data = {"out": str(args.out), "crops": rows, "failed": failed, "skipped": skipped}
    print_result(args, data, f"{args.out}: {written} of {len(exams) * len(boxes)} views written")
    return 1 if failed else 0


def _cut(
    args: argparse.Namespace,
    model: Model,
    exams: dict[str, ExamFiles],
    labels: dict[str, int] | None,
    boxes: dict[str, Box],
    stems: dict[str, str],
    view: CropView,
    image: str,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Cut the boxes out of every exam and write them; returns a row for each view, and the exams that failed."""
    import json

    import numpy as np

    from deepatlas.exams.read import read_labels_for, read_volume
    from deepatlas.files import write_text
    from deepatlas.localize.crop import crop
    from deepatlas.localize.crop_files import SUFFIXES, CropRows, crop_rows, write_images
    from deepatlas.model.known import KnownExam

    hounsfield, say = model.intensity == "hu", progress_lines(args)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    tables: dict[str, CropRows] = {}
    named = False
    with ExitStack() as stack:
        if args.format == "hdf5":
            shape = np.broadcast_to(np.asarray(view.shape), 3).tolist()
            for name, box in boxes.items():
                path = args.out / f"{stems[name]}.h5"
                tables[name] = stack.enter_context(crop_rows(path, box, shape, hounsfield, labels))
        for count, (name, files) in enumerate(exams.items(), 1):
            try:
                volume = read_volume(files.ct, kind=files.kind)
                seg = read_labels_for(volume, files.seg, labels) if labels is not None and files.seg else None
                known = KnownExam.of(model.map_exam(volume), volume.grid, name)
                note_unknown(args, name, known.fit)
            except DataError as error:
                if args.strict:
                    raise
                failed[name] = str(error)
                continue
            for box_name, box in boxes.items():
                row: dict[str, Any] = {"exam": name, "box": box_name, "file": None, "reason": ""}
                rows.append(row)
                try:
                    found = crop(known, volume, box, view, seg, model.intensity)
                except DataError as error:
                    row |= {"coverage": 0.0, **known.fit.to_dict(), "reason": str(error)}
                    continue
                row |= {**found.to_dict(), "reason": _why_not(args, found)}
                if row["reason"]:
                    continue
                # Outside the try, so that a full disk ends the run instead of failing every exam.
                if args.format == "hdf5":
                    row["file"] = str(args.out / f"{stems[box_name]}.h5")
                    row["row"] = tables[box_name].add(name, found)
                    continue
                folder = args.out / stems[box_name]
                if labels is not None and not named:
                    for stem in stems.values():
                        write_text(args.out / stem / "labels.json", json.dumps(labels, indent=1) + "\n")
                    named = True
                paths = write_images(folder, name, SUFFIXES[args.format], image, found, hounsfield, labels)
                row["file"] = str(paths[0])
            if say:
                done = sum(bool(row["file"]) for row in rows if row["exam"] == name)
                say(f"crop {count}/{len(exams)} {name}: {done} of {len(boxes)} views")
    return rows, failed


def _why_not(args: argparse.Namespace, found: Crop) -> str:
    """Why a view is not written; empty where it is."""
    if found.fit.known is False:
        return "the model does not know the exam"
    if found.coverage < args.min_coverage:
        return f"{found.coverage:.0%} of the view lie inside the exam, less than --min-coverage"
    return ""


def _exams(
    args: argparse.Namespace, skipped: dict[str, str]
) -> tuple[dict[str, ExamFiles], dict[str, int] | None]:
    """The exams by their names, and with ``--labels`` the table of their structures."""
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.joined import find_cohort

    if not args.labels:
        return named_exams(args.exams, skipped), None
    cohort = find_cohort(args.exams)
    skipped |= cohort.skipped
    if not cohort.labels:
        raise DataError(f"{cohort.root}: holds no labels; leave out --labels")
    return {exam.id: exam for exam in cohort.exams}, dict(cohort.labels)


def _boxes(args: argparse.Namespace, model: Model, source: list[ExamFiles]) -> dict[str, Box]:
    """The boxes of the atlas, by what their views are called."""
    from deepatlas.exams.read import read_volume
    from deepatlas.io.export.markups import read_markups
    from deepatlas.localize.crop import box_of
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.template.marks import check_marks
    from deepatlas.model.known import known_exam
    from deepatlas.model.project_box import box_in_atlas
    from deepatlas.space.markup import Markups

    if args.boxes:
        drawn = read_markups(args.boxes).boxes
        if not drawn:
            raise DataError(f"{args.boxes}: holds no box")
        check_marks(Markups(boxes=drawn), str(args.boxes))
        volume = read_volume(source[0].ct, kind=source[0].kind)
        known = known_exam(model, volume)
        note_unknown(args, source[0].id, known.fit)
        return {box.name: box_in_atlas(known.field, box, known.grid, known.body) for box in drawn}
    names, args.structures = args.structures, None
    template = load_template(args, model)
    if not isinstance(template, Template):
        raise DataError(f"{args.model}: was trained on labels and has no coordinates, which boxes need")
    wanted = [[name] for name in args.box] or [names]
    found = [box_of(template, each, str(args.template)) for each in wanted]
    return {box.name: box for box in found}


def _write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    import csv
    import io
    import json

    from deepatlas.cells import cell
    from deepatlas.files import write_text

    write_text(folder / "crops.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    keys = ("exam", "box", "file", "coverage", "residual_mm", "shear_degrees", "fit", "known", "reason")
    text = io.StringIO()
    table = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(folder / "crops.csv", text.getvalue())


def _shape(text: str) -> tuple[int, int, int]:
    """``64`` or ``96x96x64`` (x, y, z) as (z, y, x)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 3) or not all(part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to 1024, or three such as 96x96x64, got {text}"
        )
    x, y, z = [int(part) for part in parts] * (3 // len(parts))
    return z, y, x


def _spacing(text: str) -> tuple[float, float, float]:
    """``1`` or ``1x1x2`` in mm (x, y, z)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 3):
        raise argparse.ArgumentTypeError(f"must be a number of mm, or three such as 1x1x2, got {text}")
    x, y, z = [_MM(part) for part in parts] * (3 // len(parts))
    return x, y, z
