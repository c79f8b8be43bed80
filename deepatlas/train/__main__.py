"""Train a model and score it one-shot: ``python -m deepatlas.train``, which is also ``deepatlas train``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError, guarded, lenient_output
from deepatlas.presets import PRESETS, preset
from deepatlas.train.arguments import (
    add_data,
    add_run,
    add_test,
    check_resume,
    data_arguments,
    finish_experiment,
    model_name,
    move_settings,
    run_experiment,
)
from deepatlas.train.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``deepatlas train``."""
    add_data(
        parser,
        "exams to train on: what `deepatlas prepare` wrote, or DIR/<exam>/ct.nii.gz (or mr, image), labels "
        "optional; may be given several times; without it a phantom cohort is made",
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="starting point of the settings; default tiny "
        "for the phantom, small for --data on a CPU, paper for --data on a GPU",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder; default runs/<name of the data>")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue an interrupted run; with settings, also one that has ended (train.steps=[20,60,400,900])",
    )
    parser.add_argument(
        "--init",
        metavar="M",
        help="start a new run from the weights of a run folder, a model file, or a shipped model",
    )
    regions = parser.add_argument_group("regions of a model, each with a network of its own")
    regions.add_argument(
        "--parent",
        metavar="M",
        help="train regions of this model: a run folder, or a shipped model; each in M/regions/NAME, or in "
        "RUN/regions/NAME beside a copy of the model with --out RUN. Without --data, on the exams of its run",
    )
    regions.add_argument(
        "--region", metavar="NAME", help="the region to train; default all that have no model yet"
    )
    regions.add_argument(
        "--regions",
        metavar="TREE",
        help="the regions and their boxes: a TOML file, or a tree that comes with the package; default "
        "M/regions.toml, or the tree that is called as the model or its preset. Without --parent, the model of whole "
        "exams is trained first",
    )
    regions.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that cut the region out of the exams; default one for each core",
    )
    add_test(parser)
    parser.add_argument(
        "--template-exams",
        nargs="+",
        metavar="ID",
        help="labelled training exams that the template is made from; default the best labelled one",
    )
    parser.add_argument(
        "--structures", nargs="+", metavar="NAME", help="score only these structures; default all"
    )
    parser.add_argument(
        "--seed-exam",
        metavar="ID",
        help="exam that the atlas starts from; default the one with the widest coverage",
    )
    add_run(parser)


def _workers(text: str) -> int:
    """The type of ``--workers``: 0 is this process alone."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text}")
    return int(text)


# The options that take everything up to the next option, and those that a run keeps.
_LISTS = ("test_exams", "template_exams", "structures")
_REGIONS = ("parent", "region", "regions")
_FIXED = ("data", "split", "preset", "out", "test", *_LISTS, "seed_exam", "init", *_REGIONS)
# A tree may also stand beside --resume.
_FIXED_WITH_TREE = tuple(name for name in _FIXED if name != "regions")


def run(arguments: argparse.Namespace) -> int:
    """Run with parsed arguments; returns the exit status."""
    from deepatlas.train.experiment import Experiment

    move_settings(arguments, _LISTS)
    regions = any(getattr(arguments, name) for name in _REGIONS)
    if arguments.workers is not None and not (regions or arguments.resume):
        raise DeepAtlasError("--workers is about regions of a model: give --parent M too")
    if arguments.regions and not arguments.parent and not arguments.region:
        return _run_tree(arguments)
    if not arguments.resume and regions:
        from deepatlas.train.cascade import train_regions

        return train_regions(arguments)
    return run_experiment(
        arguments,
        lambda: Experiment.create(
            _settings(arguments), _request(arguments), device=arguments.device, quiet=arguments.quiet
        ),
        _FIXED,
    )


def _run_tree(arguments: argparse.Namespace) -> int:
    """Train a model of whole exams, and then every region of a tree, which has its settings from that model."""
    from deepatlas.train.cascade import check_tree, finish_regions
    from deepatlas.train.experiment import Experiment
    from deepatlas.train.folder import RESULT
    from deepatlas.train.score import result_text

    check_tree(arguments.regions)
    check_resume(arguments, _FIXED_WITH_TREE)
    if arguments.resume and (arguments.resume / RESULT).is_file() and not arguments.settings:
        # The model of whole exams has ended, and what is left is regions.
        folder, result = arguments.resume, json.loads((arguments.resume / RESULT).read_text(encoding="utf-8"))
    else:
        # The processes are those that cut the regions.
        experiment, result = finish_experiment(
            argparse.Namespace(**vars(arguments) | {"workers": None}),
            lambda: Experiment.create(
                _settings(arguments), _request(arguments), device=arguments.device, quiet=arguments.quiet
            ),
            _FIXED_WITH_TREE,
        )
        folder = experiment.folder
        if not arguments.json:
            print(result_text(folder, result))
    options = dict.fromkeys((*_FIXED_WITH_TREE, "resume"), None) | {"settings": []}
    options |= {k: getattr(arguments, k) for k in ("regions", "workers", "device", "quiet", "json", "strict")}
    regions = finish_regions(argparse.Namespace(**options | {"parent": str(folder)}))
    if arguments.json:
        print(json.dumps(result | {"regions": regions}, indent=2))
    return 0


def _settings(arguments: argparse.Namespace) -> Config:
    import torch

    from deepatlas.model.engine import Engine
    from deepatlas.store.store import Store, is_store

    if arguments.preset:
        config = preset(arguments.preset)
    elif arguments.init:
        config = Engine.load(arguments.init, "cpu").config
    elif arguments.data is None:
        config = preset("tiny")
    else:
        gpu = (arguments.device or "cuda").startswith("cuda") and torch.cuda.is_available()
        config = preset("paper" if gpu else "small")
    if arguments.init:
        # The weights have learned already what pretraining on one exam teaches, and would unlearn the rest by it.
        config = replace(config, coarse=replace(config.coarse, steps=0))
    if arguments.data and len(arguments.data) == 1 and is_store(arguments.data[0]):
        # A prepared dataset was cropped when it was made. A data.crop in the command is still applied afterwards, so
        # that another crop is refused.
        with Store(arguments.data[0]) as store:
            if store.region:
                raise DeepAtlasError(
                    f"{arguments.data[0]}: holds the crops of a region, not whole exams; give the data directory"
                )
            config = replace(config, data=replace(config.data, crop=store.crop, intensity=store.intensity))
    return config.override(arguments.settings).validate()


def _request(arguments: argparse.Namespace) -> Request:
    if arguments.test and not arguments.data:
        raise DeepAtlasError(
            "--test needs --data: without data, a run makes phantoms to train and to test on"
        )
    names = "+".join(root.resolve().name for root in arguments.data or ())
    return Request(
        **data_arguments(arguments, arguments.out or Path("runs") / (names or "phantom")),
        template_exams=arguments.template_exams,
        seed_exam=arguments.seed_exam,
        init=model_name(arguments.init) if arguments.init else None,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; errors are one line on standard error."""
    lenient_output()
    parser = argparse.ArgumentParser(prog="python -m deepatlas.train", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(run, arguments, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
