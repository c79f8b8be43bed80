"""The time of a training step, by level and by part: native against PyTorch ops, compiled against eager networks."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import pytest
import torch

import deepatlas_ops as ops
from deepatlas.config import Config
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.losses.similarity import freeze
from deepatlas.nn import Atlas, Autoencoder, CoordinateNetwork
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import preset
from deepatlas.train.allocator import keep_freed_memory
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.batches import Batches, Drawn
from deepatlas.train.feed.resident import TrainingArray

EXAMS = 4
# Preset and level. On a CPU, preset paper runs with a batch of two exams instead of its 64.
STEPS = [("tiny", 1), ("headneck", 0), ("small", 0), *(("paper", level) for level in (4, 3, 2, 1, 0))]
TINY = {
    "network.size": 16, "network.fold": 1, "network.channels": [8, 16], "network.atlas_size": 24, "loss.size": 16,
    "network.finest_level": 0, "coarse.levels": 1, "train.steps": [1, 1],
}  # fmt: skip


@functools.cache
def store():
    folder = Path(tempfile.mkdtemp(prefix="deepatlas-benchmark-"))
    write_phantoms(PhantomCohort(seed=0), folder / "data", range(EXAMS), progress=False)
    return prepare_cohort(folder / "data", folder / "store.h5", progress=False)


class Recall(torch.autograd.Function):
    """A function with given feature maps as its output, and a given gradient by the image, that computes nothing."""

    @staticmethod
    def forward(ctx, image, *maps):
        ctx.save_for_backward(image)
        ctx.count = len(maps)
        return tuple(m.view_as(m) for m in maps)

    @staticmethod
    def backward(ctx, *grads):
        return ctx.saved_tensors[0], *(None,) * ctx.count


class Remembered(FeatureSimilarity):
    """Similarity in feature space without the cost of the autoencoder: it returns feature maps computed before."""

    def __init__(self, similarity: FeatureSimilarity, image: torch.Tensor):
        super().__init__(similarity.autoencoder, similarity.kind, similarity.window)
        self.maps = [m.detach().clone() for m in similarity.autoencoder.features(image)]

    def encode(self, image):
        return list(Recall.apply(image, *self.maps))


@dataclasses.dataclass
class Setting:
    """All parts of one training step, with coordinates that are nearly right, as those of a trained network."""

    config: Config
    level: int
    device: torch.device
    batch: int

    def __post_init__(self):
        # As every training run does.
        keep_freed_memory()
        config, device = self.config, self.device
        torch.manual_seed(0)
        self.network = CoordinateNetwork(config.network).to(device)
        self.autoencoder = freeze(Autoencoder(config.autoencoder.channels).to(device))
        if device.type == "cpu":
            self.network.to(memory_format=torch.channels_last_3d)
            self.autoencoder.to(memory_format=torch.channels_last_3d)
        self.atlas = Atlas(config.network.atlas_size).to(device)
        array = TrainingArray(store(), config.network.size, device)
        self.atlas.seed(array.volumes[:1].float(), config.train.extent)
        self.batches = Batches(array, array.ids, config.data, config.loss.size)
        similarity = FeatureSimilarity(self.autoencoder, config.loss.similarity, config.loss.window)
        self.loss = RegistrationLoss(config.loss, similarity, config.network.size)
        self.without_autoencoder = None
        generator = torch.Generator().manual_seed(1)
        indices = [i % EXAMS for i in range(self.batch)]
        self.drawn = Drawn(indices, Augmentation.from_settings(self.batch, generator, config.data, 0.05))
        self.x, self.image, self.mask = self.augment()
        size = self.network.level_size(self.level)
        self.coords = config.train.extent * self.drawn.augmentation.coords(size, device).clamp(-1.1, 1.1)
        self.parameters = [*self.network.parameters(), *self.atlas.parameters()]
        self.adam = torch.optim.Adam(self.parameters, 0.0, foreach=True)

    def augment(self):
        return self.batches.take(self.drawn, range(self.batch))

    def predict(self, network=None):
        return (self.network if network is None else network)(self.x, self.level)

    def predict_and_back(self):
        self.predict().square().mean().backward()

    def losses(self):
        """Both tasks without the two networks, forward and backward."""
        if self.config.loss.similarity == "features" and self.without_autoencoder is None:
            remembered = Remembered(self.loss.similarity, self.image)
            self.without_autoencoder = RegistrationLoss(
                self.config.loss, remembered, self.config.network.size
            )
        return self._both_ways(self.without_autoencoder or self.loss)

    def _both_ways(self, loss):
        leaf = self.coords.detach().requires_grad_()
        total = loss(leaf, self.image, self.mask, self.atlas).total
        return total, torch.autograd.grad(total, leaf)[0]

    def step(self, network=None, half=False):
        self.x, self.image, self.mask = self.augment()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            predicted = self.predict(network)
        coords = self.coords + (predicted - predicted.detach())
        total = self.loss(coords, self.image, self.mask, self.atlas).total
        self.adam.zero_grad()
        total.backward()
        self.adam.step()
        return total

    def bytes(self):
        """Bytes of coordinates, image and mask (read once) and of the gradient (written once)."""
        return 4 * self.batch * (6 * self.coords[0, 0].numel() + 2 * self.image[0].numel())


def on(backend, run):
    def call():
        with ops.use_backend(backend):
            return run()

    return call


def setting(record, device, name, level) -> Setting:
    config = preset(name)
    if not record.measuring:
        values = config.to_dict()
        for key, value in TINY.items():
            section, entry = key.split(".")
            values[section][entry] = value
        return Setting(Config.from_dict(values).validate(), min(level, 1), device, 2)
    batch = config.train.batch if name != "paper" or device.type == "cuda" else 2
    return Setting(config, level, device, batch)


@pytest.mark.slow(1)
@pytest.mark.parametrize(("name", "level"), STEPS, ids=lambda v: str(v))
def test_step(record, device, name, level):
    s = setting(record, device, name, level)
    runs = {"native": on("native", s.step), "torch ops": on("torch", s.step)}
    record(f"step of {name}, level {level}, batch {s.batch}", runs, s.bytes(), device)


@pytest.mark.parametrize(
    ("name", "level"), [("tiny", 1), ("headneck", 0), ("small", 0), ("paper", 0)], ids=str
)
def test_losses(record, device, name, level):
    s = setting(record, device, name, level)
    runs = {"native": on("native", s.losses), "torch ops": on("torch", s.losses)}
    record(f"losses of {name}, level {level}, batch {s.batch}", runs, s.bytes(), device, 5e-3)


@pytest.mark.parametrize("part", ["augment", "predict", "predict_and_back", "losses", "adam.step"])
@pytest.mark.parametrize(("name", "level"), [("tiny", 1), ("headneck", 0), ("paper", 0)], ids=str)
def test_part(record, device, name, level, part):
    s = setting(record, device, name, level)
    s.step()
    run = functools.reduce(getattr, part.split("."), s)
    record(f"part of {name}, level {level}: {part}", {"native": on("native", run)}, s.bytes(), device)


@pytest.mark.slow(1)
@pytest.mark.parametrize(("name", "level"), [("headneck", 0), ("paper", 0)], ids=str)
def test_compiled(record, device, name, level):
    """A step with the network eager in float32, compiled by torch.compile, and in bfloat16."""
    s = setting(record, device, name, level)
    network = torch.compile(s.network, backend="inductor" if record.measuring else "aot_eager")
    runs = {
        "native": on("native", s.step),
        "compiled": on("native", lambda: s.step(network)),
        "bfloat16": on("native", lambda: s.step(half=True)),
    }
    record(f"step of {name}, level {level}, eager", runs, s.bytes(), device)
