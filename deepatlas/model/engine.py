"""A trained network: with its atlas, the coordinates of every voxel of an exam; after fine-tuning, masks instead."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.exams.in_memory import as_volume
from deepatlas.exams.read import read_volume
from deepatlas.model.average import averaged_coordinates, views_of
from deepatlas.model.cascade import add_regions, down_to, usable
from deepatlas.model.device import pick_device
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import CoordinateField
from deepatlas.model.fit import Fit, fit
from deepatlas.model.look import Look, Seen, best_look
from deepatlas.model.refine import refine_coordinates
from deepatlas.model.regions import Region
from deepatlas.model.structures import ExamProbabilities, Structures
from deepatlas.model.weights import ModelParts, read_model, write_model
from deepatlas.nn import Atlas
from deepatlas.pretrained import MODEL as FILE
from deepatlas.pretrained import resolve, shipped
from deepatlas.space.check_input import check_input
from deepatlas.space.preprocess import to_model_grid
from deepatlas.space.volume import Volume

# A path, a volume, or an image of another library (see deepatlas.exams.in_memory), which cannot be named here.
Exam = str | os.PathLike[str] | Volume | Any
# Beside the file of a model: a folder with one run for every region.
REGIONS = "regions"
# Why a model of masks has no fit.
NO_FIT = "a model that was trained on labels has no atlas to compare an exam with"


class Engine:
    """The network and the atlas of one run, or a network that was trained on labels (``deepatlas finetune``).

    The latter has :attr:`structures` and gives :meth:`probabilities`. It has no atlas and no coordinates, and whatever
    needs them raises an error that says so.

    An exam is a path (see :func:`deepatlas.read_volume`), a :class:`~deepatlas.space.volume.Volume`, an image of
    nibabel, SimpleITK or MONAI, or a pair of an array ``[X, Y, Z]`` and its affine to RAS+ millimetres (see
    :func:`~deepatlas.exams.in_memory.as_volume`). Its values are of the kind :attr:`intensity`; orientation, spacing
    and field of view are free.

    Attributes:
        config: the settings of the run.
        card: facts about the model, such as its data and the commit that trained it.
        refine: refinement steps for every exam.
        average: views of every exam whose coordinates are averaged.
        network: the network, a frozen ``torch.nn.Module``.
        structures: the structures of a model that was trained on labels; None for a model of coordinates.
        regions: the networks of regions (section 5.2.4), those of higher levels first.
        depth: how many levels of regions are used; None uses all of them.
        name: what error messages call the model.
    """

    # Classes that stand in for this one in tests or elsewhere, and models of coordinates, have none.
    structures: Structures | None = None
    name: str = "this model"
    regions: Sequence[Engine] = ()
    depth: int | None = None

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        atlas: Atlas | None,
        card: Mapping[str, Any] | None = None,
        *,
        refine: int | None = 0,
        average: int = 1,
        structures: Structures | None = None,
    ) -> None:
        if (atlas is None) != (structures is not None):
            raise DeepAtlasError("a model has either an atlas or structures")
        if structures and refine:
            raise DeepAtlasError(
                f"refine={refine}: a model that was trained on labels has no atlas to register an exam to; leave it out"
            )
        if refine is None:
            refine = (card or {}).get("best", {}).get("refine", 0)
        if not isinstance(refine, int) or refine < 0:
            raise DeepAtlasError(f"refine must be a number of steps, 0 or more, got {refine!r}")
        if not isinstance(average, int) or average < 1:
            raise DeepAtlasError(f"average must be a number of views, 1 or more, got {average!r}")
        self.config, self.card = config, dict(card or {})
        self.refine, self.average = refine, average
        self.network = network.eval().requires_grad_(False)
        self._atlas = None if atlas is None else atlas.requires_grad_(False)
        self.structures = structures

    def __repr__(self) -> str:
        has = (
            f"{len(self.structures.names)} structures"
            if self.structures
            else f"atlas {self.atlas.shape[-1]}³"
        )
        parts = [
            self.fingerprint, f"preset {self.config.preset}", f"input {self.size}³", has,
            f"{sum(p.numel() for p in self.network.parameters()):,} parameters", str(self.device),
        ]  # fmt: skip
        parts += [f"refine={self.refine}"] if self.refine else []
        parts += [f"average={self.average}"] if self.average > 1 else []
        parts += [f"regions {', '.join(n.region.name for n in self.regions)}"] if self.regions else []
        return f"{type(self).__name__}({', '.join(parts)})"

    # -- loading and saving ----------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        device: str | None = None,
        *,
        refine: int | None = None,
        average: int = 1,
        depth: int | None = None,
    ) -> Self:
        """Load a model, with the networks of its regions (section 5.2.4) where it has some.

        Args:
            name: a run folder, whose ``model.pt`` is loaded; a model file; or the name of a shipped model
                (``"headneck"``).
            device: ``"cpu"``, ``"cuda"`` or another device of PyTorch; by default a GPU if there is one.
            refine: the number of registration steps that refine the coordinates of every exam after the pass of the
                network (see :func:`~deepatlas.model.refine.refine_coordinates`). Use the same for the template. None
                takes what served the model best when it was made (its card says it), which is 20 for ``"headneck"``;
                0 leaves it at one pass.
            average: the number of views of every exam whose coordinates are averaged (see
                :func:`~deepatlas.model.average.averaged_coordinates`). Each view takes one pass of the network.
            depth: how many levels of regions are used: 0 for the network of the whole exam alone, 1 for its regions, 2
                for the regions within them as well; None uses all that there are.

        Warns:
            DataWarning: the network of a region was trained for another model, and is left out.

        Raises:
            DeepAtlasError: there is no such model, the file is damaged or of another format version, the device
                cannot be used, or ``refine``, ``average`` or ``depth`` is out of range.
        """
        if depth is not None and (not isinstance(depth, int) or depth < 0):
            raise DeepAtlasError(f"depth must be a number of levels, 0 or more, got {depth!r}")
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
        # Parameters that are made in inference mode could not be used for refinement, neither there nor outside of it;
        # and they are float32 whatever the default of PyTorch is.
        with torch.inference_mode(False):
            parts = read_model(path)
            model = cls(
                parts.config, parts.network, parts.atlas, parts.card, refine=refine, average=average,
                structures=parts.structures,
            )  # fmt: skip
            model.name, model.depth = str(name), depth
            if model._atlas is not None and "region" not in model.card:
                files = sorted((path.parent / REGIONS).glob(f"*/{FILE}"))
                if files:
                    loaded = {file: cls.load(file, "cpu", refine=0) for file in files}
                    model.regions = usable(loaded, model.fingerprint)
            return model.to(pick_device(device))

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write a file that :meth:`load` reads, and ``regions/NAME/model.pt`` beside it for every region of the model.

        Each file is complete or absent.

        Args:
            path: the file to write.
            half: round the weights to float16, which halves the size of the file. The rounded model has another
                fingerprint, which the files of the regions then name; its templates have to be made anew.

        Raises:
            DataError: a file cannot be written, or one of ``regions`` belongs to another model.
        """
        path = Path(path)
        files = {path.parent / REGIONS / network.region.name / FILE: network for network in self.regions}
        for file in filter(Path.exists, files):
            theirs = type(self).load(file, "cpu").card.get("region", {}).get("parent")
            if not (path.exists() and theirs in (self.fingerprint, type(self).load(path, "cpu").fingerprint)):
                raise DataError(f"{file}: is the region of another model; save into another folder")
        write_model(
            path, ModelParts(self.config, self.network, self._atlas, self.structures, self.card), half
        )
        if not files:
            return
        with warnings.catch_warnings():
            # Regions that were saved there before are those of the file that has just been replaced.
            warnings.simplefilter("ignore", DataWarning)
            parent = type(self).load(path, "cpu").fingerprint
        # What each level is known by once it is written; those of the level above come first.
        written: dict[str, str] = {}
        for file, network in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            region = dict(network.card["region"]) | {"parent": parent}
            if "above" in region:
                region["above"] = {name: written.get(name, old) for name, old in region["above"].items()}
            card = dict(network.card) | {"region": region}
            write_model(file, ModelParts(network.config, network.network, network._atlas, None, card), half)
            written[network.region.name] = type(self).load(file, "cpu").fingerprint

    def to(self, device: str | torch.device) -> Self:
        """Move the network and the atlas to a device, in place. Returns the model itself."""
        with torch.inference_mode(False):
            for module in self._modules():
                module.to(device)
        for network in self.regions:
            network.to(device)
        return self

    # -- properties ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the network and the atlas."""
        return next(self.network.parameters()).device

    @property
    def atlas_module(self) -> Atlas:
        """The atlas, a frozen ``torch.nn.Module``.

        Raises:
            DeepAtlasError: the model was trained on labels and has none.
        """
        if self._atlas is None:
            raise self._no_coordinates()
        return self._atlas

    @property
    def atlas(self) -> Tensor:
        """The learned atlas: ``[1, 1, N, N, N]`` float32 in [0, 1] over the coordinate space [-1, 1]^3."""
        return self.atlas_module.values

    @property
    def size(self) -> int:
        """The number of voxels of the network's input along each axis."""
        return self.config.network.size

    @property
    def crop(self) -> str | None:
        """How exams are cropped for the network: None or a name that ``to_model_grid`` knows."""
        return self.config.data.crop

    @property
    def intensity(self) -> str:
        """What the values of exams are: ``"hu"``, ``"percentile"`` or ``"zscore"`` (``data.intensity``)."""
        return self.config.data.intensity

    @property
    def fit_threshold(self) -> float | None:
        """The fit from which an exam is known, set from the training cohort; None in models of earlier versions."""
        threshold: float | None = self.card.get("fit", {}).get("threshold")
        return threshold

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the weights and the atlas. A template names those of its model."""
        digest = hashlib.sha256()
        for module in self._modules():
            for name, value in module.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().reshape(-1).numpy())
        return digest.hexdigest()[:12]

    def _modules(self) -> list[nn.Module]:
        return [self.network] if self._atlas is None else [self.network, self._atlas]

    def _no_coordinates(self) -> DeepAtlasError:
        return DeepAtlasError(
            f"{self.name}: was trained on labels (deepatlas finetune) and gives masks of its structures, not "
            "coordinates; for templates, points and coordinates use a model of deepatlas train"
        )

    # -- use -------------------------------------------------------------------------------------------------

    # Refinement needs gradients, which inference mode does not allow.
    @torch.inference_mode(False)
    @torch.no_grad()
    def map_exam(self, exam: Exam) -> ExamMap:
        """The coordinates of an exam on the grid of the network's input, averaged and refined as the model is set to.

        Warns:
            DataWarning: the values of the exam were mended or are unusual (see
                :func:`~deepatlas.space.check_input.check_input`).

        Raises:
            DataError: the exam cannot be read, is not of the kind that the model takes, or holds no patient.
        """
        if self.structures:
            raise self._no_coordinates()
        volume, notes = self._checked(exam)
        seen = self._looked(volume)
        look = seen.look
        coords = ops.resize(self._settled(look, seen.coords), look.x.shape[2:])
        field, odd = add_regions(
            CoordinateField(coords, look.hu.grid), look.body, volume, self._networks(self.depth)
        )
        for note in odd:
            warnings.warn(f"{volume.name or 'exam'}: {note}", DataWarning, stacklevel=2)
        known = Fit(seen.fit, self.fit_threshold, (*notes, *odd))
        return ExamMap(coords, look.hu.grid, look.hu, look.body, known, field.pieces, volume)

    def _looked(self, volume: Volume) -> Seen:
        if "region" in self.card:
            name = self.region.name
            raise DeepAtlasError(
                f"{self.name}: is the network of region {name}, which sees a part of an exam; give the model of whole "
                f"exams, whose regions/{name} it is"
            )
        return best_look(
            volume, self._see, size=self.size, crop=self.crop, intensity=self.intensity, device=self.device,
            longest_mm=self.card.get("view", {}).get("longest_mm"), known=self.fit_threshold,
        )  # fmt: skip

    def _see(self, look: Look) -> Seen:
        """One pass of the network, with its fit."""
        coords = self.network(look.x, self.config.network.finest_level)
        return Seen(look, coords, float(fit(coords, look.x, look.mask, self.atlas_module)))

    def _settled(self, look: Look, coords: Tensor) -> Tensor:
        """The coordinates of one pass, averaged over views and refined as the model is set to."""
        level = self.config.network.finest_level
        if self.average > 1:
            coords = averaged_coordinates(lambda view: self.network(view, level), look.x, self.average)
        if self.refine:
            coords = refine_coordinates(
                coords, look.x, look.mask, self.atlas_module, self.config, self.refine
            )
        return coords

    # -- regions ---------------------------------------------------------------------------------------------

    @property
    def region(self) -> Region:
        """The region that this is the network of (section 5.2.4).

        Raises:
            DeepAtlasError: it is the network of the whole exam.
        """
        try:
            return Region.from_dict(self.card["region"])
        except (KeyError, TypeError) as error:
            raise DeepAtlasError(
                f"{self.name}: is not the model of a region ({error!r} in its card)"
            ) from None

    @torch.no_grad()
    def answer(self, look: Look) -> Tensor:
        """What the network of a region says: coordinates ``[1, 3, S, S, S]`` within the region's box."""
        coords = self._settled(look, self.network(look.x, self.config.network.finest_level))
        return ops.resize(coords, look.x.shape[2:])

    def _networks(self, depth: int | None) -> list[Engine]:
        """The networks of regions down to a depth, set as this model is; those of higher levels come first."""
        chosen = down_to(self.regions, depth)
        for network in chosen:
            network.refine, network.average = self.refine, self.average
        return chosen

    @torch.no_grad()
    def views(self, found: ExamMap, count: int, size: int) -> Tensor:
        """The coordinates that one pass of the network gives for each of several slightly moved views of an exam.

        Args:
            found: what :meth:`map_exam` said about the exam.
            count: the number of views, 1 or more; the exam itself is the first of them.
            size: voxels of the result along each axis of ``found.grid``.

        Returns:
            float32 ``[count, 3, size, size, size]``. Where a view does not show a place of the exam, the exam's own
            coordinates stand in for those of the view.
        """
        x = Look.of(found.hu, self.intensity, self.device).x
        level = self.config.network.finest_level
        own, out = None, []
        for coords, seen in views_of(lambda view: self.network(view, level), x, count, (size,) * 3):
            own = coords if own is None else own
            out.append(torch.where(seen > 0, coords, own))
        return torch.cat(out)

    @torch.inference_mode(False)
    @torch.no_grad()
    def probabilities(self, exam: Exam) -> ExamProbabilities:
        """For every structure of a model that was trained on labels, the probability that a voxel belongs to it.

        The probabilities are on the grid of the network's input, averaged over views as the model is set to.

        Warns:
            DataWarning: as :meth:`map_exam`.

        Raises:
            DeepAtlasError: the model gives coordinates.
            DataError: as :meth:`map_exam`.
        """
        if not self.structures:
            raise DeepAtlasError(
                f"{self.name}: gives coordinates, and structures only with a template; make one with "
                "`deepatlas template`"
            )
        volume, notes = self._checked(exam)
        hu = to_model_grid(volume, self.size, self.crop, self.intensity)
        look = Look.of(hu, self.intensity, self.device)
        found = averaged_coordinates(lambda view: torch.sigmoid(self.network(view)), look.x, self.average)[0]
        return ExamProbabilities(found, hu.grid, hu, look.body, Fit(math.nan, None, notes, NO_FIT), volume)

    def _checked(self, exam: Exam) -> tuple[Volume, tuple[str, ...]]:
        """The exam with values as the network takes them, and what is unusual about them."""
        volume, notes = check_input(read_exam(exam), self.intensity)
        for note in notes:
            warnings.warn(f"{volume.name or 'exam'}: {note}", DataWarning, stacklevel=3)
        return volume, tuple(notes)

    @torch.no_grad()
    def fit_of(self, hu: Volume) -> float:
        """The fit of an image that is on the grid of the network already, after one pass.

        Args:
            hu: ``[S, S, S]``, as :attr:`ExamMap.hu`.
        """
        return self._see(Look.of(hu, self.intensity, self.device)).fit

    @torch.inference_mode(False)
    @torch.no_grad()
    def look(self, exam: Exam) -> Look:
        """How the network of the whole exam looks at an exam: its input, and the grid of this.

        Raises :class:`~deepatlas.errors.DataError` as :meth:`map_exam`.
        """
        return self._looked(self._checked(exam)[0]).look

    def fit(self, exam: Exam) -> Fit:
        """How well the model knows an exam (see :func:`deepatlas.model.fit.fit`); without a value after fine-tuning.

        Raises:
            DataError: the exam cannot be read, or holds no patient.
        """
        return (self.probabilities(exam) if self.structures else self.map_exam(exam)).fit

    def coordinates(self, exam: Exam) -> Tensor:
        """The anatomical coordinate of every voxel of an exam, on the exam's own grid (section 2.1).

        Args:
            exam: a path, a volume, or an image of another library, with values of the kind that the model takes.

        Returns:
            ``[3, D, H, W]`` float32 on the model's device; the channels are x, y, z. The values lie in [-1, 1]
            where the network sees the exam. The rim of the field of view, and what ``crop`` removes, continue the map
            linearly and may exceed that range.

        Raises:
            DataError: the exam cannot be read, or holds no patient.
        """
        volume = read_exam(exam)
        return self.map_exam(volume).field.on(volume.grid)


def read_exam(exam: Exam) -> Volume:
    """The exam at a path (see :func:`~deepatlas.exams.read.read_volume`), the volume itself, or an image as a volume.

    Images of nibabel, SimpleITK and MONAI, and pairs of an array and an affine, are described in
    :func:`~deepatlas.exams.in_memory.as_volume`.
    """
    if isinstance(exam, Volume):
        return exam
    if isinstance(exam, str | os.PathLike):
        return read_volume(exam)
    return as_volume(exam)
