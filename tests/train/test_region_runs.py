"""Regions of a model: crops in a store, a run for each region, and the model that uses them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from fast_settings import FAST
from scipy import ndimage

import deepatlas_ops as ops
from deepatlas import checkpoint
from deepatlas.errors import DeepAtlasError
from deepatlas.exams.build_store import ABOUT
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.exams.read import read_volume
from deepatlas.files import atomic_path
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Regions
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import PRESETS, region_settings
from deepatlas.space.affine import affine_coords
from deepatlas.space.grid import Grid
from deepatlas.store import store as stores
from deepatlas.store.store import Store
from deepatlas.train import crops
from deepatlas.train.__main__ import main
from deepatlas.train.cache import entries
from deepatlas.train.crops import Cutter, prepare_crops
from deepatlas.train.parent import Parent
from deepatlas.train.phases import distil
from deepatlas.train.region import on_input

ROOT = [
    *(s for s in FAST if "phantom" not in s),
    "loss.similarity=intensity",
    "network.channels=[8,16]",
    "coarse.steps=60",
    "coarse.batch=4",
    "train.steps=[1,2]",
    "train.head_steps=0",
    "data.holdout=0",
    "refine.steps=0",
]
# A region of a few steps of every kind.
CHILD = ["region.steps=3", "distil.steps=[2]", "distil.batch=2", "cohort.steps=1", "train.steps=[0,0]"]
TREE = """
[[region]]
name = "trunk"
low = [-0.7, -0.7, -0.5]
high = [0.7, 0.7, 0.5]
coverage = 0.3

[[region]]
name = "middle"
within = "trunk"
low = [-0.5, -0.5, -0.4]
high = [0.5, 0.5, 0.3]
coverage = 0.3

[[region]]
name = "beyond"
low = [0.93, 0.93, 0.93]
high = [1.0, 1.0, 1.0]
coverage = 1.0
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, no_pictures):
    """A folder with data, a tree, and a run of whole exams that has learned roughly where things are."""
    root = tmp_path_factory.mktemp("regions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(root / "cache"))
        write_phantoms(PhantomCohort(seed=0), root / "data", range(4), progress=False)
        (root / "data" / "phantom_0003" / "seg.nii.gz").unlink()
        (root / "tree.toml").write_text(TREE)
        data = ["--data", root / "data", "--preset", "tiny"]
        assert command("--out", root / "model", *data, *ROOT) == 0
        yield root


@pytest.fixture
def model(work, tmp_path):
    """A copy of the folder of the model."""
    return shutil.copytree(work / "model", tmp_path / "model")


@pytest.fixture(scope="module")
def cascade(work):
    """The model with a region and one within it; another test must not write there."""
    folder = shutil.copytree(work / "model", work / "cascade")
    assert regions(work, "--parent", folder, *CHILD) == 0
    return folder


def command(*argv) -> int:
    return main([*map(str, argv), "--device", "cpu", "--quiet"])


def regions(work, *argv) -> int:
    """A run of regions, on the crops that this process cuts."""
    return command("--regions", work / "tree.toml", "--workers", "0", *argv)


def refused(capsys, *argv) -> str:
    capsys.readouterr()
    assert command(*argv) == 1
    *warnings, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("deepatlas: error: "), error
    assert all("the region is left out" in line for line in warnings), warnings
    return error


def equal(a, b) -> bool:
    one, other = (checkpoint.load(run / "model.pt", "model") for run in (a, b))
    return all(
        torch.equal(value, other[part][name])
        for part in ("network", "atlas")
        for name, value in one[part].items()
    )


def cutter(work, name="trunk") -> Cutter:
    region = Regions.read(work / "tree.toml")[name]
    return Cutter(Parent.of(work / "model", [region]), region, "cpu")


# -- the whole path ---------------------------------------------------------------------------------


@pytest.mark.slow(15)
def test_a_tree_is_trained_two_levels_deep_and_the_model_uses_it(work, cascade, capsys):
    model = Engine.load(cascade, "cpu")
    tree = Regions.read(work / "tree.toml")
    assert [network.region.to_dict() for network in model.regions] == [
        tree[name].to_dict() for name in ("trunk", "middle")
    ]
    outer, inner = (network.card["region"] for network in model.regions)
    assert outer["parent"] == inner["parent"] == model.fingerprint
    assert outer["above"] == {} and inner["above"] == {"trunk": model.regions[0].fingerprint}
    assert model.regions[0].config.data.crop is None
    found = model.map_exam(work / "data" / "phantom_0002" / "ct.nii.gz")
    assert [piece.name for piece in found.pieces] == ["trunk", "middle"]
    result = json.loads((cascade / "regions" / "trunk" / "result.json").read_text())
    assert result["region"] == "trunk"
    # The one that no exam shows was left out, and those that are done are not done again.
    assert not (cascade / "regions" / "beyond" / "model.pt").exists()
    before = (cascade / "regions" / "middle" / "model.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert regions(work, "--parent", cascade, *CHILD) == 0
    printed = capsys.readouterr()
    assert "nothing left to train" in printed.out
    assert "shows enough of region beyond" in printed.err and "the region is left out" in printed.err
    assert (cascade / "regions" / "middle" / "model.pt").stat().st_mtime_ns == before


@pytest.mark.slow(6)
def test_the_network_learns_where_the_parent_is(work, model):
    """After the phase ``parent``, the network of the region answers as the parent does."""
    settings = [
        "region.steps=90",
        "distil.steps=[]",
        "train.steps=[0,0]",
        "distil.lr=0.01",
        "distil.contrast=0",
    ]
    assert regions(work, "--parent", model, "--region", "trunk", *settings) == 0
    network = Engine.load(model, "cpu").regions[0]
    with Store(crops_of(work, "trunk")) as store:
        errors, sizes = [], []
        for row in range(len(store)):
            x = torch.from_numpy(store.hu[row].astype(np.float32))[None, None]
            x = ((torch.nn.functional.avg_pool3d(x, 4) + 256) / 512).clamp(0, 1)
            with torch.no_grad():
                own = ops.resize(network.network(x, 0), (32,) * 3)[0].numpy()
            inside = ndimage.zoom(store.mask[row], 0.5, order=0).astype(bool)
            there = store.coords(row).astype(np.float32)
            errors.append(np.linalg.norm(own - there, axis=0)[inside])
            sizes.append(np.linalg.norm(there, axis=0)[inside])
    assert np.median(np.concatenate(errors)) < 0.35 * np.median(np.concatenate(sizes))


def crops_of(work, name: str):
    """The store of the crops of a region, of the newest run."""
    found = [e.path for e in entries() if e.kind == "store"]
    held = []
    for path in found:
        with Store(path) as store:
            if store.region and store.region["region"]["name"] == name:
                held.append(path)
    return max(held, key=lambda path: path.stat().st_mtime_ns)


# -- crops ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(work, tmp_path_factory):
    """The store of the crops of ``trunk``."""
    path = tmp_path_factory.mktemp("crops") / "store.h5"
    return prepare_crops(work / "data", path, cutter(work), progress=False, workers=0)


@pytest.mark.slow(3)
def test_a_crop_is_cut_from_the_exams_own_voxels_with_labels_and_coordinates(work, made):
    assert made.crop == "region trunk" and made.ids == [f"phantom_{i:04}" for i in range(4)]
    region, engine = cutter(work).region, Engine.load(work / "model", "cpu")
    for row, exam in enumerate(made.ids[:2]):
        ct = read_volume(work / "data" / exam / "ct.nii.gz")
        seg = read_volume(work / "data" / exam / "seg.nii.gz", labels=True)
        fine, grid = made.fine_grid(row), made.grid(row)
        assert grid.matches(fine.pooled(2)) and not grid.matches(ct.grid)
        index = ct.grid.world_to_voxel(places(fine))[..., ::-1]
        wanted = ndimage.map_coordinates(ct.array, np.moveaxis(index, -1, 0), order=1, mode="nearest")
        wanted = wanted.reshape(64, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5))
        # Half a voxel around the scan is continued in one way or another, and beyond is air.
        within = np.abs(ndimage.uniform_filter(wanted, 3) - wanted) < 1e9
        coarse = ct.grid.world_to_voxel(places(grid))
        for axis, n in enumerate(ct.grid.shape[::-1]):
            within &= (coarse[..., axis] > 1) & (coarse[..., axis] < n - 2)
        assert within.mean() > 0.3
        assert np.abs(wanted - made.hu[row])[within].max() <= 1
        nearest = np.rint(index).astype(int)
        held = ((nearest >= 0) & (nearest < ct.grid.shape)).all(-1)
        picked = np.zeros(fine.shape, dtype=seg.array.dtype)
        picked[held] = seg.array[tuple(np.moveaxis(nearest[held], -1, 0))]
        # Where a voxel lies half way between two of the exam, either may be taken.
        assert (picked == made.labels_128[row]).mean() > 0.999
        names = [n for n, has in zip(made.labels, made.has_label[row], strict=True) if has]
        assert names == [n for n, i in made.labels.items() if (made.labels_128[row] == i).any()]
        assert 0 < len(names) <= len(made.labels)
        # Where the level above puts the voxels.
        coords = engine.map_exam(ct).field.on(grid)[None]
        own = region.box.own(np.moveaxis(ops.resize(coords, (32,) * 3)[0].numpy(), 0, -1))
        assert np.abs(np.moveaxis(own, -1, 0) - made.coords(row)).max() < 2e-3


def places(grid: Grid) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.voxel_to_world(np.stack([x, y, z], axis=-1))


@pytest.mark.slow(3)
def test_a_crop_store_is_the_same_from_several_processes_and_after_an_interruption(
    work, made, tmp_path, monkeypatch
):
    path = tmp_path / "store.h5"
    # Interrupted after two exams.
    count = []

    def interrupted(target, **options):
        if target.parent.name.endswith(".parts") and target.name != ABOUT:
            count.append(target)
            if len(count) == 3:
                raise KeyboardInterrupt
        return atomic_path(target, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deepatlas.files.atomic_path", interrupted)
        prepare_crops(work / "data", path, cutter(work), progress=False, workers=0)
    (parts,) = tmp_path.glob(".store.h5.parts")
    done = {part: part.stat().st_mtime_ns for part in parts.glob("*.h5")}
    assert len(done) == 2 and not path.exists()
    # The rest by two processes, each of which has one thread as this one.
    assert torch.get_num_threads() == 1
    with prepare_crops(work / "data", path, cutter(work), progress=False, workers=2) as store:
        assert store.fingerprint == made.fingerprint and store.ids == made.ids
        for row in range(len(store)):
            for name in ("hu", "mask", "labels_64", "labels_128"):
                assert np.array_equal(getattr(store, name)[row], getattr(made, name)[row])
            assert np.array_equal(store.coords(row), made.coords(row))
            assert np.array_equal(store.grid(row).affine, made.grid(row).affine)
    written = path.stat().st_mtime_ns
    prepare_crops(work / "data", path, cutter(work), progress=False, workers=2).close()
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow(3)
def test_exams_that_show_too_little_are_listed_and_stop_no_strict_run(work, tmp_path):
    whole = cutter(work)
    coverage = []
    with prepare_crops(work / "data", tmp_path / "a.h5", whole, progress=False, workers=0) as store:
        engine = Engine.load(work / "model", "cpu")
        for exam in store.ids:
            found = engine.map_exam(work / "data" / exam / "ct.nii.gz")
            view = crops.view_of(found.hu, found.field, whole.region.box, 64, body=found.body)
            coverage.append(view.carried.coverage)
    assert min(coverage) < max(coverage), "choose another box"
    least = (min(coverage) + max(coverage)) / 2
    demanding = replace(whole, region=replace(whole.region, coverage=least))
    with prepare_crops(
        work / "data", tmp_path / "b.h5", demanding, strict=True, progress=False, workers=0
    ) as store:
        fewer = [exam for exam, share in zip(made_ids(), coverage, strict=True) if share >= least]
        assert store.ids == fewer and set(store.skipped) == set(made_ids()) - set(fewer)
        assert all("of region trunk" in reason for reason in store.skipped.values())


def made_ids() -> list[str]:
    return [f"phantom_{i:04}" for i in range(4)]


# -- guarantees -------------------------------------------------------------------------------------


@pytest.mark.slow(3)
def test_a_run_that_is_killed_goes_on_bit_for_bit(work, cascade, model, monkeypatch):
    run = model / "regions" / "trunk"
    goal, calls = distil.coordinate_goal, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return goal(*arguments)

    # A checkpoint after every step.
    start = ["--parent", model, "--region", "trunk", *CHILD, "train.checkpoint_minutes=0"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(distil, "coordinate_goal", killed)
        regions(work, *start)
    assert not (run / "model.pt").exists()
    assert checkpoint.load(run / checkpoint.NAME)["overall"] == 2
    assert command("--resume", run) == 0
    assert equal(run, cascade / "regions" / "trunk")


@pytest.mark.slow(3)
def test_a_region_cannot_be_resumed_for_another_parent(work, model, capsys):
    run = model / "regions" / "trunk"
    assert regions(work, "--parent", model, "--region", "trunk", *CHILD) == 0
    (run / "result.json").unlink()
    # What a run was begun with cannot be exchanged on the way.
    begun = ["--regions", work / "tree.toml", "--parent", model, "--workers", "0"]
    assert "was begun with another --data" in refused(capsys, *begun, "--data", work)
    assert "was begun with another --preset (tiny)" in refused(capsys, *begun, "--preset", "small")
    assert "was begun with another --structures (None)" in refused(capsys, *begun, "--structures", "liver")
    parent = Engine.load(model, "cpu")
    parent.atlas_module.values.mul_(0.99)
    parent.save(model / "model.pt")
    assert "is a region of model" in refused(capsys, "--resume", run)
    tree = ["--regions", work / "tree.toml", "--parent", model]
    assert "is a run of a region of another model" in refused(capsys, *tree)


@pytest.mark.slow(3)
def test_the_model_is_copied_to_another_folder_with_the_regions_above(work, cascade, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ["--parent", cascade, "--out", out, *CHILD]
    assert regions(work, *settings, "--region", "middle", "region.steps=1") == 0
    assert equal(out, cascade) and equal(out / "regions" / "trunk", cascade / "regions" / "trunk")
    assert not equal(out / "regions" / "middle", cascade / "regions" / "middle")
    assert [n.region.name for n in Engine.load(out, "cpu").regions] == ["trunk", "middle"]
    other = Engine.load(cascade, "cpu")
    other.atlas_module.values.mul_(0.9)
    other.save(tmp_path / "other.pt")
    tree = ["--regions", work / "tree.toml", "--parent", tmp_path / "other.pt"]
    assert "holds another model" in refused(capsys, *tree, "--out", out, "--data", work / "data")


def test_settings_of_a_region_are_legal_for_every_preset():
    for name, parent in PRESETS.items():
        config = region_settings(parent).validate()
        assert config.data.crop is None and config.network == parent.network and config.preset == name
        assert config.coarse.steps == 0 and (sum(config.train.steps) > 0) != (len(config.distil.steps) > 0)


# -- the start --------------------------------------------------------------------------------------


@pytest.mark.slow(3)
def test_the_atlas_of_a_region_is_its_parents_seen_closer(cascade):
    from deepatlas.train.region import closer_atlas

    model = Engine.load(cascade, "cpu")
    trunk, middle = (network.region for network in model.regions)
    # An atlas that is its own x coordinate, and one of the region above that tells that it is another.
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32, 32)
    model.atlas_module.values.copy_(ramp)
    model.regions[0].atlas_module.values.fill_(0.25)
    model.regions = model.regions[:1]
    whole, model.regions = model.regions, []
    closer = closer_atlas(model, trunk, 5)
    x = trunk.box.centre[0] + trunk.box.axes[0, 0] * np.linspace(-1, 1, 5)
    assert np.allclose(closer.numpy(), (x + 1) / 2, atol=1e-5)
    model.regions = whole
    assert torch.allclose(closer_atlas(model, middle, 5), torch.tensor(0.25))


@pytest.mark.slow(3)
def test_weights_of_another_shape_begin_anew(work, model):
    wider = ["network.features=16", "region.steps=0", "distil.steps=[]", "train.steps=[0,0]"]
    assert regions(work, "--parent", model, "--region", "trunk", *wider) == 0
    root, own = Engine.load(model, "cpu"), Engine.load(model / "regions" / "trunk", "cpu")
    theirs, ours = root.network.state_dict(), own.network.state_dict()
    same = [name for name in ours if ours[name].shape == theirs[name].shape]
    assert 0 < len(same) < len(ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in same)


def test_kept_coordinates_lie_at_the_voxels_of_a_smaller_input():
    """A linear map of the 64³ voxels of a crop is the same map of the means of their blocks."""
    grid = Grid((64,) * 3, np.diag([2.0, 3.0, 4.0, 1.0]))
    matrix = torch.tensor([[0.3, -0.1, 0.2, 0.1], [0.0, 0.5, 0.1, -0.2], [0.1, 0.0, 0.4, 0.0]])[None]

    def coords(at: Grid, size: int) -> torch.Tensor:
        places = torch.from_numpy(grid.theta_from(at)).float()
        whole = torch.cat([places, torch.tensor([[0.0, 0, 0, 1]])])
        return affine_coords(matrix @ whole, size)

    kept = coords(grid, 32)
    for size in (64, 32, 16):
        wanted = coords(grid if size == 64 else grid.pooled(64 // size), 16)
        assert torch.allclose(on_input(kept, size, (16,) * 3), wanted, atol=1e-5)


def test_the_network_of_a_region_is_not_used_on_whole_exams(work, cascade):
    region = Engine.load(cascade / "regions" / "trunk", "cpu")
    for use in (region.map_exam, region.look, region.coordinates):
        with pytest.raises(
            DeepAtlasError, match="is the network of region trunk, which sees a part of an exam"
        ):
            use(work / "data" / "phantom_0000" / "ct.nii.gz")


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.slow(3)
def test_what_is_no_region_of_a_model_is_refused(work, cascade, tmp_path, capsys, monkeypatch):
    tree, model = ["--regions", work / "tree.toml"], work / "model"
    data = ["--data", work / "data"]
    parent = ["--parent", model, *tree]
    assert f"{work / 'tree.toml'}: no region 'trunc'; did you mean trunk?" in refused(
        capsys, *parent, "--region", "trunc"
    )
    text = tmp_path / "text.txt"
    text.write_text("no model")
    for wrong, words in (
        (tmp_path / "none", "no run folder or model file there"),
        (text, f"{text}: "),
        (cascade / "regions" / "trunk", "is the model of region trunk"),
    ):
        assert words in refused(capsys, "--parent", wrong, *tree, *data, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert "give --parent M too" in refused(capsys, "--region", "trunk", *data)
    assert "--workers is about regions of a model" in refused(capsys, *data, "--workers", "1")
    assert "is no run of one" in refused(capsys, "--resume", model, "--workers", "1")
    with pytest.raises(SystemExit):
        command(*parent, "--workers", "-1")
    assert "--init has no meaning with --parent" in refused(capsys, *parent, "--init", "headneck")
    assert "--seed-exam has no meaning" in refused(capsys, *parent, "--seed-exam", "phantom_0001")
    assert "region trunk, which middle lies in, has no model yet" in refused(
        capsys, *parent, "--region", "middle"
    )
    assert "is the model of region trunk" in refused(
        capsys, "--parent", cascade / "regions" / "trunk", *tree, *data
    )
    assert "which regions? Give --regions" in refused(capsys, "--parent", model)
    assert "comes with the package; give --out" in refused(capsys, "--parent", "headneck", *tree)
    assert "is no run whose exams are known" in refused(
        capsys, "--parent", "headneck", "--out", tmp_path / "out", "--region", "head"
    )
    assert "setting data.crop must be null in a region" in refused(
        capsys, *parent, "--region", "trunk", "data.crop=foreground"
    )
    nothing = refused(capsys, *parent, "--region", "beyond", "--workers", "0")
    assert "none of its 4 exams shows enough of region beyond" in nothing
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give --region NAME" in refused(capsys, *parent)


@pytest.mark.slow(3)
def test_a_store_serves_as_data_while_its_exams_are_there(work, made, tmp_path, capsys):
    data = shutil.copytree(work / "data", tmp_path / "data")
    from deepatlas.exams.build_store import prepare_cohort

    prepare_cohort(data, tmp_path / "whole.h5", crop="foreground", progress=False).close()
    with prepare_crops(
        tmp_path / "whole.h5", tmp_path / "c.h5", cutter(work), progress=False, workers=0
    ) as store:
        assert np.array_equal(store.hu[1], made.hu[1]) and store.has_label.any()
    shutil.rmtree(data)
    with pytest.raises(stores.DataError, match="at full resolution, and those of this store are gone"):
        prepare_crops(tmp_path / "whole.h5", tmp_path / "c.h5", cutter(work), progress=False, workers=0)
    assert "holds the crops of a region, not whole exams" in refused(
        capsys, "--data", made.path, "--out", tmp_path / "run"
    )


@pytest.mark.slow
def test_one_command_trains_a_model_and_its_regions(work, tmp_path, capsys):
    (tmp_path / "tree.toml").write_text(TREE.split("\n\n")[0])
    tree = ["--regions", tmp_path / "tree.toml", "--workers", "0", "--json"]
    root = [*ROOT, "region.steps=2", "coarse.steps=40"]
    data = ["--data", work / "data", "--preset", "tiny"]
    assert command("--out", tmp_path / "run", *data, *root, *tree) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["regions"]) == ["trunk"]
    model = Engine.load(tmp_path / "run", "cpu")
    assert [network.region.name for network in model.regions] == ["trunk"]
    # Once more there is nothing left to do, and nothing is trained again.
    before = (tmp_path / "run" / "regions" / "trunk" / "model.pt").stat().st_mtime_ns
    assert command("--resume", tmp_path / "run", *tree) == 0
    assert json.loads(capsys.readouterr().out)["regions"] == {}
    assert (tmp_path / "run" / "regions" / "trunk" / "model.pt").stat().st_mtime_ns == before
    # An option that the run of the model keeps is refused, also where only regions are left.
    assert "leave out --data" in refused(capsys, "--resume", tmp_path / "run", *tree, "--data", work / "data")
    # A tree that is wrong is refused before anything is trained.
    assert "no such file of regions" in refused(
        capsys, "--out", tmp_path / "other", *data, "--regions", tmp_path / "none.toml"
    )
    assert not (tmp_path / "other").exists()
