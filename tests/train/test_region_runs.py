"""Regions of a model: crops in a store, a run for each region, and the model that uses them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fast_settings import FAST

import deepatlas_ops as ops
from deepatlas import checkpoint
from deepatlas.exams.joined import find_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Regions
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.store.store import Store
from deepatlas.train import experiment
from deepatlas.train.__main__ import main
from deepatlas.train.cache import cache_folder

ROOT = [
    *(s for s in FAST if "phantom" not in s),
    "loss.similarity=intensity",
    "network.channels=[8,16]",
    "coarse.steps=60",
    "coarse.batch=4",
    "train.steps=[1,2]",
    "train.head_steps=0",
    "data.holdout=1",
    "refine.steps=0",
]
# A region of a few steps of every kind.
CHILD = ["region.steps=3", "distil.steps=[2]", "train.steps=[0,0]", "distil.average=0.5"]
TREE = """
[[region]]
name = "trunk"
low = [-0.7, -0.7, -0.5]
high = [0.7, 0.7, 0.5]
coverage = 0.4

[[region]]
name = "middle"
within = "trunk"
low = [-0.4, -0.4, -0.3]
high = [0.4, 0.4, 0.2]
coverage = 0.4
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, no_pictures):
    """A folder with data, a tree and a run of whole exams that has learned where they are, roughly."""
    root = tmp_path_factory.mktemp("regions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(root / "cache"))
        write_phantoms(PhantomCohort(seed=0), root / "data", range(4), progress=False)
        (root / "tree.toml").write_text(TREE)
        train(root, "--out", root / "model", "--data", root / "data", "--preset", "tiny", *ROOT)
        yield root


def train(root, *argv):
    """A run, which ends well."""
    assert main([*map(str, argv), "--device", "cpu", "--quiet", "--json"]) == 0


def regions(root, *argv):
    """A run of regions, on the crops that this process cuts."""
    train(root, "--regions", root / "tree.toml", "--workers", "0", *argv)


def test_a_tree_is_trained_two_levels_deep_and_used_by_the_model(work, capsys):
    capsys.readouterr()
    regions(work, "--parent", work / "model", *CHILD)
    results = json.loads(capsys.readouterr().out)
    assert list(results) == ["trunk", "middle"]
    print(results)
