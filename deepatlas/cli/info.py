"""``deepatlas info``: versions, devices and the backend of the kernels; or what a model, a file or a folder is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deepatlas.cli.common import Commands, add_command, load_model, print_result
from deepatlas.cli.describe import describe, is_model, model_facts, run_facts
from deepatlas.errors import DeepAtlasError
from deepatlas.pretrained import shipped


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "info", run, "show versions, devices and the backend of the kernels, or what a file is"
    )
    c.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="model (shipped name, run folder or file), template, dataset, data directory, training store, or CT",
    )
    c.add_argument("--model", metavar="M", help="the same for a model")
    c.add_argument(
        "--atlas",
        type=Path,
        metavar="DIR",
        help="write the atlas of the model there, and those of its regions, as images of one space",
    )
    # The options of add_model, which have no meaning here.
    c.set_defaults(device=None, refine=None, average=1, depth=None)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.file and args.model:
        raise DeepAtlasError(f"info: {args.file} and --model {args.model} are two things; give one of them")
    args.model = args.model or args.file
    if args.atlas and not (args.model and (args.model in shipped() or is_model(args.model))):
        raise DeepAtlasError("info: --atlas writes the atlas of a model; name a model")
    if args.model and Path(args.model).exists() and not is_model(args.model):
        data = json.loads(json.dumps(describe(args.model), default=str))
        print_result(args, data, "\n".join(_outline(data)))
        return 0
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import deepatlas_ops as ops
    from deepatlas.version import __version__

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    packages = "torch numpy scipy h5py SimpleITK nibabel matplotlib jinja2 tensorboard".split()
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    data = {
        "deepatlas": __version__,
        "python": platform.python_version(),
        "packages": {p: installed(p) for p in packages},
        "devices": devices,
        "ops": ops.build_info(),
    }
    if args.model:
        model = load_model(args)
        about: dict[str, Any] = {"model": model_facts(model, str(args.model))}
        if Path(args.model).is_dir() and args.model not in shipped():
            about = {"run": run_facts(Path(args.model))} | about
        if args.atlas:
            from deepatlas.train.atlas_files import write_atlas

            about["atlases"] = list(map(str, write_atlas(model, args.atlas)))
        # What was asked for comes first.
        data = about | data
    data = json.loads(json.dumps(data, default=str))
    print_result(args, data, "\n".join(_outline(data)))
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
            lines.append(f"{pad}{key}: {'none' if value in (None, []) else text}")
    return lines
