"""Train a model and score it one-shot: ``python -m deepatlas.train``, which is also ``deepatlas train``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError, guarded, lenient_output
from deepatlas.presets import PRESETS, preset
from deepatlas.settings import leaves
from deepatlas.train.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``deepatlas train``."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        action="append",
        help="exams to train on: what `deepatlas prepare` wrote, or DIR/<exam>/ct.nii.gz (or mr, image), labels "
        "optional; may be given several times; without it a phantom cohort is made",
    )
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="which exams are for training, validation and test, and whose labels may be used (default: splits.json in "
        "DIR)",
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
    parser.add_argument(
        "--test",
        type=Path,
        metavar="DIR",
        help="labelled exams for the one-shot score; without it some labelled exams are kept out of training",
    )
    parser.add_argument("--test-exams", nargs="+", metavar="ID", help="score only these exams of --test")
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
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default a GPU if there is one")
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first bad exam instead of skipping it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings, for example train.batch=4 seed=1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run with parsed arguments; returns the exit status."""
    from deepatlas.exams.outputs import check_name
    from deepatlas.train.allocator import keep_freed_memory
    from deepatlas.train.experiment import Experiment
    from deepatlas.train.score import result_text

    keep_freed_memory()
    _move_settings(arguments)
    if arguments.resume:
        given = [
            n
            for n in (
                "data",
                "split",
                "preset",
                "out",
                "test",
                "test_exams",
                "template_exams",
                "structures",
                "seed_exam",
                "init",
            )
            if getattr(arguments, n)
        ]
        if given:
            what = f"--{given[0].replace('_', '-')}"
            raise DeepAtlasError(
                f"--resume continues a run as it was set up: leave out {what}, or start a new --out"
            )
        check_name(arguments.resume, "a run")
        experiment = Experiment.resume(
            arguments.resume, arguments.settings, device=arguments.device, quiet=arguments.quiet
        )
    else:
        experiment = Experiment.create(
            _settings(arguments), _request(arguments), device=arguments.device, quiet=arguments.quiet
        )
    result = experiment.run()
    if not experiment.world.main:
        return 0
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(result_text(experiment.folder, result))
    return 0


# The options that take everything up to the next option.
_LISTS = ("test_exams", "template_exams", "structures")


def _move_settings(arguments: argparse.Namespace) -> None:
    """Settings behind an option that takes several names are settings: ``--structures brain coarse.steps=20``.

    What counts is the part before the equals sign: a setting, or anything within a section of the settings, so that a
    misspelt one is refused as such. Any other name with an equals sign remains a name, and must be one of the data.
    """
    known = {key for key, *_ in leaves(Config())}
    sections = {key.partition(".")[0] for key in known if "." in key}

    def is_setting(text: str) -> bool:
        key, equals, _ = text.partition("=")
        return bool(equals) and (key in known or key.partition(".")[0] in sections)

    for option in _LISTS:
        given = getattr(arguments, option)
        if not given:
            continue
        arguments.settings += [text for text in given if is_setting(text)]
        names = [text for text in given if not is_setting(text)]
        if not names:
            raise DeepAtlasError(
                f"--{option.replace('_', '-')} names nothing but settings; name at least one"
            )
        setattr(arguments, option, names)


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
            config = replace(config, data=replace(config.data, crop=store.crop, intensity=store.intensity))
    return config.override(arguments.settings).validate()


def _request(arguments: argparse.Namespace) -> Request:
    from deepatlas.exams.outputs import check_name, check_out_folder
    from deepatlas.train.request import refuse_writing_to_data

    if arguments.test and not arguments.data:
        raise DeepAtlasError(
            "--test needs --data: without data, a run makes phantoms to train and to test on"
        )
    if arguments.test_exams and not arguments.test:
        raise DeepAtlasError("--test-exams chooses among the exams of --test: give --test DIR too")
    data = [os.fspath(root.resolve()) for root in arguments.data or ()]
    out = arguments.out or Path("runs") / ("+".join(Path(root).name for root in data) or "phantom")
    if arguments.out:
        check_out_folder(out)
    check_name(out, "a run")
    refuse_writing_to_data(out, [*(arguments.data or ()), *([arguments.test] if arguments.test else ())])
    return Request(
        out=os.fspath(out),
        data=(data if len(data) > 1 else data[0]) if data else None,
        split=os.fspath(arguments.split.resolve()) if arguments.split else None,
        test=os.fspath(arguments.test.resolve()) if arguments.test else None,
        test_exams=arguments.test_exams,
        template_exams=arguments.template_exams,
        structures=arguments.structures,
        seed_exam=arguments.seed_exam,
        init=_init(arguments.init) if arguments.init else None,
        strict=arguments.strict,
    )


def _init(name: str) -> str:
    """How a run records the model that it starts from: by the name of a shipped one, or by an absolute path."""
    from deepatlas.pretrained import FOLDER, MODEL, resolve

    path = resolve(name, MODEL)
    return name if path.is_relative_to(FOLDER) else os.fspath(path.absolute())


def main(argv: list[str] | None = None) -> int:
    """Entry point; errors are one line on standard error."""
    lenient_output()
    parser = argparse.ArgumentParser(prog="python -m deepatlas.train", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(run, arguments, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
