"""Processes that share a run over a cohort that is read from the store: each one reads only its own rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

EXAMS, BATCH, STEPS = 12, 6, 4

RANK = f"""
import sys, json, torch, torch.distributed as dist
from pathlib import Path
from deepatlas.config import DataConfig
from deepatlas.train.feed.resident import TrainingArray
from deepatlas.store.packed import PackedReader
from deepatlas.store.store import Store
from deepatlas.train.feed.streaming import StreamingArray
from deepatlas.train.feed.batches import Batches
from deepatlas.train.world import World

read, read_into = [], PackedReader.read_into

def watched(self, name, row, out):
    read.append((name, row))
    return read_into(self, name, row, out)

world = World(torch.device("cpu"))
store = Store(sys.argv[1])
resident = TrainingArray(store, 16)
PackedReader.read_into = watched
with StreamingArray(store, 16, threads=2) as array:
    ours, theirs = (Batches(a, a.ids, DataConfig(), 16) for a in (array, resident))
    sources = [torch.Generator().manual_seed(3) for _ in range(2)]
    mine, equal = [], True
    for step in range({STEPS}):
        drawn = ours.draw({BATCH}, sources[0])
        same = theirs.draw({BATCH}, sources[1])
        equal &= drawn.indices == same.indices
        for rows in world.parts({BATCH}, 2):
            mine.append([drawn.indices[r] for r in rows])
            pairs = zip(ours.take(drawn, rows), theirs.take(same, rows), strict=True)
            equal &= all(torch.equal(a, b) for a, b in pairs)
        total = torch.tensor(float(sum(sum(part) for part in mine)))
        dist.all_reduce(total)
    coming = [row for part in array._coming for row in part.indices]
found = {{"rank": world.rank, "equal": equal, "mine": mine, "read": read, "coming": coming, "indices": drawn.indices}}
Path(sys.argv[2], f"{{world.rank}}.json").write_text(json.dumps(found))
world.close()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "data"
    rng = np.random.default_rng(0)
    for number in range(EXAMS):
        hu = np.full((12, 14, 16), -1000, dtype=np.int16)
        hu[:, 3:11, 4:12] = rng.integers(-200, 200, (12, 8, 8))
        grid = Grid.from_spacing(hu.shape, 20.0)
        write_volume(root / f"e{number:02}" / "ct.nii.gz", Volume(hu, grid))
    path = root.parent / "store.h5"
    prepare_cohort(root, path, progress=False).close()
    return path


@pytest.mark.slow
def test_two_gloo_ranks_read_only_their_rows(store, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "DEEPATLAS_OPS_BACKEND": "torch",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
            store,
            tmp_path,
        ],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # The processes write files, because lines that two processes print may be mixed.
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [r["rank"] for r in ranks] == [0, 1] and all(r["equal"] for r in ranks)
    for step in range(STEPS):
        shares = [sum(r["mine"][2 * step : 2 * step + 2], []) for r in ranks]
        # No exam is computed twice.
        assert len(set(shares[0] + shares[1])) == BATCH
    for rank in ranks:
        taken = [row for part in rank["mine"] for row in part]
        for name in ("hu", "mask"):
            read = [row for what, row in rank["read"] if what == name]
            for row in taken + rank["coming"]:
                if row in read:
                    read.remove(row)
            # Nothing else was read than what was taken or is expected for the next batches.
            assert not read
