"""One run from data to result: prepare, train in phases, then score one-shot on exams that were not seen."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.evaluate.tables import number
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.cohort import find_exams
from deepatlas.files import write_text
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.losses.similarity import freeze
from deepatlas.model.engine import FILE as MODEL_FILE
from deepatlas.model.engine import Engine, pick_device
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork, parameter_count
from deepatlas.space.preprocess import foreground_mask, normalize, to_model_grid
from deepatlas.space.volume import Volume
from deepatlas.store.store import Store, is_store
from deepatlas.train.feed.batches import Batches
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.feed.streaming import StreamingArray, training_array
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.loop import Session, deferred_signals
from deepatlas.train.phases.autoencoder import autoencoder_phase
from deepatlas.train.phases.coarse import TemplateCrops, coarse_phase
from deepatlas.train.phases.register import CohortCoordinates, cohort_phases
from deepatlas.train.phases.level import stage_phases
from deepatlas.train.pictures import save_panel
from deepatlas.train.score import score
from deepatlas.train.world import World

CONFIG, RESULT = "config.json", "result.json"
PANEL_EXAMS = 4  # in the picture at the end of a level


class Experiment:
    """A run folder and what happens in it. Make one with :meth:`create` or :meth:`resume`."""

    def __init__(self, folder: Path, config: Config, request: dict, world: World, *, quiet=False, state=None):
        self.folder, self.config, self.request, self.world = Path(folder), config, request, world
        self.quiet = quiet or not world.main
        self.state = state
        if world.size > min(config.train.batch, config.coarse.batch, config.autoencoder.batch):
            raise DeepAtlasError(
                f"{world.size} processes cannot share a batch smaller than that: start fewer, or raise train.batch, "
                f"coarse.batch and autoencoder.batch ({config.train.batch}, {config.coarse.batch}, "
                f"{config.autoencoder.batch})"
            )

    @classmethod
    def create(cls, config: Config, request: dict, *, device=None, quiet=False) -> Experiment:
        """Start a run in ``request["out"]``, a folder that is new or empty.

        Raises:
            DeepAtlasError: the folder holds another run (its checkpoint is not overwritten).
        """
        world = World(pick_device(device))
        folder = Path(request["out"])
        with world.main_first():
            if world.main:
                _start_folder(folder, config, request)
        return cls(folder, config, request, world, quiet=quiet)

    @classmethod
    def resume(cls, folder: Path, *, device=None, quiet=False) -> Experiment:
        """Continue the run in ``folder``; from its beginning if it was stopped before the first checkpoint."""
        path = Path(folder) / CONFIG
        try:
            saved = json.loads(path.read_text())
            config, request = Config.from_dict(saved["config"]), saved["request"]
        except FileNotFoundError:
            raise DeepAtlasError(
                f"{path}: no such file, so {folder} is no run folder; start one with --out"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DeepAtlasError(f"{path}: damaged ({error}); start a new run with --out") from None
        state = None
        if (Path(folder) / checkpoint.NAME).exists():
            state = checkpoint.load(Path(folder) / checkpoint.NAME)
            if Config.from_dict(state["config"]) != config:
                raise DeepAtlasError(
                    f"{path}: changed since the checkpoint was written; restore it, or start a new run"
                )
        return cls(folder, config, request, World(pick_device(device)), quiet=quiet, state=state)

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self) -> dict:
        """Everything that is still to be done; returns what ``result.json`` holds, in the first process."""
        began = time.monotonic()
        torch.manual_seed(self.config.seed)
        log = RunLog(self.folder, quiet=self.quiet) if self.world.main else NullLog()
        try:
            with self.world.main_first():
                store = self._store(log)
            split = self._split(store)
            session = self._session(log, len(split["train"]))
            if self.state:
                session.restore(self.state)
            log.say(
                f"{len(split['train'])} exams to learn from, {len(split['test'])} to test on; network of "
                f"{parameter_count(session.modules['network']):,} parameters on {self._where()}"
            )
            self._train(session, store, split)
            self.world.close()
            if not self.world.main:
                return {}
            model = self._finish(session, split)
            result = score(self.folder, model, self.config, self.request, split, log)
            result["training_seconds"] = round(session.seconds, 1)
            result["total_seconds"] = round(time.monotonic() - began, 1)
            write_text(self.folder / RESULT, json.dumps(result, indent=2) + "\n")
            return result
        finally:
            log.draw()
            log.close()

    def summary(self, result: dict) -> str:
        """A few lines for the screen."""
        lines = []
        if "dice" in result:
            lines.append(
                f"one-shot Dice {number(result['dice'], 3)} over {result['structures']} structures of "
                f"{result['exams']} unseen exams, HD95 {number(result['hd95_mm'], 1)} mm"
            )
        if "coordinate_error_mm" in result:
            lines.append(
                f"true coordinate error {result['coordinate_error_mm']:.1f} mm (median), "
                f"folds {100 * result['folds']:.2f} %; "
                f"the best affine alignment of the same labelled exam: Dice {result['affine_dice']:.3f}"
            )
        if "refined" in result:
            refined = result["refined"]
            line = (
                f"with {refined['steps']} steps of refinement per exam: Dice {number(refined['dice'], 3)}, "
                f"HD95 {number(refined['hd95_mm'], 1)} mm"
            )
            if "coordinate_error_mm" in refined:
                line += f", coordinate error {refined['coordinate_error_mm']:.1f} mm"
            lines.append(line)
        lines.append(
            f"{result['training_seconds']:.0f} s of training; model, atlas, figures and report: {self.folder}"
        )
        return "\n".join(lines)

    def _where(self) -> str:
        return (
            f"{self.world.device}"
            if self.world.size == 1
            else f"{self.world.size} x {self.world.device.type}"
        )

    # -- parts -----------------------------------------------------------------------------------------------

    def _store(self, log: RunLog) -> Store:
        data = self.request["data"]
        if data is None:
            from deepatlas.exams.phantoms import write_phantoms
            from deepatlas.phantom.patients import PhantomCohort

            phantom = self.config.phantom
            root = self.folder / "phantom"
            log.say(f"no --data given: making a cohort of {phantom.train + phantom.test} phantoms in {root}")
            cohort = PhantomCohort(seed=phantom.seed, deformation=phantom.deformation)
            write_phantoms(cohort, root / "train", range(phantom.train), progress=not self.quiet)
            write_phantoms(
                cohort,
                root / "test",
                range(phantom.train, phantom.train + phantom.test),
                progress=not self.quiet,
            )
            data = root / "train"
            self.request |= {"test": os.fspath(root / "test"), "seed_exam": cohort.exam_id(0)}
        store = prepare_cohort(  # a store or dataset is opened as it is, if it was cropped as this run crops
            data,
            _store_path(Path(data), self.config.data.crop),
            crop=self.config.data.crop,
            strict=self.request["strict"],
            progress=not self.quiet,
        )
        for exam, reason in store.skipped.items():
            log.say(f"skipped {exam}: {reason}")
        return store

    def _split(self, store: Store) -> dict:
        """Ids to train on and to test on, the exam that seeds the atlas, and the exams of the template."""
        ids, labelled = store.ids, [i for i, has in zip(store.ids, store.has_label, strict=True) if has.any()]
        request = self.request
        test: list[str] = []
        test_root = request["test"]
        wanted = set(request["template_exams"] or []) | {request["seed_exam"]} - {None}
        for exam in wanted:
            store.index(exam)
        if test_root:
            cohort = find_exams(test_root)
            test = request["test_exams"] or [e.id for e in cohort.exams if e.seg]
            for exam in test:
                if cohort.exam(exam).seg is None:
                    raise DataError(
                        f"{cohort.root / exam}: no seg beside the CT, so it cannot be scored; leave it out"
                    )
        elif len(labelled) >= 2 and os.path.isdir(request["data"]):  # images are there, not 64^3 alone
            test_root = request["data"]
            order = np.random.default_rng(self.config.seed).permutation(sorted(set(labelled) - wanted))
            test = sorted(order[: min(self.config.data.holdout, len(labelled) // 2)].tolist())
        same = test_root and Path(test_root).resolve() == Path(store.root).resolve()
        if clash := wanted & set(test) if same else None:
            raise DataError(
                f"{test_root}: {', '.join(sorted(clash))} is both tested on and named for the atlas or the template; "
                "leave it out of one (--test-exams, --seed-exam, --template-exams)"
            )
        train = [i for i in ids if not (same and i in test)]
        if len(train) < 2:
            raise DataError(f"{store.root}: {len(train)} exam left to train on; at least 2 are needed")
        seed = request["seed_exam"] or _widest(store, train)
        template = request["template_exams"] or _best_labelled(store, train, seed)
        return {
            "train": train,
            "test": test,
            "test_root": test_root,
            "seed": seed,
            "template": template,
            "data": store.root,
        }

    def _session(self, log: RunLog, exams: int) -> Session:
        config = self.config
        modules = {
            "network": CoordinateNetwork(config.network),
            "atlas": Atlas(config.network.atlas_size),
            "autoencoder": Autoencoder(config.autoencoder.channels, config.network.groups),
        }
        if config.distil.steps:
            net = config.network
            coarse = modules["network"].level_size(net.finest_level)
            modules["cohort"] = CohortCoordinates(exams, max(coarse, config.refine.control), net.atlas_size)
        device = self.world.device
        if device.type == "cpu" or config.train.precision == "bfloat16":
            # Convolutions with few channels are twice as fast in this layout on a CPU, and tensor cores ask for it.
            modules["network"].to(memory_format=torch.channels_last_3d)
            modules["autoencoder"].to(memory_format=torch.channels_last_3d)
        for module in modules.values():
            module.to(device)
        generator = torch.Generator().manual_seed(config.seed)
        return Session(config, self.folder, self.world, log, modules, generator)

    def _train(self, session: Session, store: Store, split: dict) -> None:
        rows, data = [store.index(i) for i in split["train"]], self.config.data
        size, device = self.config.network.size, self.world.device
        exams = training_array(store, size, device, exams=rows, resident=data.resident)
        with exams as array, deferred_signals() as session.stop:
            if isinstance(array, StreamingArray):
                session.log.say(f"exams are read from {store.path} as they are needed")
            self._phases(session, store, split, array)

    def _phases(self, session: Session, store: Store, split: dict, array: ExamArray) -> None:
        config, modules = self.config, session.modules
        batches = Batches(array, split["train"], config.data, config.loss.size)
        if not session.done and session.overall == 0:
            self._seed_atlas(session, store, split["seed"])
            session.facts["exams"] = list(split["train"])
        _insist_on_same_exams(store, session.facts.get("exams", split["train"]), split["train"])
        compiled = [modules["network"], modules["autoencoder"]] if config.train.compile else []
        for module in compiled:
            module.features = torch.compile(module.features)

        if config.loss.similarity == "features":
            session.run([autoencoder_phase(session, batches)])
        autoencoder = freeze(modules["autoencoder"])
        crops = TemplateCrops(
            modules["atlas"],
            session.facts["seed_mask"],
            config.network.size,
            config.train.extent,
            config.coarse,
            config.data,
        )
        session.run([coarse_phase(session, crops)])
        similarity = FeatureSimilarity(autoencoder, config.loss.similarity, config.loss.window)
        loss = RegistrationLoss(config.loss, similarity, config.network.size)
        grids = [store.grid(row) for row in array.rows[:PANEL_EXAMS]]

        def picture(level: int) -> None:
            path = self.folder / "figures" / f"level-{level}.png"
            save_panel(path, modules["network"], modules["atlas"], array, grids, level)

        session.run(stage_phases(session, batches, loss, picture))
        session.run(cohort_phases(session, array, split["train"]))
        for module in compiled:
            del module.features  # the method of the class again: what follows are single exams

    def _seed_atlas(self, session: Session, store: Store, exam: str) -> None:
        """The atlas starts as one exam (sections 5.1.2 and 5.2.5), as sharp as its file is."""
        index = store.index(exam)
        volume = _seed_volume(store, index)
        hu = torch.as_tensor(np.ascontiguousarray(volume.array), dtype=torch.float32)[None, None]
        extent = self.config.train.extent
        atlas: Atlas = session.modules["atlas"]
        atlas.seed(normalize(hu).to(self.world.device), extent)
        mask = torch.as_tensor(foreground_mask(volume.array), dtype=torch.float32)[None, None]
        scale = torch.eye(3, 4)[None] / extent
        inside = ops.affine_resample(mask, scale, atlas.values.shape[2:], padding="zeros") > 0.5
        session.facts = {"seed_mask": inside.float(), "seed_exam": exam}

    def _finish(self, session: Session, split: dict) -> Engine:
        """Write ``model.pt`` and ``atlas.nii.gz``."""
        card = {
            "preset": self.config.preset,
            "seed_exam": split["seed"],
            "exams": len(split["train"]),
            "steps": session.overall,
            "training_seconds": round(session.seconds, 1),
            "torch": str(torch.__version__),
            "backend": ops.build_info()["backend"],
        }
        model = Engine(self.config, session.modules["network"], session.modules["atlas"], card)
        model.save(self.folder / MODEL_FILE)
        save_atlas(model, self.folder / "atlas.nii.gz")
        return model


def _start_folder(folder: Path, config: Config, request: dict) -> None:
    if (folder / checkpoint.NAME).exists() or (folder / MODEL_FILE).exists():
        raise DeepAtlasError(
            f"{folder}: holds a run already; continue it with --resume {folder}, or choose --out"
        )
    for directory in (request["data"], request["test"]):  # a wrong path should leave no run folder behind
        if directory and not is_store(directory):
            find_exams(directory)
    write_text(folder / CONFIG, json.dumps({"config": config.to_dict(), "request": request}, indent=2) + "\n")


def save_atlas(model: Engine, path: Path) -> None:
    """The atlas as Hounsfield units; its voxels are normalised coordinates times 100 (it has no millimetres)."""
    from deepatlas.io.codec import write_volume
    from deepatlas.space.grid import Grid

    values = model.atlas[0, 0].detach().cpu().numpy()
    step = 200 / (values.shape[0] - 1)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = -100
    try:
        write_volume(
            path, Volume((values * 512 - 256).astype(np.float32), Grid(values.shape, affine), "atlas")
        )
    except ImportError:  # training from a store needs no image library
        np.save(path.with_name("atlas.npy"), values)


def _seed_volume(store: Store, index: int) -> Volume:
    """The exam at 128^3 from its file, or at 64^3 from the store where the file or the image library is gone."""
    try:
        from deepatlas.exams.read import read_volume

        return to_model_grid(read_volume(store.source(index)), 128, crop=store.crop)
    except (ImportError, DataError):
        return Volume(store.hu[index].astype(np.float32), store.grid(index), store.ids[index])


def _insist_on_same_exams(store: Store, before: list[str], now: list[str]) -> None:
    """A run that goes on with other exams would be neither the old run nor a new one."""
    if before == now:
        return
    missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    found = [
        f"{len(ids)} {what} ({', '.join(ids[:3])})"
        for ids, what in ((missing, "missing"), (new, "new"))
        if ids
    ]
    raise DataError(
        f"{store.root}: the exams to learn from are not those that the run started with: "
        f"{', '.join(found) or 'another order'}; put them back, or start a new run with --out"
    )


def _widest(store: Store, ids: list[str]) -> str:
    """The exam with the longest extent of patient along the body axis; among near-equals the most typical in volume."""
    length, volume = {}, {}
    for exam in ids:
        index = store.index(exam)
        mask = store.mask[index].astype(bool)
        spacing = store.grid(index).spacing
        length[exam] = mask.any((1, 2)).sum() * spacing[2]
        volume[exam] = mask.sum() * float(np.prod(spacing))
    longest = max(length.values())
    near = [exam for exam in ids if length[exam] >= 0.95 * longest]
    typical = np.median([volume[exam] for exam in near])
    return min(near, key=lambda exam: abs(volume[exam] - typical))


def _best_labelled(store: Store, ids: list[str], seed: str) -> list[str]:
    """The labelled exam that shows most structures (the atlas seed if it shows as many); none without labels."""
    counts = {exam: int(store.has_label[store.index(exam)].sum()) for exam in ids}
    most = max(counts.values())
    if not most:
        return []
    return [seed if counts[seed] == most else max(ids, key=lambda exam: counts[exam])]


def _store_path(data: Path, crop: str | None) -> Path:
    """Where the prepared form of a data directory is kept: the user's cache, since data are often read-only."""
    cache = Path(
        os.environ.get("DEEPATLAS_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deepatlas"
    )
    name = hashlib.sha256(f"{data.resolve()} {crop}".encode()).hexdigest()[:16]
    return cache.expanduser() / "stores" / f"{data.resolve().name}-{name}.h5"
