"""Templates and their files."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.localize.template.file import Template


@pytest.fixture
def template() -> Template:
    masks = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)
    return Template(masks, ("Parotis, left", "μ-bone"), (4, 2), {"model": "abc", "exams": ["pt_1"]})


def test_a_file_holds_what_was_saved(template, tmp_path):
    template.save(tmp_path / "new" / "t.h5")
    back = Template.load(tmp_path / "new" / "t.h5")
    np.testing.assert_array_equal(back.masks, template.masks)
    assert (back.names, back.ids, back.meta) == (template.names, template.ids, template.meta)
    assert back.labels == {"Parotis, left": 4, "μ-bone": 2}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.h5"]


FULL_DISK = """
import resource, signal, sys
from deepatlas.localize.template.file import Template
from deepatlas.errors import DataError
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
masks = np.random.default_rng(0).random((3, 40, 40, 40), dtype=np.float32)
try:
    Template(masks, ("a", "b", "c"), (1, 2, 3)).save(sys.argv[1])
except DataError as error:
    print(error)
"""


def test_the_meta_of_a_large_cohort_fits(template, tmp_path):
    template.meta["exams"] = [f"exam_{i:06d}" for i in range(20_000)]
    template.save(tmp_path / "t.h5")
    assert Template.load(tmp_path / "t.h5").meta == template.meta


@pytest.mark.slow(3)
def test_a_failed_save_is_one_line_and_keeps_the_old_file(template, tmp_path):
    """A limit on the file size makes the system refuse the write, in a separate process."""
    path = tmp_path / "t.h5"
    template.save(path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stderr == ""
    assert "t.h5: cannot write: " in done.stdout and done.stdout.count("\n") == 1
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_every_damage_is_one_line_with_file_and_cure(template, tmp_path):
    path = tmp_path / "t.h5"

    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words) as error:
            Template.load(path)
        assert "t.h5" in str(error.value) and "deepatlas template" in str(error.value)
        assert "\n" not in str(error.value)

    refused("no such template file")
    path.write_bytes(b"not hdf5 at all")
    refused("not a template file, or damaged")
    template.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("not a template file, or damaged")
    damaged = bytearray(whole)
    with h5py.File(path, "w") as f:
        f.attrs["format"] = "other"
    refused("not by `deepatlas template`")
    for key, words in (("masks", "damaged"), ("ids", "damaged")):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as f:
            del f[key]
        refused(words)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as f:
        f.attrs["version"] = 99
    refused("template format 99")
    path.write_bytes(whole)
    with h5py.File(path, "r") as f:
        offset = f["masks"].id.get_chunk_info(0).byte_offset
    # Only a checksum reveals wrong bits inside the voxels.
    damaged[offset + 40] ^= 0xFF
    path.write_bytes(damaged)
    refused("damaged")


def test_wrong_arrays_names_and_ids_are_refused():
    masks = np.zeros((2, 3, 3, 3), np.float32)
    with pytest.raises(DeepAtlasError, match="distinct"):
        Template(masks, ("a", "a"), (1, 2))
    with pytest.raises(DeepAtlasError, match="distinct"):
        Template(masks, ("a", "b"), (0, 2))
    with pytest.raises(DeepAtlasError, match=r"3 names"):
        Template(masks, ("a", "b", "c"), (1, 2, 3))
    with pytest.raises(DeepAtlasError, match="NaN"):
        Template(masks * np.nan, ("a", "b"), (1, 2))


def test_structures_are_selected_and_the_model_is_checked(template):
    one = template.select(["μ-bone"])
    assert one.labels == {"μ-bone": 2}
    np.testing.assert_array_equal(one.masks[0], template.masks[1])
    with pytest.raises(DeepAtlasError, match="no structure 'heart'; there are: Parotis, left, μ-bone"):
        template.select(["heart"])
    template.check_model("abc")
    with pytest.raises(DeepAtlasError, match="made for the model abc, but this model is xyz"):
        template.check_model("xyz")


def ball(centre, size=48, radius=12.0):
    place = np.stack(np.meshgrid(*(np.arange(size),) * 3, indexing="ij"), -1)
    return (np.linalg.norm(place - centre, axis=-1) <= radius).astype(np.float32)


def test_the_threshold_of_a_mean_of_exams_preserves_their_volume():
    rng = np.random.default_rng(0)
    exams = [ball(24 + rng.normal(0, 3, 3), radius=r) for r in rng.uniform(9, 13, 12)]
    masks = np.stack([gaussian_filter(np.mean(exams, 0), 1.0), exams[0]])
    template = Template(masks, ("many", "one"), (1, 2))
    many, one = template.thresholds
    volume = np.mean([exam.sum() for exam in exams])
    assert abs((masks[0] >= many).sum() / volume - 1) < 0.005
    assert (masks[0] >= 0.5).sum() / volume < 0.9
    assert one == 0.5


def test_thresholds_of_degenerate_masks_stay_within_bounds():
    nothing, faint, everywhere = np.zeros((3, 4, 4, 4), np.float32)
    nothing[0, 0, 0] = 0.2
    faint[:2] = 0.1
    everywhere[:] = 0.9
    template = Template(np.stack([nothing, faint, everywhere]), ("a", "b", "c"), (1, 2, 3))
    assert template.thresholds == (0.5, 0.25, 0.75)
