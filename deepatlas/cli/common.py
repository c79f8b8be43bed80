"""What several commands share: arguments, types of arguments, results and warnings.

Heavy imports happen inside the functions, so that ``deepatlas --help`` answers at once. Progress goes to stderr,
results go to files and stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.errors import PROGRAM, DeepAtlasError

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.localize.template.file import Template

Commands = (
    argparse._SubParsersAction
)  # the object that argparse gives out for adding commands has no public name


# -- arguments ---------------------------------------------------------------------------------------------------


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A command with the arguments that all commands have. ``text`` is its line in ``--help``."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    command.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return command


def add_model(command: argparse.ArgumentParser) -> None:
    """``--model`` and how it is used."""
    command.add_argument(
        "--model", required=True, metavar="M", help="run folder, model file, or a shipped model"
    )
    command.add_argument("--device", help="cpu, cuda … (default: a GPU if there is one)")
    command.add_argument(
        "--refine",
        type=STEPS,
        default=0,
        metavar="N",
        help="registration steps per exam after the network's pass (0; 20 is plenty); the same for the template",
    )
    command.add_argument(
        "--average",
        type=POSITIVE,
        default=1,
        metavar="N",
        help="average the coordinates of N slightly moved views of each exam, a pass of the network each (1)",
    )


def add_template(command: argparse.ArgumentParser) -> None:
    """``--template`` and how it is used."""
    command.add_argument(
        "--template", required=True, type=Path, metavar="T", help="file of `template`, or a shipped model"
    )
    command.add_argument("--any-model", action="store_true", help="accept a template of another model")
    command.add_argument(
        "--threshold",
        type=FRACTION,
        help="mask value that counts, for all structures; by default each "
        "structure has its own, which keeps the volume it has in the template",
    )


def add_strict(command: argparse.ArgumentParser) -> None:
    """``--strict``."""
    command.add_argument(
        "--strict", action="store_true", help="stop at the first bad exam instead of skipping it"
    )


def number(kind: type, good: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A type for argparse: numbers that are ``good``, and one message for those that are not."""

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
SIDE = number(int, lambda v: v >= 2, "a whole number of at least 2")


# -- what commands do with them ----------------------------------------------------------------------------------


def progress_lines(args: argparse.Namespace) -> Callable[[str], None] | None:
    """A function that prints a line of progress on stderr, or None with ``--quiet``."""
    return None if args.quiet else lambda line: print(line, file=sys.stderr, flush=True)


def print_result(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """Print the outcome: for a machine with ``--json``, for a reader without."""
    print(json.dumps(data, indent=1, allow_nan=False) if args.json else text, flush=True)


def list_skipped(skipped: Mapping[str, str]) -> None:
    """One line on stderr for every exam that could not be used."""
    for name, why in skipped.items():
        print(f"{PROGRAM}: skipped {name}: {why}", file=sys.stderr)


def load_model(args: argparse.Namespace) -> Model:
    """The model of ``--model``, ``--device``, ``--refine`` and ``--average``."""
    from deepatlas.api import Model

    return Model.load(args.model, device=args.device, refine=args.refine, average=args.average)


def load_template(args: argparse.Namespace, model: Model) -> Template:
    """The template of ``--template``. One of another model is refused unless ``--any-model`` is given."""
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
    # The cards of shipped models give figures for both, so their templates are passed over.
    if bool(steps) != bool(model.refine) and str(args.template) not in shipped():
        print(
            f"{PROGRAM}: warning: {args.template}: made with --refine {steps}, now it is {model.refine}; "
            "masks fit best when both are refined or neither",
            file=sys.stderr,
        )
    return template
