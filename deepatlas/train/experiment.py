"""One run from data to result: prepare the data, train by the recipe, then score one-shot on unseen exams."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.files import write_text
from deepatlas.model.device import pick_device
from deepatlas.model.engine import FILE as MODEL_FILE
from deepatlas.model.engine import Engine
from deepatlas.nn import parameter_count
from deepatlas.settings import changed, resumable
from deepatlas.store.store import Store
from deepatlas.train.atlas_files import save_atlas
from deepatlas.train.check import with_parts
from deepatlas.train.data import make_phantoms, open_store
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.feed.streaming import StreamingArray, training_array
from deepatlas.train.folder import (
    CONFIG,
    RESULT,
    alone,
    insist_on_resumable,
    read_run,
    start_folder,
    write_config,
)
from deepatlas.train.known import training_fit
from deepatlas.train.labels import insist_on_same_structures, open_labels
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.loop import Facts, Session, deferred_signals
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.phases.labels import learned_template
from deepatlas.train.pictures import save_panel, slices
from deepatlas.train.recipe import make_modules, recipe
from deepatlas.train.request import Request
from deepatlas.train.score import best_steps, score
from deepatlas.train.seed import seed_atlas
from deepatlas.train.split import Split, choose_split, insist_on_same_exams
from deepatlas.train.start import load_start, start_from
from deepatlas.train.world import World

# The modules of a run that are networks of convolutions.
NETWORKS = ("network", "autoencoder")
# Number of exams in the picture at the end of a level.
PANEL_EXAMS = 4
# Bytes of labels that are held in memory where the exams themselves are not.
LABELS_HELD = 64 << 20


class Experiment:
    """A run folder and the run in it. Use :meth:`create` or :meth:`resume` to make one.

    This one learns coordinates; :class:`~deepatlas.train.supervised.Supervised` learns masks, and replaces what
    differs.
    """

    # The command of such runs.
    command = "train"

    def __init__(
        self,
        folder: Path,
        config: Config,
        request: Request,
        world: World,
        *,
        quiet: bool = False,
        state: dict[str, Any] | None = None,
        lock: contextlib.ExitStack | None = None,
    ):
        self.folder, self.config, self.request, self.world = Path(folder), config, request, world
        # As config.json holds it; ``request`` also gets what a run without data makes for itself.
        self._asked = request
        self.quiet = quiet or not world.main
        self.state = state
        # Held until the run has ended.
        self._lock = lock or contextlib.ExitStack()
        batches = self._batches()
        if world.size > min(batches.values()):
            *others, last = batches
            names = f"{', '.join(others)} and {last}" if others else last
            raise DeepAtlasError(
                f"{world.size} processes cannot share a batch smaller than that: start fewer, or raise {names} "
                f"({', '.join(map(str, batches.values()))})"
            )

    def _batches(self) -> dict[str, int]:
        """The sizes of the batches that the processes share, by their settings."""
        config = self.config
        return {
            "train.batch": config.train.batch,
            "coarse.batch": config.coarse.batch,
            "autoencoder.batch": config.autoencoder.batch,
        }

    @classmethod
    def create(
        cls, config: Config, request: Request, *, device: str | None = None, quiet: bool = False
    ) -> Self:
        """Start a run in the folder ``request.out``.

        Raises:
            DeepAtlasError: the folder already holds a run (which is not overwritten), or the data do not exist.
        """
        world = World(pick_device(device))
        folder = Path(request.out)
        request = with_parts(request)
        with contextlib.ExitStack() as stack:
            with world.main_first():
                if world.main:
                    start_folder(folder, config, request, cls._check_start, stack)
            return cls(folder, config, request, world, quiet=quiet, lock=stack.pop_all())

    @classmethod
    def resume(
        cls,
        folder: Path,
        assignments: Sequence[str] = (),
        *,
        device: str | None = None,
        quiet: bool = False,
    ) -> Self:
        """Continue the run in ``folder``, from its beginning if it stopped before the first checkpoint.

        Args:
            folder: the run folder.
            assignments: ``section.key=value`` changes of settings that may change (``resume`` in deepatlas/config.py).
            device: the device, which may be another one than before.
            quiet: show no progress.

        Raises:
            DeepAtlasError: the folder holds no run, its ``config.json`` or checkpoint is damaged or changed, or another
                setting is to change.
        """
        config, request = read_run(Path(folder))
        world = World(pick_device(device))
        with contextlib.ExitStack() as stack:
            if world.main:
                stack.enter_context(alone(Path(folder)))
            # After the lock, because another process may be writing the checkpoint.
            state = cls._saved_state(Path(folder), config)
            given = config.override(assignments).validate()
            insist_on_resumable(config, given, folder)
            if state and "lengths" not in state and changed(Config.from_dict(state["config"]), given):
                raise DeepAtlasError(
                    f"{folder}: saved by an earlier version, whose runs cannot become longer; start a new run from its "
                    f"weights with --init {folder}"
                )
            config = given
            return cls(folder, config, request, world, quiet=quiet, state=state, lock=stack.pop_all())

    @staticmethod
    def _saved_state(folder: Path, config: Config) -> dict[str, Any] | None:
        """The checkpoint of a run, if it has one."""
        if not (folder / checkpoint.NAME).exists():
            return None
        state = checkpoint.load(folder / checkpoint.NAME)
        differing = changed(Config.from_dict(state["config"]), config)
        if fixed := [key for key in differing if key not in resumable(config)]:
            raise DeepAtlasError(
                f"{folder / CONFIG}: {', '.join(fixed)} changed since the checkpoint was written; restore it, or start "
                "a new run"
            )
        return state

    def run(self) -> dict[str, Any]:
        """Do what is left of the run; returns the content of ``result.json``, in the first process (others: {})."""
        began = time.monotonic()
        torch.manual_seed(self.config.seed)
        log = RunLog(self.folder, quiet=self.quiet) if self.world.main else NullLog()
        try:
            with self.world.main_first():
                store = self._prepare(log)
            split, labels = self._exams(store, log)
            session = self._session(log, len(split.train), len(labels) if labels else 0)
            if self.state:
                session.restore(self.state)
            where = (
                f"{self.world.size} x {self.world.device.type}" if self.world.size > 1 else self.world.device
            )
            log.say(
                f"{len(split.train)} exams to learn from, {len(split.test)} to test on; network of "
                f"{parameter_count(session.modules['network']):,} parameters on {where}"
            )
            if held_out := split.held_out(self.config.data.holdout):
                log.say(held_out)
            known = self._train(session, store, split, labels)
            self.world.close()
            if not self.world.main:
                return {}
            model = self._finish(session, split, known, labels)
            result = self._score(model, split, log)
            if "refined" in result:
                model.card["best"] = {"refine": best_steps(result)}
                model.save(self.folder / MODEL_FILE)
            result["skipped"] = log.skipped
            result["training_seconds"] = round(session.seconds, 1)
            result["total_seconds"] = round(time.monotonic() - began, 1)
            write_text(self.folder / RESULT, json.dumps(result, indent=2) + "\n")
            return result
        finally:
            log.draw(last=True)
            log.close()
            self._lock.close()

    @staticmethod
    def _check_start(config: Config, request: Request) -> None:
        """Raise DeepAtlasError if a run cannot begin with the model that it is to start from."""
        if request.init:
            load_start(request.init, config)

    def _exams(self, store: Store, log: RunLog | NullLog) -> tuple[Split, LabelMaps | None]:
        """The exams to learn from and to test on, and the labels of those to learn from where labels are used."""
        split = choose_split(store, self.request, self.config.data, self.config.seed)
        return split, open_labels(store, split.train, self.config, self.world.device, log, split.drawn)

    def _prepare(self, log: RunLog | NullLog) -> Store:
        """The store of the training exams; without data, of phantoms that are made first."""
        data = self.request.data
        if data is None:
            phantom, root = self.config.phantom, self.folder / "phantom"
            log.say(f"no --data given: making a cohort of {phantom.train + phantom.test} phantoms in {root}")
            self.request = make_phantoms(root, phantom, self.request, log, progress=not self.quiet)
        roots = data or self.folder / "phantom" / "train"
        return open_store(roots, self.config, self.request, log, progress=not self.quiet, uses=self._lock)

    def _session(self, log: RunLog | NullLog, exams: int, structures: int) -> Session:
        config, device = self.config, self.world.device
        modules = self._modules(exams, structures)
        for name, module in modules.items():
            if name in NETWORKS and (device.type == "cpu" or config.train.precision == "bfloat16"):
                # Convolutions with few channels are twice as fast in this layout on a CPU, and tensor cores require it.
                module.to(memory_format=torch.channels_last_3d)
            module.to(device)
        generator = torch.Generator().manual_seed(config.seed)
        return Session(config, self.folder, self.world, log, modules, generator, command=self.command)

    def _modules(self, exams: int, structures: int) -> dict[str, Any]:
        """The modules of the run, newly initialised, on the CPU."""
        return make_modules(self.config, exams, structures)

    def _train(
        self, session: Session, store: Store, split: Split, labels: LabelMaps | None
    ) -> dict[str, Any]:
        """Run the phases; returns what exams the model knows, in the first process (others: {})."""
        rows, data = [store.index(i) for i in split.train], self.config.data
        size, device = self.config.network.size, self.world.device
        exams = training_array(store, size, device, exams=rows, resident=data.resident)
        with exams as array, deferred_signals() as session.stop:
            if isinstance(array, StreamingArray):
                session.log.say(f"exams are read from {store.path} as they are needed")
                if labels:
                    labels.keep = LABELS_HELD // labels.source**3
            if not session.done and session.overall == 0:
                facts = self._begin(session, store, split, labels)
                structures = labels.names if labels else None
                session.facts = replace(facts, exams=list(split.train), structures=structures)
            if session.facts and session.facts.exams is not None:
                insist_on_same_exams(store, session.facts.exams, split.train)
                insist_on_same_structures(store, session.facts.structures, labels)
            session.log.pictures = self._slices(session, store, array)
            with self._compiled(session):
                session.run(self._phases(session, store, array, labels), self._write_config)
            # Afterwards there is no exam to draw any more.
            session.log.draw(last=True)
            session.log.pictures = None
            return self._known(session, store, array) if self.world.main else {}

    def _phases(
        self, session: Session, store: Store, array: ExamArray, labels: LabelMaps | None
    ) -> Iterator[Phase | Sweep]:
        """The phases of the run."""
        return recipe(session, array, self._picture(session, store, array), labels)

    def _known(self, session: Session, store: Store, array: ExamArray) -> dict[str, Any]:
        """What exams the finished model knows: how well it fits its own, and how tall they are."""
        network, level = session.modules["network"].eval(), self.config.network.finest_level
        heights = [store.grid(row).extent[2] for row in array.rows]
        return {
            "fit": training_fit(network, session.modules["atlas"], array, level),
            "view": {"longest_mm": round(max(heights), 1)},
        }

    def _begin(self, session: Session, store: Store, split: Split, labels: LabelMaps | None) -> Facts:
        """The facts of a new run: it starts from one exam, or from the weights of a model."""
        if name := self.request.init:
            return start_from(session, load_start(name, self.config), name, split.seed)
        return seed_atlas(session, store, split.seed)

    def _write_config(self) -> None:
        """Write ``config.json``, in which settings may have changed since an earlier part of the run."""
        if self.world.main:
            write_config(self.folder, self.config, self._asked)

    @contextlib.contextmanager
    def _compiled(self, session: Session) -> Iterator[None]:
        """Run the networks through torch.compile if the settings ask for it, within the block only.

        What follows works on single exams, for which compiling would take longer than it saves.
        """
        compiled = [n for n in NETWORKS if n in session.modules] if self.config.train.compile else []
        for name in compiled:
            session.modules[name].features = torch.compile(session.modules[name].features)
        yield
        for name in compiled:
            # Without the attribute of the instance, the method of the class is used again.
            del session.modules[name].features

    def _picture(self, session: Session, store: Store, array: ExamArray):
        """A function that draws the picture of a level that has ended."""
        grids = [store.grid(row) for row in array.rows[:PANEL_EXAMS]]

        def picture(level: int) -> None:
            path = self.folder / "figures" / f"level-{level}.png"
            modules = session.modules
            save_panel(path, modules["network"], modules["atlas"], array, grids, level, modules.get("labels"))

        return picture

    def _slices(
        self, session: Session, store: Store, array: ExamArray
    ) -> Callable[[], dict[str, np.ndarray]] | None:
        """A function that draws slices for TensorBoard, at the finest level that has been trained."""
        grid, network, atlas = store.grid(array.rows[0]), session.modules["network"], session.modules["atlas"]
        finest, coarsest = self.config.network.finest_level, network.levels - 1

        def pictures() -> dict[str, np.ndarray]:
            trained = [n for n in range(finest, coarsest + 1) if f"level-{n}" in session.done]
            return slices(network, atlas, array, grid, min(trained, default=coarsest))

        return pictures

    def _finish(
        self, session: Session, split: Split, known: dict[str, Any], labels: LabelMaps | None
    ) -> Engine:
        """Write ``model.pt`` and ``atlas.nii.gz`` and, where labels were learned, ``template-learned.h5``."""
        card = self._card(session, split, labels) | {"seed_exam": split.seed, **known}
        model = Engine(self.config, session.modules["network"], session.modules["atlas"], card)
        model.save(self.folder / MODEL_FILE)
        save_atlas(model, self.folder / "atlas.nii.gz")
        if labels:
            learned = learned_template(session.modules["labels"], labels, model.fingerprint, model.intensity)
            learned.save(self.folder / "template-learned.h5")
        return model

    def _card(self, session: Session, split: Split, labels: LabelMaps | None) -> dict[str, Any]:
        """Facts about the model for its file."""
        card: dict[str, Any] = {
            "preset": self.config.preset,
            "exams": len(split.train),
            "steps": session.overall,
            "training_seconds": round(session.seconds, 1),
            "torch": str(torch.__version__),
            "backend": ops.build_info()["backend"],
        }
        if labels:
            card["labels"] = {"exams": len(labels.labelled), "structures": labels.names}
        if session.facts and session.facts.init:
            card["init"] = session.facts.init
        return card

    def _score(self, model: Engine, split: Split, log: RunLog) -> dict[str, Any]:
        """Score the model on the test exams; returns what ``result.json`` begins with."""
        return score(self.folder, model, self.config, self.request, split, log)
