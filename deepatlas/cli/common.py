"""What every ``deepatlas <command>`` does with its parsed arguments.

Heavy imports happen inside the commands, so that ``deepatlas --help`` answers at once. Every command returns
its exit code: 0 only when all that was asked for has been done. Progress goes to stderr, results to files and
stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deepatlas.errors import PROGRAM, DataError, DeepAtlasError


def _say(args: argparse.Namespace) -> Callable[[str], None] | None:
    return None if args.quiet else lambda line: print(line, file=sys.stderr, flush=True)


def _result(args: argparse.Namespace, data: dict, text: str) -> None:
    """Print the outcome: for a machine with --json, for a reader without."""
    print(json.dumps(data, indent=1, allow_nan=False) if args.json else text, flush=True)


def _list_skipped(skipped: dict[str, str]) -> None:
    for name, why in skipped.items():
        print(f"{PROGRAM}: skipped {name}: {why}", file=sys.stderr)


def _load(args: argparse.Namespace):
    from deepatlas.model.engine import Model

    return Model.load(args.model, device=args.device, refine=args.refine, average=args.average)


def _template(args: argparse.Namespace, model):
    from deepatlas.localize.template.file import Template
    from deepatlas.pretrained import shipped

    template = Template.load(args.template)
    try:
        template.check_model(model.fingerprint, str(args.template))
    except DeepAtlasError as error:
        if not args.any_model:
            raise DeepAtlasError(f"{error} (or --any-model to use it all the same)") from None
        print(f"{PROGRAM}: warning: {error}", file=sys.stderr)
        template.meta = {**template.meta, "model": None}
    steps = template.meta.get("refine", 0)
    if bool(steps) != bool(model.refine) and str(args.template) not in shipped():  # whose cards tell of both
        print(
            f"{PROGRAM}: warning: {args.template}: made with --refine {steps}, now it is {model.refine}; "
            "masks fit best when both are refined or neither",
            file=sys.stderr,
        )
    return template


def exam_name(path: Path) -> str:
    """What an exam file is called in results: its folder for ``<exam>/ct.nii.gz``, otherwise its stem."""
    from deepatlas.io.codec import image_suffix

    if path.suffix == ".h5":  # of a dataset
        return path.stem
    name = path.name
    stem = name[: len(name) - len(image_suffix(path))]
    folder = path.absolute().parent.name
    return folder if stem.lower() == "ct" and folder else stem


def exam_files(arguments: Sequence[str | Path]) -> dict[str, Path]:
    """``{name: file}`` of EXAM arguments: images, exam folders (their CT or DICOM), data directories (all exams)."""
    from deepatlas.exams.cohort import find_exams
    from deepatlas.io.codec import SUFFIXES, holds_dicom

    found: dict[str, Path] = {}
    for path in map(Path, arguments):
        if path.is_dir():
            ct = [p for s in SUFFIXES if (p := path / f"ct{s}").is_file()]
            if not ct and any(p.is_file() and holds_dicom(p) for p in sorted(path.iterdir())[:8]):
                ct = [path]
            files = ct[:1] or [e.ct for e in find_exams(path).exams]
        else:
            files = [path]
        for file in files:
            name = exam_name(file)
            if name in found and found[name].resolve() != file.resolve():
                raise DataError(
                    f"{file}: has the same name ({name}) as {found[name]}; give them in separate calls"
                )
            found[name] = file
    return found


# -- commands ------------------------------------------------------------------------------------------------


def train(rest: Sequence[str]) -> int:
    from deepatlas.train.__main__ import main

    return main(list(rest)) or 0


def prepare(args: argparse.Namespace) -> int:
    from deepatlas.intake.run.pipeline import Options
    from deepatlas.intake.run.pipeline import prepare as run

    if args.check and args.dst is None:
        return _check(args, args.src)
    if args.dst is None:
        raise DataError(f"{args.src}: where to? give DST, the folder of the dataset")
    options = Options(
        crop=args.crop, names=args.labels, series=dict(args.series), keep_ids=args.keep_ids, strict=args.strict,
        workers=args.workers, shard=args.shard, merge=args.merge, engine=args.engine, address=args.address,
        progress=not args.quiet,
    )  # fmt: skip
    try:
        summary = run(args.src, args.dst, options)
    except KeyboardInterrupt:
        print("what is done stays; the same command goes on from there", file=sys.stderr)
        raise
    what = "in this shard; --merge when all are done" if args.shard else f"{len(summary.labels)} structures"
    text = f"{args.dst}: {summary.exams} exams ({summary.made} new), {what}; {len(summary.refused)} exams refused"
    return (
        _check(args, args.dst, summary.as_dict(), text)
        if args.check
        else _result(args, summary.as_dict(), text) or 0
    )


def _check(args: argparse.Namespace, folder: Path, data: dict | None = None, text: str = "") -> int:
    from deepatlas.intake.dataset.check import check_dataset

    damages = [str(damage) for damage in check_dataset(folder, progress=not args.quiet)]
    for line in damages:
        print(f"{PROGRAM}: {folder}: {line}", file=sys.stderr)
    data = {**(data or {"dataset": str(folder)}), "damages": damages}
    _result(args, data, f"{text or folder}: {f'{len(damages)} damages' if damages else 'whole'}")
    return 1 if damages else 0


def template(args: argparse.Namespace) -> int:
    from deepatlas.localize.template.build import build_template

    template = build_template(
        _load(args), args.data, args.exams, args.structures, size=args.size, strict=args.strict,
        progress=_say(args),
    )  # fmt: skip
    template.save(args.out)
    _list_skipped(template.meta["skipped"])
    data = {"template": str(args.out), "labels": template.labels} | template.meta
    names, exams = len(template.names), len(template.meta["exams"])
    _result(args, data, f"{args.out}: {names} structures from {exams} exam(s)")
    return 0


def segment(args: argparse.Namespace) -> int:
    from deepatlas.files import write_text
    from deepatlas.io.codec import read_volume, write_volume
    from deepatlas.localize.segment import segment

    exams = exam_files(args.exams)
    model = _load(args)
    template = _template(args, model)
    say, done, failed = _say(args), {}, {}
    write_text(args.out / "labels.json", json.dumps(template.labels, indent=1) + "\n")
    for count, (name, path) in enumerate(exams.items(), 1):
        try:
            labels = segment(model, read_volume(path), template, args.threshold)
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        # Outside the try: a disk that cannot be written ends the run instead of failing exam by exam.
        done[name] = str(write_volume(args.out / f"{name}{args.suffix}", labels))
        if say:
            say(f"segment {count}/{len(exams)} {name}")
    _list_skipped(failed)
    _result(
        args,
        {"segmented": done, "failed": failed},
        f"{args.out}: {len(done)} of {len(exams)} exams segmented",
    )
    return 1 if failed else 0


def locate(args: argparse.Namespace) -> int:
    from deepatlas.io.codec import read_volume
    from deepatlas.localize.points import locate, read_points, write_located

    names, points = read_points(args.points)
    targets = exam_files(args.to)
    sources = list(exam_files([args.source]).values())
    if len(sources) != 1:
        raise DataError(f"{args.source}: holds {len(sources)} exams; --from takes the one with the points")
    model, source = _load(args), read_volume(sources[0])
    say, located, failed = _say(args), {}, {}
    for count, (name, path) in enumerate(targets.items(), 1):
        try:
            located[name] = locate(model, points, source, read_volume(path))
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        if say:
            found = int(located[name].found.sum())
            say(f"locate {count}/{len(targets)} {name}: {found} of {len(names)} found")
    if located:
        write_located(args.out, names, located)
    _list_skipped(failed)
    found = {name: int(r.found.sum()) for name, r in located.items()}
    data = {"out": str(args.out) if located else None, "points": len(names), "found": found, "failed": failed}
    _result(args, data, f"{args.out}: {sum(found.values())} of {len(names) * len(found)} points found")
    return 1 if failed else 0


def evaluate(args: argparse.Namespace) -> int:
    from deepatlas.evaluate.run import evaluate_cohort
    from deepatlas.evaluate.tables import summary_table

    model = _load(args)
    summary = evaluate_cohort(
        model, _template(args, model), args.data, args.out, args.exams, args.strict, hd95=args.hd95,
        threshold=args.threshold, convention=args.convention, pictures=not args.no_pictures,
        progress=_say(args),
    )  # fmt: skip
    _list_skipped(summary["skipped"])
    _result(args, summary, f"{summary_table(summary)}\n{args.out / 'report.html'}")
    return 0


def phantom(args: argparse.Namespace) -> int:
    from deepatlas.phantom.patients import PhantomCohort

    if args.exams < 1:
        raise DeepAtlasError(f"phantom: --exams must be at least 1, got {args.exams}")
    PhantomCohort(seed=args.seed).write(args.out, range(args.exams), progress=not args.quiet)
    _result(args, {"data": str(args.out), "exams": args.exams}, f"{args.out}: {args.exams} phantom exams")
    return 0


def info(args: argparse.Namespace) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import deepatlas
    import deepatlas_ops as ops

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    packages = "torch numpy scipy h5py SimpleITK nibabel matplotlib jinja2 tensorboard".split()
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    data = {
        "deepatlas": deepatlas.__version__,
        "python": platform.python_version(),
        "packages": {p: installed(p) for p in packages},
        "devices": devices,
        "ops": ops.build_info(),
    }
    if args.model:
        model = _load(args)
        data["model"] = {
            "path": str(args.model),
            "fingerprint": model.fingerprint,
            "input_size": model.size,
            "atlas_size": model.atlas.shape[-1],
            "crop": model.crop,
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "card": model.card,
        }
    data = json.loads(json.dumps(data, default=str))
    _result(args, data, "\n".join(_outline(data)))
    return 0


def _outline(data: dict, indent: int = 0) -> list[str]:
    """Nested values as indented ``key: value`` lines."""
    lines = []
    for key, value in data.items():
        pad = "  " * indent
        if isinstance(value, dict):
            lines += [f"{pad}{key}:", *_outline(value, indent + 1)]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{pad}{key}: {'none' if value is None else text}")
    return lines
