"""Pictures of a run: TensorBoard gets slices whenever the curves are drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fast_settings import FAST

from deepatlas.train.__main__ import main
from deepatlas.train.log import RunLog


def events(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def decoded(event) -> np.ndarray:
    import io

    from matplotlib.image import imread

    return imread(io.BytesIO(event.encoded_image_string))


def test_pictures_are_written_when_the_curves_are_drawn_and_not_twice(tmp_path):
    log = RunLog(tmp_path, quiet=True)
    ramp = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (6, 1))
    log.pictures = lambda: {"slices/atlas": ramp}
    log.record("coarse", 0, 1, loss=1.0)
    log.draw()
    log.record("coarse", 1, 2, loss=0.5)
    # Too soon after the first, and then the last, of which there is only one.
    log.draw()
    log.draw(last=True)
    log.draw(last=True)
    log.close()
    found = events(tmp_path).Images("slices/atlas")
    assert [image.step for image in found] == [1, 2]
    picture = decoded(found[0])
    np.testing.assert_allclose(picture.reshape(6, 8, -1)[..., 0], ramp, atol=1 / 255)


@pytest.mark.slow(5)
def test_a_run_shows_the_atlas_the_exam_and_the_warped_atlas(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    settings = [s for s in FAST if "phantom" not in s]
    more = ["loss.similarity=intensity", "network.channels=[8,16]", "train.steps=[1,1]", "train.head_steps=0"]
    where = ["--data", str(cohort), "--preset", "tiny", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*where, "--quiet", *settings, *more]) == 0
    found = events(tmp_path / "run")
    tags = {f"slices/{name}" for name in ("atlas", "exam", "atlas warped onto the exam")}
    assert set(found.Tags()["images"]) == tags
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["overall"]
    for tag in tags:
        image = found.Images(tag)[-1]
        picture = decoded(image)
        assert image.step == last and image.width == 256 and 0 <= picture.min()
        # A network that has learned nothing sends the exam to one place of the atlas.
        assert "warped" in tag or picture.max() > 0.3 > 0.01 > picture.min()
    # A body that is taller than wide is shown so.
    assert found.Images("slices/exam")[-1].height > 256
