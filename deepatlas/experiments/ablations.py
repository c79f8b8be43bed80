"""Short runs that differ from a default in one setting.

Usage: ``python -m deepatlas.experiments.ablations phantom|DIR --out FILE.json``.

What no setting here touches (the autoencoder and the pretraining on crops) is learned once, and every run goes on from
there with the same random numbers, so that runs differ by the setting alone. The default goes on with other random
numbers too: what that changes is noise. A finished setting is not run again and an interrupted one is resumed, from the
folders under ``--work``.

On phantoms the true coordinates are known. For a data directory the measure is the one-shot Dice of ``--test`` exams.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError, guarded
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.truth import phantom_truth
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.files import write_text
from deepatlas.localize.template.build import build_template
from deepatlas.model.engine import Engine
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import preset
from deepatlas.train.__main__ import main as train

DEFAULT = "default"
SEEDS = (0, 1, 2)  # of the random numbers after the shared phases
SHARED = ("autoencoder", "coarse")
SHORT = {
    "phantom": [
        "phantom.train=32", "phantom.test=4", "autoencoder.steps=80", "coarse.steps=800", "train.steps=[10,200]",
    ],
    "directory": [
        "autoencoder.steps=150", "coarse.steps=300", "train.steps=[20,60,500]", "cohort.prewitt=[]", "distil.steps=[]",
    ],
}  # fmt: skip
GRID = [
    *({"loss.similarity": value} for value in ("intensity", "histogram", "features", "mse")),
    {"loss.implicit": 1.0, "loss.explicit": 0.0},
    {"loss.implicit": 0.0, "loss.explicit": 1.0},
    {"loss.implicit": 0.5, "loss.explicit": 1.0},
    *({"loss.smoothness": value} for value in (0.1, 0.25, 0.5, 1.0)),
    *({"loss.prewitt": value} for value in (0.0, 0.5, 1.0)),
    *({"loss.window": value} for value in (None, 5, 9)),
    *({"loss.step": value} for value in ("moving", "fixed", "direction_cosine", "newton")),
    *({"loss.orthonormality": value} for value in ("det", "log")),
    *({"train.head_steps": value} for value in (0, 100)),
]


@dataclass(frozen=True)
class Setting:
    """One run: ``changes`` are the keys in which it differs from the default."""

    changes: tuple[tuple[str, object], ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """The changes as they are given on the command line; file names and ``--only`` use it."""
        text = " ".join(f"{key}={_json(value)}" for key, value in self.changes) or DEFAULT
        return text if self.seed == SEEDS[0] else f"{text} seed={self.seed}"

    def assignments(self) -> list[str]:
        return [f"{key}={_json(value)}" for key, value in self.changes]


def settings(base: Config) -> list[Setting]:
    """The default with every seed, then every entry of :data:`GRID` that is not the default itself."""
    values = base.to_dict()

    def is_default(changes: dict) -> bool:
        return all(values[section][key] == value for (section, key), value in _split(changes))

    found = [Setting(seed=seed) for seed in SEEDS]
    return found + [Setting(tuple(changes.items())) for changes in GRID if not is_default(changes)]


class Study:
    """The runs of one default: its data, its folders, and the JSON that holds what is finished."""

    def __init__(self, arguments: argparse.Namespace):
        self.phantom = arguments.data == "phantom"
        self.out, self.arguments = arguments.out, arguments
        self.work = arguments.work or Path("runs") / f"ablations-{arguments.out.stem}"
        name = arguments.preset or ("tiny" if self.phantom else "headneck")
        short = SHORT["phantom" if self.phantom else "directory"]
        self.base = preset(name).override([*short, "refine.steps=0", *arguments.set]).validate()
        self.drawn = _Remembering(seed=self.base.phantom.seed, deformation=self.base.phantom.deformation)
        if not self.phantom and not arguments.test:
            raise DeepAtlasError(
                f"{arguments.data}: what is learned there is scored on --test DIR; give that too"
            )
        self.results = self._read()

    def run(self, chosen: list[Setting]) -> None:
        for number, setting in enumerate(chosen, 1):
            if setting.name in self.results:
                continue
            began = time.process_time()
            result = {"changes": dict(setting.changes), "seed": setting.seed, **self._result(setting)}
            self.results[setting.name] = result | {"cpu_seconds": round(time.process_time() - began, 1)}
            self._write()
            print(f"{number}/{len(chosen)} {_line(setting.name, self.results)}", flush=True)

    def _result(self, setting: Setting) -> dict:
        folder = self._trained(setting)
        found = json.loads((folder / "result.json").read_text())
        model = Engine.load(folder, device="cpu")
        given, test = self.arguments, self._cohort("test") if self.phantom else self.arguments.test
        exams = given.template_exams or found["template_exams"]
        template = build_template(model, self._cohort("train"), exams, given.structures)
        summary = evaluate_cohort(
            model, template, test, folder / "evaluation", given.test_exams, pictures=False
        )
        result = {key: summary[key] for key in ("dice", "hd95_mm")}
        with (folder / "evaluation" / "metrics.csv").open() as file:
            rows = [(row["exam"], float(row["dice"])) for row in csv.DictReader(file)]
        of_exams = [statistics.fmean(d for e, d in rows if e == exam) for exam in {e for e, _ in rows}]
        result["dice_worst_exam"] = min(of_exams)  # near 0: taken for another part of the body
        result["dice_per_structure"] = {n: v["dice"]["mean"] for n, v in summary["structures"].items()}
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last = [entry for entry in logged if "overlap" in entry][-5:]
        result |= {key: statistics.fmean(entry[key] for entry in last) for key in ("folds", "overlap")}
        if self.phantom:
            result |= phantom_truth(model, self.base.phantom, exams[0], baseline=False, cohort=self.drawn)
        return result

    def _trained(self, setting: Setting) -> Path:
        """The finished run folder of a setting."""
        folder = self.work / setting.name.replace(" ", "_")
        if not (folder / "config.json").exists():
            start = self._start()
            request = json.loads((start / "config.json").read_text())["request"] | {"out": str(folder)}
            assignments = [f"seed={setting.seed}", *setting.assignments()]
            config = self.base.override(assignments).validate().to_dict()
            saved = checkpoint.load(start / checkpoint.NAME)
            saved |= {"config": config, "done": [name for name in SHARED if name in saved["done"]]}
            if setting.seed != SEEDS[0]:
                saved["generator"] = torch.Generator().manual_seed(setting.seed).get_state()
            checkpoint.save(folder / checkpoint.NAME, saved)
            shutil.copyfile(start / "log.jsonl", folder / "log.jsonl")
            write_text(folder / "config.json", json.dumps({"config": config, "request": request}))
        if not (folder / "result.json").exists():
            _train("--resume", str(folder))
        return folder

    def _start(self) -> Path:
        """A run whose levels have no steps: what all others start from."""
        folder = self.work / "shared"
        # The autoencoder is trained whatever the default compares, for the runs that compare its features.
        steps = f"train.steps={[0] * len(self.base.train.steps)}"
        config = self.base.override([steps, "loss.similarity=features"])
        if (folder / "config.json").exists():
            if json.loads((folder / "config.json").read_text())["config"] != config.to_dict():
                raise DeepAtlasError(f"{folder}: holds the start of other runs; choose another --work")
            if not (folder / "result.json").exists():
                _train("--resume", str(folder))
            return folder
        # A store names no exams to test on, so a run ends with its model.
        store, crop = self.work / "store.h5", self.base.data.crop
        prepare_cohort(self._cohort("train"), store, crop=crop, progress=False).close()
        seed_exam = self.drawn.exam_id(0) if self.phantom else self.arguments.seed_exam
        chosen = ["--seed-exam", seed_exam] if seed_exam else []
        where = ["--data", str(store), "--out", str(folder), "--preset", config.preset]
        _train(*where, *chosen, *_differences(config))
        return folder

    def _cohort(self, part: str) -> Path:
        """The data directory to train on, or that of phantoms to test on."""
        if not self.phantom:
            return Path(self.arguments.data)
        config = self.base.phantom
        first, count = (0, config.train) if part == "train" else (config.train, config.test)
        write_phantoms(self.drawn, self.work / "phantom" / part, range(first, first + count), progress=False)
        return self.work / "phantom" / part

    def _read(self) -> dict:
        if not self.out.exists():
            return {}
        saved = json.loads(self.out.read_text())
        if saved["base"] != self.base.to_dict():
            raise DeepAtlasError(
                f"{self.out}: holds runs of another default; choose another --out and --work"
            )
        return saved["results"]

    def _write(self) -> None:
        saved = {
            "data": "phantom" if self.phantom else Path(self.arguments.data).name,
            "base": self.base.to_dict(),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "results": self.results,
        }
        write_text(self.out, json.dumps(saved, indent=1) + "\n")


class _Remembering(PhantomCohort):
    """Draws every phantom once: each run is measured on the same ones."""

    exam = functools.cache(PhantomCohort.exam)


COLUMNS = {
    "coordinate_error_mm": ("error, mm", 1, 2),
    "coordinate_error_p95_mm": ("95 %, mm", 1, 1),
    "dice": ("Dice", 1, 3),
    "dice_worst_exam": ("worst exam", 1, 3),
    "hd95_mm": ("HD95, mm", 1, 1),
    "folds": ("folds, %", 100, 2),
    "overlap": ("overlap, %", 100, 0),
}  # key: heading, factor, decimals


def table(results: dict) -> str:
    """Markdown: one row a setting; the spread is the distance from the smallest to the largest of the seeds."""
    columns = {key: form for key, form in COLUMNS.items() if any(key in r for r in results.values())}
    rows = [["setting", *(heading for heading, *_ in columns.values())]]
    rows.append(["---"] * len(rows[0]))
    seeds = [r for r in results.values() if not r["changes"]]
    if len(seeds) > 1:
        cells = []
        for key, (_, factor, decimals) in columns.items():
            values = [factor * r[key] for r in seeds]
            middle, spread = statistics.fmean(values), max(values) - min(values)
            cells.append(f"{middle:.{decimals}f} (spread {spread:.{decimals}f})")
        rows.append([f"{DEFAULT}, {len(seeds)} seeds", *cells])
    for name, result in results.items():
        cells = [f"{factor * result[key]:.{n}f}" for key, (_, factor, n) in columns.items()]
        rows.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _line(name: str, results: dict) -> str:
    shown = [
        f"{heading} {factor * results[name][key]:.{decimals}f}"
        for key, (heading, factor, decimals) in COLUMNS.items()
        if key in results[name]
    ]
    return f"{name}: {'; '.join(shown)}; {results[name]['cpu_seconds']:.0f} s of CPU"


def _train(*arguments: str) -> None:
    """``deepatlas train``, whose own line has said what went wrong."""
    print("train", *arguments[:2], flush=True)
    if train([*arguments, "--device", "cpu", "--quiet"]) != 0:
        raise DeepAtlasError("a run failed; repeat the command to go on from its last checkpoint")


def _differences(config: Config) -> list[str]:
    """``section.key=value`` of everything in which ``config`` differs from its preset."""
    ours, theirs = config.to_dict(), preset(config.preset).to_dict()
    found = [f"seed={config.seed}"]
    for section, values in ours.items():
        if isinstance(values, dict):
            found += [f"{section}.{k}={_json(v)}" for k, v in values.items() if v != theirs[section][k]]
    return found


def _split(changes: dict) -> list[tuple[list[str], object]]:
    return [(key.split("."), value) for key, value in changes.items()]


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run(arguments: argparse.Namespace) -> int:
    study = Study(arguments)
    known = settings(study.base)
    if unknown := set(arguments.only or ()) - {s.name for s in known}:
        raise DeepAtlasError(
            f"--only {sorted(unknown)[0]!r} is not one of {', '.join(s.name for s in known)}"
        )
    study.run([s for s in known if not arguments.only or s.name in arguments.only])
    print(table(study.results))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="phantom|DIR", help="phantoms, or a directory of exams to train on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--work", type=Path, help="run folders; default runs/ablations-<name of FILE>")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these settings, by the names of the table")
    parser.add_argument("--preset", help="default tiny for phantoms, headneck for a directory")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes of the default")
    parser.add_argument("--test", type=Path, metavar="DIR")
    for flag in ("--test-exams", "--template-exams", "--structures"):
        parser.add_argument(flag, nargs="+", help="as for deepatlas train")
    parser.add_argument("--seed-exam", metavar="ID")
    return guarded(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
