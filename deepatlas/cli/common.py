"""What several commands share: arguments, types of arguments, models and templates, and the output of results.

Slow imports are made inside the functions, so that ``deepatlas --help`` answers at once. Progress goes to stderr, and
results go to files and to stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.errors import PROGRAM, DataError, DeepAtlasError, skipped_line

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import Trust
    from deepatlas.model.fit import Fit
    from deepatlas.model.structures import Structures

# The object through which argparse adds commands. It has no public name.
Commands = argparse._SubParsersAction

# A template of so many exams is better made as it is used. Measured on OpenKBP and the hippocampus set with 1 exam (one
# pass: .698 and .784 with a refined template, .675 and .763 without) and with 180 (.827 and .835).
_MANY = 10
# The parts of a split, as deepatlas.exams.parts has them, which is imported only where a command runs.
PARTS = ("train", "validation", "test")


# -- arguments ---------------------------------------------------------------------------------------------------


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command with the arguments that all commands have.

    Args:
        commands: where to add it.
        name: the name of the command.
        run: the function that runs it and returns the exit code.
        text: its line in ``deepatlas --help``, without a full stop.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    command.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return command


def add_model(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--model`` and the options that say how the model is used."""
    command.add_argument(
        "--model", required=required, metavar="M", help="run folder, model file, or name of a shipped model"
    )
    add_use_of_model(command)


def add_use_of_model(command: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is used."""
    command.add_argument(
        "--device", help="device of PyTorch, such as cpu or cuda (default: a GPU if there is one)"
    )
    command.add_argument(
        "--refine",
        type=STEPS,
        metavar="N",
        help="registration steps that refine every exam after the pass of the network (default: as the template was "
        "made; without a template, what served the model best when it was made; more than 20 bring little)",
    )
    command.add_argument(
        "--fast",
        action="store_const",
        const=0,
        dest="refine",
        help="one pass of the network; the same as --refine 0",
    )
    command.add_argument(
        "--average",
        type=POSITIVE,
        default=1,
        metavar="N",
        help="average the coordinates of N slightly moved views of every exam; each view takes one pass of the "
        "network (default: 1)",
    )
    command.add_argument(
        "--depth",
        type=STEPS,
        metavar="N",
        help="levels of the cascade: 0 for the network of the whole exam alone, 1 with its regions, 2 with the regions "
        "within them (default: all that the model has)",
    )


def add_template(command: argparse.ArgumentParser) -> None:
    """Add ``--template`` and the options that say how the template is used."""
    command.add_argument(
        "--template",
        type=Path,
        metavar="T",
        help="file that `deepatlas template` wrote, or name of a shipped model; a model of `deepatlas finetune` takes "
        "none",
    )
    add_structures(
        command,
        "use only these structures of the template or the model; put other arguments before this option",
    )
    command.add_argument(
        "--any-model", action="store_true", help="accept a template that was made for another model"
    )
    command.add_argument(
        "--threshold",
        type=FRACTION,
        metavar="V",
        help="mask value in (0, 1] that counts for all structures (default: a value for every structure that "
        "preserves its volume in the template; for a model of `deepatlas finetune`, a probability of 0.5)",
    )
    add_shape_only(command)


def add_shape_only(command: argparse.ArgumentParser) -> None:
    """Add ``--shape-only``."""
    command.add_argument(
        "--shape-only",
        action="store_true",
        help="let the masks alone decide, and not also what the structures look like in the image",
    )


def add_data(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--data``, which may be given several times, and ``--split``."""
    command.add_argument(
        "--data",
        required=required,
        type=Path,
        action="append",
        metavar="DIR",
        help="data directory or dataset with labelled exams; may be given several times",
    )
    command.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="which exams are for training, validation and test (default: splits.json in DIR)",
    )


def add_structures(command: argparse.ArgumentParser, help: str) -> None:
    """Add ``--structures``, which takes all names up to the next option."""
    command.add_argument("--structures", nargs="+", metavar="NAME", help=help)


def add_engines(command: argparse.ArgumentParser, does: str, merges: str) -> None:
    """Add ``--shard``, ``--merge``, ``--engine`` and ``--address``, which say what runs the work on many exams.

    Args:
        command: the command.
        does: what it does with a part of the exams.
        merges: what ``--merge`` does.
    """
    command.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help=f"{does} part I of N, with I from 0 to N-1; --merge joins the parts",
    )
    command.add_argument("--merge", action="store_true", help=merges)
    command.add_argument(
        "--engine",
        choices=("processes", "dask"),
        default="processes",
        help="what runs the work (default: processes)",
    )
    command.add_argument(
        "--address", help="scheduler of the dask cluster (default: a new cluster on this machine)"
    )


def add_strict(command: argparse.ArgumentParser, model: bool = True) -> None:
    """Add ``--strict``; ``model`` tells whether the command uses a model."""
    text = "stop at the first exam that cannot be used instead of skipping it"
    if model:
        text += ", and at the first that the model does not know"
    command.add_argument("--strict", action="store_true", help=text)


def add_trust(command: argparse.ArgumentParser) -> None:
    """Add ``--trust``."""
    command.add_argument(
        "--trust",
        action="store_true",
        help="also say how good each result probably is, with a 90 %% bound, by a few more passes of the network; it "
        "needs a template with a calibration (`deepatlas calibrate`)",
    )


def number(kind: type, good: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A type for argparse that accepts the numbers that are ``good``, and says what it ``expected`` of others."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return value

    return parse


POSITIVE = number(int, lambda v: v >= 1, "a whole number, 1 or more")
STEPS = number(int, lambda v: v >= 0, "a whole number, 0 or more")
FRACTION = number(float, lambda v: 0 < v <= 1, "in (0, 1]")
SEED = number(int, lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1")
DISTANCE = number(float, lambda v: 0 <= v < math.inf, "a number of mm, 0 or more")
SIDE = number(int, lambda v: v >= 2, "a whole number of at least 2")


def shard(text: str) -> tuple[int, int]:
    """The type of I/N."""
    index, mark, count = text.partition("/")
    if not (mark and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N-1, got {text}")
    return int(index), int(count)


def counted(count: int, word: str) -> str:
    """A number of things in English: ``1 box``, ``2 boxes``."""
    return f"{count} {word}" + ("" if count == 1 else "es" if word.endswith("x") else "s")


# -- running a command -------------------------------------------------------------------------------------------


def progress_lines(args: argparse.Namespace) -> Callable[[str], None] | None:
    """A function that prints a line of progress on stderr, or None with ``--quiet``."""
    return None if args.quiet else lambda line: print(line, file=sys.stderr, flush=True)


def print_result(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """Print the result on stdout: ``data`` as JSON with ``--json``, and otherwise ``text``."""
    print(json.dumps(data, indent=1, allow_nan=False) if args.json else text, flush=True)


def list_skipped(skipped: Mapping[str, str], most: int | None = None, rest: str = "") -> None:
    """Print one line on stderr for every exam that could not be used, also with ``--quiet``.

    After ``most`` exams, one line tells the number of the others, and ``rest`` where they are listed.
    """
    for name, why in list(skipped.items())[:most]:
        print(skipped_line(name, why), file=sys.stderr)
    if most is not None and len(skipped) > most:
        print(f"{PROGRAM}: skipped {len(skipped) - most} more, {rest}", file=sys.stderr)


def refuse_skipped(args: argparse.Namespace, skipped: Mapping[str, str]) -> None:
    """With ``--strict``, raise the error of the first folder of a data directory that holds no exam to be used."""
    if args.strict and skipped:
        raise DataError(next(iter(skipped.values())))


def note_unknown(args: argparse.Namespace, name: str, fit: Fit) -> None:
    """Print one line on stderr about an exam that the model does not know.

    Raises :class:`~deepatlas.errors.DataError` instead where ``--strict`` is given.
    """
    if message := fit.warning(name, args.strict):
        print(f"{PROGRAM}: warning: {message}", file=sys.stderr)


def note_no_trust(exam: str, trust: Mapping[str, Trust], told: set[str]) -> None:
    """Say on stderr why structures have no trust, each reason once.

    Args:
        exam: the name of the exam.
        trust: what to believe of its structures.
        told: the reasons that were said already; new ones are added.
    """
    for structure, one in trust.items():
        if one.value is None and one.reason not in told:
            told.add(one.reason)
            print(f"{PROGRAM}: warning: {exam}: no trust of {structure}: {one.reason}", file=sys.stderr)


def list_unknown(model: Model, fits: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line on stderr for every exam that the model does not know; ``fits`` are as results hold them."""
    from deepatlas.model.fit import Fit

    for name, about in fits.items():
        value = math.nan if about["fit"] is None else about["fit"]
        if about["known"] is False:
            print(f"{PROGRAM}: warning: {Fit(value, model.fit_threshold).warning(name)}", file=sys.stderr)


def load_model(args: argparse.Namespace) -> Model:
    """The model that ``--model``, ``--device``, ``--refine``, ``--average`` and ``--depth`` describe."""
    from deepatlas.api import Model

    return Model.load(
        args.model, device=args.device, refine=args.refine, average=args.average, depth=args.depth
    )


def model_files(args: argparse.Namespace) -> list[Path]:
    """The files that ``--model`` and, where a command has it, ``--template`` name."""
    from deepatlas.pretrained import MODEL, TEMPLATE, resolve

    path = resolve(args.model, MODEL)
    template = getattr(args, "template", None)
    return [path / MODEL if path.is_dir() else path, *([resolve(template, TEMPLATE)] if template else [])]


def refuse_options(args: argparse.Namespace, options: Mapping[str, object], cure: str) -> None:
    """Refuse options that would do nothing here, instead of ignoring them.

    Args:
        args: the arguments of the command.
        options: the options, and the value that each has where it was not given.
        cure: what the options are for, or what else to do.
    """
    for option, default in options.items():
        if getattr(args, option.removeprefix("--").replace("-", "_")) != default:
            raise DeepAtlasError(f"{option}: {cure}")


# The options of :func:`add_template` that say how a template is used, and those of :func:`add_use_of_model`, with their
# values where they are not given.
USE_OF_TEMPLATE = {"--structures": None, "--any-model": False, "--threshold": None, "--shape-only": False}
USE_OF_MODEL = {"--device": None, "--refine": None, "--average": 1, "--depth": None}


def load_template(args: argparse.Namespace, model: Model) -> Template | Structures:
    """The template of ``--template``, or the structures of a model that was trained on labels.

    Raises :class:`~deepatlas.errors.DeepAtlasError` for a template of another model, unless ``--any-model`` is given;
    without a template, if the model needs one; and with one, if the model takes none.
    """
    from deepatlas.localize.template.file import Template
    from deepatlas.pretrained import shipped

    if model.structures:
        shape_only = getattr(args, "shape_only", False)
        if args.template or args.any_model or shape_only:
            given = f"--template {args.template}" if args.template else "--any-model"
            given = "--shape-only" if shape_only else given
            raise DeepAtlasError(
                f"{args.model}: was trained on labels and has its structures by itself; leave out {given}"
            )
        return (
            model.structures.select(args.structures, str(args.model)) if args.structures else model.structures
        )
    if not args.template:
        raise DeepAtlasError(
            f"{args.model}: gives coordinates, so that it needs --template T; make one with `deepatlas template`"
            + (f", or give --template {args.model}" if args.model in shipped() else "")
        )
    template = Template.load(args.template)
    if getattr(args, "shape_only", False):
        template = template.shape_only()
    if args.structures:
        template = template.select(args.structures, str(args.template))
    try:
        template.check_model(model.fingerprint, str(args.template))
    except DeepAtlasError as error:
        if not args.any_model:
            raise DeepAtlasError(f"{error}, or use it nevertheless with --any-model") from None
        print(f"{PROGRAM}: warning: {error}", file=sys.stderr)
        template = replace(template, meta={**template.meta, "model": None})
    steps = template.meta.get("refine", 0)
    if args.refine is None:
        model.refine = steps
    # A shipped template may be used with and without refinement; the card of its model gives figures for both. One exam
    # is always better refined, while the mean of many also says how far one pass of the network is off.
    many = len(template.meta.get("exams", ())) >= _MANY
    if many and bool(steps) != bool(model.refine) and str(args.template) not in shipped():
        print(
            f"{PROGRAM}: warning: {args.template}: made from many exams with --refine {steps}, now it is "
            f"{model.refine}; such masks fit best when both are refined or neither is",
            file=sys.stderr,
        )
    return template


def keep_names_of_masks(path: Path, names: str) -> None:
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
