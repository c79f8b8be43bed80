"""A run on a region of another model: its network sees crops and answers in the coordinates of the parent (5.2.4).

The folder of the run is ``MODEL/regions/NAME`` in the folder of the model of whole exams, where that model finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.exams.joined import Data, roots_of
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Region
from deepatlas.nn import parameter_count
from deepatlas.space.affine import affine_coords
from deepatlas.space.constants import MODEL_SIZE
from deepatlas.space.preprocess import foreground_mask
from deepatlas.store.store import Store
from deepatlas.train.cache import store_path, used
from deepatlas.train.crops import Cutter, RegionNotCovered, prepare_crops
from deepatlas.train.data import make_phantoms
from deepatlas.train.experiment import Experiment
from deepatlas.train.feed.labels import LabelMaps, pooled_extent
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.parent import Parent
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.region_score import score_region
from deepatlas.train.request import Request
from deepatlas.train.split import Split

# Where a model keeps those of its regions.
FOLDER = "regions"


class RegionRun(Experiment):
    """A run of ``deepatlas train --parent M --region NAME``."""

    # The number of processes that cut the crops; None is one for each core.
    workers: int | None = None

    @property
    def region(self) -> Region:
        """The region of the run."""
        assert self.request.region is not None
        return Region.from_dict(self.request.region)

    @property
    def model_folder(self) -> Path:
        """The folder of the model of whole exams."""
        return model_of(self.folder)

    @staticmethod
    def _check_start(config: Config, request: Request) -> None:
        _parent(Path(request.out), request)

    def _prepare(self, log: RunLog | NullLog) -> Store:
        parent = _parent(self.folder, self.request)
        cutter = Cutter(parent, self.region, str(self.world.device))
        data: Data | None = self.request.data
        assert self.request.parent is not None
        if data is None:
            # The phantoms that the parent was trained on, where they are.
            root = self.model_folder / "phantom"
            root = root if root.is_dir() else self.folder / "phantom"
            self.request = make_phantoms(
                root, self.config.phantom, self.request, log, progress=not self.quiet
            )
            data = root / "train"
        roots = roots_of(data)
        crop = f"region {self.region.name}"
        path = store_path(roots, crop, parent.intensity, self.request.parent | self.region.to_dict())
        self._lock.enter_context(used(path))
        new = not path.exists()
        store = prepare_crops(
            data,
            path,
            cutter,
            strict=self.request.strict,
            progress=not self.quiet,
            workers=self.workers,
        )
        if new:
            log.say(f"crops of {len(store)} exams are kept in {path}; deepatlas cache lists and clears them")
        for exam, reason in store.skipped.items():
            log.skip(exam, reason, ", ".join(root.name for root in roots))
        return store

    def _exams(self, store: Store, log: RunLog | NullLog) -> tuple[Split, LabelMaps | None]:
        if len(store) < 2:
            raise RegionNotCovered(
                f"{store.root}: {len(store)} of its exams shows region {self.region.name}; at least 2 are needed"
            )
        return super()._exams(store, log)

    def _modules(self, exams: int, structures: int) -> dict[str, Any]:
        return make_modules(self.config, exams, structures, region=True)

    def _phases(
        self, session: Session, store: Store, array: ExamArray, labels: LabelMaps | None
    ) -> Iterator[Phase | Sweep]:
        return recipe(session, array, self._picture(session, store, array), labels, region=True)

    @torch.no_grad()
    def _begin(self, session: Session, store: Store, split: Split, labels: LabelMaps | None) -> Facts:
        parent = _parent(self.folder, self.request)
        model = parent.load("cpu")
        nearest = model.regions[-1] if model.regions else model
        network, atlas = session.modules["network"], session.modules["atlas"].values
        taken = _start_from(network, nearest)
        session.log.say(
            f"region {self.region.name} of model {parent.fingerprint}: {len(store)} exams show it; {taken} of "
            f"{parameter_count(network):,} weights are those of "
            f"{'region ' + nearest.region.name if model.regions else 'the model of whole exams'}"
        )
        atlas.copy_(closer_atlas(model, self.region, atlas.shape[-1]))
        coords = session.modules["cohort"].coords
        for place, exam in enumerate(split.train):
            own = torch.from_numpy(store.coords(store.index(exam)).astype(np.float32))[None]
            coords[place] = on_input(own, self.config.network.size, coords.shape[2:])[0].clamp(-0.999, 0.999)
        # The inverse of normalize(): the foreground is defined in Hounsfield units, or on the scale of their window.
        inside = foreground_mask(atlas[0, 0].cpu().numpy() * 512 - 256, self.config.data.intensity)
        mask = torch.from_numpy(inside.astype(np.float32))[None, None]
        return Facts(split.seed, mask)

    def _card(self, session: Session, split: Split, labels: LabelMaps | None) -> dict[str, Any]:
        assert self.request.parent is not None
        card = super()._card(session, split, labels)
        return card | {"region": self.region.to_dict() | self.request.parent}

    def _score(self, model: Engine, split: Split, log: RunLog) -> dict[str, Any]:
        parent = _parent(self.folder, self.request).load(str(self.world.device))
        return score_region(self.folder, parent, model, self.config, self.request, split, log)


def model_of(folder: Path) -> Path:
    """The folder of the model of whole exams, of which the run in ``folder`` is a region."""
    return folder.absolute().parents[1]


def _parent(folder: Path, request: Request) -> Parent:
    """The models above, which must be those that the run began with."""
    assert request.region is not None and request.parent is not None
    region, where = Region.from_dict(request.region), model_of(folder)
    above = [network.region for network in Engine.load(where, "cpu").regions]
    path = [other for other in above if other.name in request.parent["above"]]
    found = replace(Parent.of(where, [*path, region]), refine=request.parent["refine"])
    if found.to_dict() != request.parent:
        raise DeepAtlasError(
            f"{folder}: is a region of model {_names(request.parent)}, and {where} holds {_names(found.to_dict())}; "
            "restore that model, or start a new run of the region"
        )
    return found


def on_input(coords: Tensor, size: int, shape: Sequence[int]) -> Tensor:
    """Coordinates ``[1, 3, m, m, m]`` of a store at 64³ as ``[1, 3, *shape]``, with the corners of the network's input.

    An input of fewer voxels is made of means of blocks, whose outermost centres lie further in.
    """
    extent = pooled_extent(size, MODEL_SIZE)
    if extent == 1:
        return ops.resize(coords, tuple(shape))
    return ops.affine_resample(coords, extent * torch.eye(3, 4)[None], tuple(shape), padding="border")


def _names(parent: dict[str, Any]) -> str:
    return " > ".join([parent["parent"], *(f"{name} {value}" for name, value in parent["above"].items())])


def _start_from(network: torch.nn.Module, model: Engine) -> str:
    """Take those weights of a model that have the shape of the network's; returns how many."""
    own, theirs = network.state_dict(), model.network.state_dict()
    same = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(own | same)
    return f"{sum(value.numel() for value in same.values()):,}"


def closer_atlas(model: Engine, region: Region, size: int) -> Tensor:
    """The atlas of a model over the box of a region, ``[1, 1, n, n, n]``.

    The atlases of the regions above count where they are; they are the same anatomy seen closer.
    """
    own = affine_coords(torch.eye(3, 4)[None], (size,) * 3)[0]
    places = torch.from_numpy(region.box.place(np.moveaxis(own.numpy(), 0, -1)))
    image = model.atlas_module(torch.movedim(places.float(), -1, 0)[None])
    for network in model.regions:
        within = torch.from_numpy(network.region.box.own(places.numpy())).float()
        seen = network.atlas_module(torch.movedim(within, -1, 0)[None])
        image = torch.where((within.abs() <= 1).all(-1), seen, image)
    return image
