"""``deepatlas train --parent M``: the regions of a cascade, one run for each (section 5.2.4)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError, show_warning
from deepatlas.exams.outputs import check_out_folder
from deepatlas.files import atomic_path
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import FILE as MODEL_FILE
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Region, Regions, TemplateNeeded, shipped_trees
from deepatlas.presets import preset, region_settings
from deepatlas.pretrained import MODEL, TEMPLATE, resolve, shipped
from deepatlas.train.arguments import data_arguments
from deepatlas.train.crops import RegionNotCovered
from deepatlas.train.folder import CONFIG, RESULT, read_run
from deepatlas.train.parent import Parent
from deepatlas.train.region import FOLDER, RegionRun
from deepatlas.train.request import Request
from deepatlas.train.score import result_text

# What stands for all regions of a tree.
ALL = "all"
# The file in the folder of a model that holds its regions, where --regions does not name one.
TREE = "regions.toml"
# What a run is asked for; that of its parent, where nothing else is given.
_ASKED = ("data", "split", "test", "test_exams", "template_exams", "structures")


@dataclass(frozen=True)
class Target:
    """The model whose regions are trained: ``folder`` holds its ``model.pt`` and gets the runs of its regions."""

    folder: Path
    tree: Regions

    def run(self, region: Region) -> Path:
        """The folder of the run of a region."""
        return self.folder / FOLDER / region.name


def train_regions(arguments: argparse.Namespace) -> int:
    """Train one region of a model, or all that have none yet, and print the results; returns the exit status."""
    name = arguments.region or ALL
    results = finish_regions(arguments)
    if results is None:
        return 0
    if arguments.json:
        print(json.dumps(results if name == ALL else results[name], indent=2))
    elif not results:
        folder = arguments.out or Path(arguments.parent)
        print(f"nothing left to train: {folder / FOLDER}")
    return 0


def check_tree(tree: str) -> None:
    """Refuse a tree that cannot be read, before its parent is trained. Boxes of structures need the parent's template.

    Raises:
        DeepAtlasError: the tree is missing or wrong, or the run has several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DeepAtlasError(
            "--regions without --parent trains one network after another in one process; train the model of whole "
            "exams first, and then each region with --parent RUN --region NAME"
        )
    try:
        Regions.read(tree)
    except TemplateNeeded:
        return


def finish_regions(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Train one region of a model, or all that have none yet; returns their results, None in a helping process."""
    name = arguments.region or ALL
    if not arguments.parent:
        raise DeepAtlasError("--region NAME is a region of a model: give --parent M too")
    for option, why in (
        ("init", "a region starts from its parent's weights"),
        ("seed_exam", "the atlas of a region is its parent's, seen closer"),
    ):
        if getattr(arguments, option):
            raise DeepAtlasError(f"--{option.replace('_', '-')} has no meaning with --parent: {why}")
    if name == ALL and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DeepAtlasError("several processes train one region at a time: give --region NAME")
    target = _target(arguments)
    regions = list(target.tree.regions) if name == ALL else [target.tree[name]]
    results: dict[str, Any] = {}
    for region in regions:
        if name == ALL and _is_trained(target, region):
            continue
        try:
            run = _run(arguments, target, region, go_on=name == ALL)
            results[region.name] = run.run()
        except RegionNotCovered as error:
            if name != ALL:
                raise
            # A tree for whole bodies also serves cohorts of a part of the body.
            show_warning(f"{error}; the region is left out")
            continue
        if run.world.main and not arguments.json:
            print(result_text(run.folder, results[region.name]))
        if not run.world.main:
            return None
    return results


def _run(arguments: argparse.Namespace, target: Target, region: Region, *, go_on: bool) -> RegionRun:
    """A new run of a region; with ``go_on`` the one that was begun, if there is one."""
    folder = target.run(region)
    parent = Parent.of(target.folder, target.tree.path(region.name))
    if go_on and (folder / CONFIG).is_file():
        config, request = read_run(folder)
        _insist_on_same(folder, request.region, request.parent, region, parent)
        _insist_on_asked(arguments, folder, config, request)
        run = RegionRun.resume(folder, arguments.settings, device=arguments.device, quiet=arguments.quiet)
    else:
        request = _request(arguments, target, region, parent)
        config = _settings(arguments, Engine.load(target.folder, "cpu"))
        run = RegionRun.create(config, request, device=arguments.device, quiet=arguments.quiet)
    run.workers = arguments.workers
    return run


def _is_trained(target: Target, region: Region) -> bool:
    """Whether there is a finished run of a region, or a copy of its model. Another region of its name is an error."""
    folder = target.run(region)
    if not (folder / MODEL_FILE).is_file() or (
        (folder / CONFIG).is_file() and not (folder / RESULT).is_file()
    ):
        return False
    card = Engine.load(folder, "cpu").card.get("region", {})
    own = {key: value for key, value in card.items() if key in region.to_dict()}
    parent = Parent.of(target.folder, target.tree.path(region.name))
    theirs = {key: value for key, value in card.items() if key in parent.to_dict()}
    _insist_on_same(folder, own, theirs, region, parent)
    return True


def _insist_on_same(
    folder: Path,
    region: dict[str, Any] | None,
    parent: dict[str, Any] | None,
    now: Region,
    above: Parent,
) -> None:
    """Refuse a run of another region, or of another model, that has the folder of this one."""
    if region != now.to_dict():
        what = "is a run of a region with another box, level or coverage"
    elif parent is None or (parent["parent"], parent["above"]) != (
        above.fingerprint,
        above.to_dict()["above"],
    ):
        what = "is a run of a region of another model"
    else:
        return
    raise DeepAtlasError(
        f"{folder}: {what} than --parent and --regions say; remove it, or choose another --out"
    )


def _insist_on_asked(arguments: argparse.Namespace, folder: Path, config: Config, request: Request) -> None:
    """Refuse to go on with a run that was begun with other exams, structures or preset than are given now."""
    given = data_arguments(arguments, folder) | {"template_exams": arguments.template_exams}
    begun = request.to_dict() | {"preset": config.preset}
    for key in _ASKED:
        if given[key] is not None and given[key] != begun[key]:
            break
    else:
        if arguments.preset in (None, config.preset):
            return
        key = "preset"
    raise DeepAtlasError(
        f"{folder}: was begun with another --{key.replace('_', '-')} ({begun[key]}); leave it out to go on with that, "
        "or remove the folder"
    )


def _settings(arguments: argparse.Namespace, model: Engine) -> Config:
    start = preset(arguments.preset) if arguments.preset else model.config
    config = region_settings(start).override(arguments.settings).validate()
    if config.data.crop is not None:
        raise DeepAtlasError(
            "setting data.crop must be null in a region: its box is what crops; leave it out"
        )
    if config.data.intensity != model.intensity:
        raise DeepAtlasError(
            f"setting data.intensity must be that of the parent ({model.intensity}), got {config.data.intensity}"
        )
    return config


def _request(arguments: argparse.Namespace, target: Target, region: Region, parent: Parent) -> Request:
    """What the run is asked for; without ``--data``, the exams of the parent's run."""
    out = target.run(region)
    given = data_arguments(arguments, out) | {"template_exams": arguments.template_exams}
    before = _exams_of_parent(arguments)
    if before is not None and not arguments.data:
        if arguments.test and before.data is None:
            raise DeepAtlasError(
                "--test needs --data: the parent was trained on phantoms, and is tested on others"
            )
        given |= {key: given[key] if given[key] is not None else getattr(before, key) for key in _ASKED}
    request = Request(**given, region=region.to_dict(), parent=parent.to_dict())
    return _held_out_as(Path(arguments.parent), before, request) if before else request


def _exams_of_parent(arguments: argparse.Namespace) -> Request | None:
    """What the parent's run was asked for; None of a model without a run. Without both, ``--data`` is needed."""
    run = Path(arguments.parent)
    before = read_run(run)[1] if run.is_dir() and (run / CONFIG).is_file() else None
    if before is None and not arguments.data:
        raise DeepAtlasError(f"--parent {run}: is no run whose exams are known; give --data DIR too")
    return before


def _held_out_as(run: Path, before: Request, request: Request) -> Request:
    """The request, scored on the exams that the parent's run has held out of its training, if it has.

    Others would be known to the parent.
    """
    same = (before.data, before.split, before.test) == (request.data, request.split, request.test)
    if not same or request.data is None or not (run / RESULT).is_file():
        return request
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    if "held_out" not in result:
        return request
    return replace(request, parts={"path": str(run / RESULT), "validation": result["test_exams"]})


# -- the model and its tree -------------------------------------------------------------------------


def _target(arguments: argparse.Namespace) -> Target:
    path = resolve(arguments.parent, MODEL)
    own = path if path.is_dir() else path.parent if path.name == MODEL_FILE else None
    known = arguments.parent in shipped() and own != Path(arguments.parent)
    if own is None or known:
        if not arguments.out:
            what = "comes with the package" if known else "is a file of its own"
            raise DeepAtlasError(
                f"--parent {arguments.parent}: {what}; give --out MODEL, a folder for a copy with its regions"
            )
    tree = _tree(arguments, own)
    if not arguments.out:
        assert own is not None
        return Target(own, tree)
    check_out_folder(arguments.out)
    taken = tree.names
    if arguments.region not in (None, ALL):
        taken = [region.name for region in tree.path(arguments.region)][:-1]
    # What is no model of whole exams is refused before anything is written.
    Parent.of(arguments.parent, [tree.regions[0]])
    if not (arguments.out / MODEL_FILE).is_file():
        # Nor is anything begun there whose exams were known.
        _exams_of_parent(arguments)
    _copy(path, arguments.out, taken)
    return Target(arguments.out, tree)


def _tree(arguments: argparse.Namespace, own: Path | None) -> Regions:
    """The tree of ``--regions``, or that in the folder of the model, or the one that is called as it or its preset."""
    template = None if own is None else own / TEMPLATE
    masks = Template.load(template) if template and template.is_file() else None
    if arguments.regions:
        return Regions.read(arguments.regions, masks)
    if own is not None and (own / TREE).is_file():
        return Regions.read(own / TREE, masks)
    called = [arguments.parent, Engine.load(arguments.parent, "cpu").config.preset]
    if found := [name for name in called if name in shipped_trees()]:
        return Regions.read(found[0], masks)
    raise DeepAtlasError(
        f"--parent {arguments.parent}: which regions? Give --regions TREE.toml, or one of {', '.join(shipped_trees())}"
    )


def _copy(path: Path, out: Path, taken: list[str]) -> None:
    """Copy a model to a folder, with those of its regions that are ``taken`` along, unless they are there."""
    source = path / MODEL_FILE if path.is_dir() else path
    for model, copy in _files(source, out, taken):
        if copy.is_file():
            theirs, ours = (Engine.load(file, "cpu").fingerprint for file in (model, copy))
            if theirs != ours:
                raise DeepAtlasError(
                    f"{out}: holds another model ({ours}) than {model} ({theirs}); choose another --out"
                )
            continue
        with atomic_path(copy) as temporary:
            shutil.copyfile(model, temporary)


def _files(source: Path, out: Path, taken: list[str]) -> Iterator[tuple[Path, Path]]:
    yield source, out / MODEL_FILE
    for name in taken:
        model = source.parent / FOLDER / name / MODEL_FILE
        if model.is_file():
            yield model, out / FOLDER / name / MODEL_FILE
