"""``deepatlas segment``: the masks of a template, or of a model that was trained on labels, on exams."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    FRACTION,
    Commands,
    add_command,
    add_model,
    add_strict,
    add_template,
    add_trust,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_unknown,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.errors import PROGRAM, DataError

if TYPE_CHECKING:
    from deepatlas.localize.trust.estimate import Trust


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "segment", run, "carry the masks of a template onto exams, on the grid of each exam"
    )
    add_model(c)
    add_template(c)
    c.add_argument(
        "exams",
        nargs="+",
        metavar="EXAM",
        help="image, exam file of a dataset, folder of an exam (image or DICOM), or data directory",
    )
    c.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for <exam>.nii.gz and labels.json"
    )
    c.add_argument(
        "--suffix",
        default=".nii.gz",
        choices=(".nii.gz", ".nii", ".nrrd", ".mha"),
        help="format of the files (default: .nii.gz)",
    )
    c.add_argument(
        "--masks",
        action="store_true",
        help="also write <exam>/<structure>.nii.gz, the whole mask of every structure, whatever overlaps it",
    )
    add_trust(c)
    c.add_argument(
        "--min-trust",
        type=FRACTION,
        metavar="V",
        help="leave out masks whose predicted Dice is below V, and say so; implies --trust",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.mask_files import mask_paths, write_masks
    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.files import write_text
    from deepatlas.io.codec import write_volume
    from deepatlas.localize.segment import segment

    check_out_folder(args.out)
    skipped: dict[str, str] = {}
    exams = named_exams(args.exams, skipped)
    refuse_skipped(args, skipped)
    inputs = files_of_exams(exams.values()) + model_files(args)
    outputs = [args.out / f"{name}{args.suffix}" for name in exams] + [args.out / "labels.json"]
    refuse_overwriting(outputs, inputs)
    model = load_model(args)
    template = load_template(args, model)
    if args.masks:
        masks = [mask_paths(args.out / name, template.names, args.suffix).values() for name in exams]
        refuse_overwriting([path for paths in masks for path in paths], inputs)
    say, done, fits, failed = progress_lines(args), {}, {}, {}
    trust: dict[str, dict[str, Any]] = {}
    reasons: set[str] = set()
    names = json.dumps(template.labels, indent=1) + "\n"
    _keep_names_of_masks(args.out / "labels.json", names)
    for count, (name, exam) in enumerate(exams.items(), 1):
        try:
            volume = read_volume(exam.ct, kind=exam.kind)
            labels = segment(
                model, volume, template, args.threshold, trust=args.trust, least_trust=args.min_trust
            )
            note_unknown(args, name, labels.fit)
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        # This stands outside the try, so that a full disk ends the run instead of failing every exam.
        if not done:
            # Before the first mask, so that none is there without the names of its structures.
            write_text(args.out / "labels.json", names)
        done[name] = str(write_volume(args.out / f"{name}{args.suffix}", labels))
        if args.masks:
            write_masks(args.out / name, labels, template.labels, args.suffix)
        fits[name] = labels.fit
        if labels.trust is not None:
            trust[name] = {s: t.to_dict() for s, t in labels.trust.items()}
            _note_trust(name, labels.trust, args.min_trust, reasons)
        if say:
            say(f"segment {count}/{len(exams)} {name}")
    list_skipped(skipped | failed)
    data = {
        "segmented": done,
        "exams": {n: f.to_dict() | _structures(trust.get(n)) for n, f in fits.items()},
        "failed": failed,
        "skipped": skipped,
    }
    unknown = sum(f.known is False for f in fits.values())
    text = f"{args.out}: {len(done)} of {len(exams)} exams segmented"
    print_result(args, data, f"{text}, {unknown} of them not known to the model" if unknown else text)
    return 1 if failed else 0


def _structures(trust: dict[str, Any] | None) -> dict[str, Any]:
    return {} if trust is None else {"structures": trust}


def _note_trust(exam: str, trust: Mapping[str, Trust], least: float | None, reasons: set[str]) -> None:
    """Say which masks were left out, and once why masks have no trust."""
    if least is not None:
        low = [f"{s} ({t.value:.2f})" for s, t in trust.items() if t.value is not None and t.value < least]
        if low:
            print(f"{PROGRAM}: {exam}: left out for trust below {least:g}: {', '.join(low)}", file=sys.stderr)
    for structure, one in trust.items():
        if one.value is None and one.reason not in reasons:
            reasons.add(one.reason)
            print(f"{PROGRAM}: warning: {exam}: no trust of {structure}: {one.reason}", file=sys.stderr)


def _keep_names_of_masks(path: Path, names: str) -> None:
    """Refuse to give masks that are there already the names of other structures."""
    try:
        if not path.exists() or path.read_text(encoding="utf-8-sig") == names:
            return
    except (OSError, UnicodeDecodeError):
        # It is no file of this command, and must not be lost either.
        pass
    raise DataError(
        f"{path}: names other structures than this template, model or --structures, and their masks may lie beside it; "
        "choose another --out, or delete these first"
    )
