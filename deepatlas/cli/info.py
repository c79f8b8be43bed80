"""``deepatlas info``: versions, devices, the backend of the kernels, and the card of a model."""

from __future__ import annotations

import argparse
import json

from deepatlas.cli.common import Commands, add_command, load_model, print_result


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "info", run, "show versions, devices, the backend of the kernels, and the card of a model"
    )
    c.add_argument(
        "model", nargs="?", metavar="MODEL", help="run folder, model file, or name of a shipped model"
    )
    # The options of add_model, which have no meaning here.
    c.set_defaults(device=None, refine=0, average=1)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
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
            lines.append(f"{pad}{key}: {'none' if value is None else text}")
    return lines
