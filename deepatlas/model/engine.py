"""A trained network and its atlas: from a CT to the anatomical coordinate of each of its voxels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.exams.read import read_volume
from deepatlas.model.average import averaged_coordinates
from deepatlas.model.native import native_coordinates
from deepatlas.model.refine import refine_coordinates
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.pretrained import MODEL as FILE
from deepatlas.pretrained import resolve, shipped
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_mask, normalize, to_model_grid
from deepatlas.space.volume import Volume

Exam = str | os.PathLike | Volume


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or a GPU if there is one; DeepAtlasError where PyTorch cannot use it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
        reason = str(error).splitlines()[0]
        raise DeepAtlasError(f"device {name} cannot be used here ({reason}); take cpu") from None


class Engine:
    """Network and atlas of one run. Not a ``torch.nn.Module``: those are ``network`` and ``atlas_module``."""

    def __init__(
        self,
        config: Config,
        network: CoordinateNetwork,
        atlas: Atlas,
        card: dict | None = None,
        *,
        refine: int = 0,
        average: int = 1,
    ):
        self.config, self.card = config, dict(card or {})
        if not isinstance(refine, int) or refine < 0:
            raise DeepAtlasError(f"refine must be a number of steps, 0 or more, got {refine!r}")
        if not isinstance(average, int) or average < 1:
            raise DeepAtlasError(f"average must be a number of views, 1 or more, got {average!r}")
        self.refine = refine  # steps of refine_coordinates for every exam
        self.average = average  # views that averaged_coordinates takes the mean of
        self.network = network.eval().requires_grad_(False)
        self.atlas_module = atlas.requires_grad_(False)

    # -- loading and saving ----------------------------------------------------------------------------------

    @classmethod
    def load(
        cls, name: str | os.PathLike, device: str | None = None, *, refine: int = 0, average: int = 1
    ) -> Self:
        """Load a model.

        Args:
            name: a run folder (its ``model.pt`` is taken), a model file, or a shipped model (``"headneck"``).
            device: ``"cpu"``, ``"cuda"`` …; by default a GPU if there is one.
            refine: steps by which the coordinates of every exam are refined after the network's one pass (see
                :func:`~deepatlas.model.refine.refine_coordinates`); 0: none. Use the same for the template.
            average: views of every exam whose coordinates are averaged, each for one more pass of the network (see
                :func:`~deepatlas.model.average.averaged_coordinates`); 1: the exam alone.

        Raises:
            DeepAtlasError: nothing there, damaged, or written by another format version.
        """
        path = resolve(name, FILE)
        if path.is_dir():
            path = path / FILE
            if not path.is_file():
                raise DeepAtlasError(
                    f"{path}: the run has no finished model yet; continue it with --resume {name}"
                )
        if not path.exists():
            raise DeepAtlasError(
                f"{name}: no run folder or model file there, and no shipped model; shipped are: {', '.join(shipped())}"
            )
        state = checkpoint.load(path, "model")
        if state.get("kind") != "model":
            raise DeepAtlasError(f"{path}: a checkpoint of a run, not a model; load the run's {FILE}")
        config = Config.from_dict(state["config"])
        network, atlas = CoordinateNetwork(config.network), Atlas(config.network.atlas_size)
        network.load_state_dict(state["network"])
        atlas.load_state_dict(state["atlas"])
        model = cls(config, network, atlas, state["card"], refine=refine, average=average)
        return model.to(pick_device(device))

    def save(self, path: str | os.PathLike, *, half: bool = False) -> None:
        """Write one file that :meth:`load` reads, atomically; ``half`` rounds to float16, for models that travel."""
        number = torch.float16 if half else torch.float32
        state = {
            "kind": "model",
            "config": self.config.to_dict(),
            "network": {k: v.to(number) for k, v in self.network.state_dict().items()},
            "atlas": {k: v.to(number) for k, v in self.atlas_module.state_dict().items()},
            "card": self.card,
        }
        checkpoint.save(Path(path), state)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device, in place; returns itself."""
        self.network.to(device)
        self.atlas_module.to(device)
        return self

    # -- properties ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.atlas_module.values.device

    @property
    def atlas(self) -> Tensor:
        """The learned atlas, ``[1, 1, N, N, N]`` in [0, 1] over the coordinate space [-1, 1]^3."""
        return self.atlas_module.values

    @property
    def size(self) -> int:
        """Voxels per axis of the network input."""
        return self.config.network.size

    @property
    def crop(self) -> str | None:
        return self.config.data.crop

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the weights and the atlas: a template belongs to one model."""
        digest = hashlib.sha256()
        for module in (self.network, self.atlas_module):
            for name, value in module.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    # -- use -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def coordinates_on_model_grid(self, volume: Exam) -> tuple[Tensor, Grid, Volume]:
        """Coordinates where the network made them: one pass (or ``self.average``), then ``self.refine`` steps.

        Returns:
            ``coords [1, 3, S, S, S]`` float32 on the model's device, the grid of these S^3 voxels (RAS, cropped as
            the model was trained), and the exam in Hounsfield units on that grid.
        """
        hu = to_model_grid(read_exam(volume), self.size, crop=self.crop)
        x = normalize(torch.as_tensor(np.ascontiguousarray(hu.array), dtype=torch.float32))
        x = x[None, None].to(self.device)
        level = self.config.network.finest_level
        coords = averaged_coordinates(lambda view: self.network(view, level), x, self.average)
        if self.refine:
            mask = torch.as_tensor(foreground_mask(hu.array), dtype=x.dtype, device=x.device)[None, None]
            coords = refine_coordinates(coords, x, mask, self.atlas_module, self.config, self.refine)
        return ops.resize(coords, x.shape[2:]), hu.grid, hu

    def coordinates(self, exam: Exam) -> Tensor:
        """Anatomical coordinates of every voxel of an exam, ``[3, D, H, W]`` float32 (x, y, z) on its grid.

        They lie in [-1, 1] where the network sees; voxels beyond (the rim of the field of view, what ``crop`` took
        away) continue the map linearly and may lie outside.
        ``exam`` is a file or a :class:`Volume` in Hounsfield units; orientation and spacing are free.
        """
        volume = read_exam(exam)
        coords, grid, _ = self.coordinates_on_model_grid(volume)
        return native_coordinates(coords, grid, volume.grid)


def read_exam(exam: Exam) -> Volume:
    """The volume itself, or the exam at a path (see :func:`~deepatlas.exams.read.read_volume`)."""
    if isinstance(exam, Volume):
        return exam
    return read_volume(exam)
