"""Ablations: short runs that differ from a default in one setting.

Usage: ``python -m deepatlas.experiments.ablations phantom|DIR --out FILE.json``.

The phases that no setting here changes (the autoencoder and the pretraining on crops) run once. Every run continues
from there with the same random numbers, so that runs differ only by the setting. The default also runs with other
random numbers, to show which differences are noise. A finished setting is not run again, and an interrupted one is
resumed from its folder under ``--work``.

Runs on phantoms are scored by the true coordinates, runs on a data directory by the one-shot Dice of the ``--test``
exams.
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
from deepatlas.errors import DeepAtlasError, guarded, lenient_output
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.truth import phantom_truth
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.phantoms import write_phantoms
from deepatlas.experiments.tables import summary_line, table
from deepatlas.files import write_text
from deepatlas.localize.template.build import build_template
from deepatlas.model.engine import Engine
from deepatlas.phantom.patients import PhantomCohort
from deepatlas.presets import preset
from deepatlas.train.__main__ import main as train
from deepatlas_ops.options import STEPS

DEFAULT = "default"
# Seeds of the random numbers after the shared phases.
SEEDS = (0, 1, 2)
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
    *({"loss.similarity": value} for value in ("intensity", "histogram", "features", "mae", "mse")),
    {"loss.implicit": 1.0, "loss.explicit": 0.0},
    {"loss.implicit": 0.0, "loss.explicit": 1.0},
    {"loss.implicit": 0.5, "loss.explicit": 1.0},
    *({"loss.smoothness": value} for value in (0.1, 0.25, 0.5, 1.0)),
    *({"loss.prewitt": value} for value in (0.0, 0.5, 1.0)),
    *({"loss.window": value} for value in (None, 5, 9)),
    *({"loss.step": value} for value in STEPS),
    *({"loss.gradient": value} for value in ("implicit", "unrolled")),
    *({"loss.orthonormality": value} for value in ("det", "log")),
    *({"train.head_steps": value} for value in (0, 100)),
]


@dataclass(frozen=True)
class Setting:
    """One run: the settings in which it differs from the default, and the seed of its random numbers."""

    changes: tuple[tuple[str, object], ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """The changes as on the command line. It names the run's folder and its result, and ``--only`` takes it."""
        text = " ".join(f"{key}={_json(value)}" for key, value in self.changes) or DEFAULT
        return text if self.seed == SEEDS[0] else f"{text} seed={self.seed}"

    def assignments(self) -> list[str]:
        """The changes in the form ``section.key=value``."""
        return [f"{key}={_json(value)}" for key, value in self.changes]


def settings(base: Config) -> list[Setting]:
    """The default with every seed, then all entries of :data:`GRID` that differ from the default."""
    values = base.to_dict()

    def is_default(changes: dict) -> bool:
        return all(values[section][key] == value for (section, key), value in _split(changes))

    found = [Setting(seed=seed) for seed in SEEDS]
    return found + [Setting(tuple(changes.items())) for changes in GRID if not is_default(changes)]


class Study:
    """The runs around one default: their data, their folders, and the JSON file of the finished ones.

    Raises:
        DeepAtlasError: ``--test`` is missing, or the file holds runs of another default.
    """

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
                f"{arguments.data}: runs on a data directory are scored on labelled exams; add --test DIR"
            )
        self.results = self._read()

    def run(self, chosen: list[Setting]) -> None:
        """Run the settings that have no result yet, and write the file after each of them."""
        for number, setting in enumerate(chosen, 1):
            if setting.name in self.results:
                continue
            began = time.process_time()
            result = {"changes": dict(setting.changes), "seed": setting.seed, **self._result(setting)}
            self.results[setting.name] = result | {"cpu_seconds": round(time.process_time() - began, 1)}
            self._write()
            print(f"{number}/{len(chosen)} {summary_line(setting.name, self.results)}", flush=True)

    def _result(self, setting: Setting) -> dict:
        folder = self._trained(setting)
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        model = Engine.load(folder, device="cpu")
        given, test = self.arguments, self._cohort("test") if self.phantom else self.arguments.test
        exams = given.template_exams or found["template_exams"]
        template = build_template(model, self._cohort("train"), exams, given.structures)
        summary = evaluate_cohort(
            model, template, test, folder / "evaluation", given.test_exams, pictures=False
        )
        result = {key: summary[key] for key in ("dice", "hd95_mm")}
        with (folder / "evaluation" / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["exam"], float(row["dice"])) for row in csv.DictReader(file)]
        of_exams = [statistics.fmean(d for e, d in rows if e == exam) for exam in {e for e, _ in rows}]
        # A value near 0 means that an exam was taken for another part of the body.
        result["dice_worst_exam"] = min(of_exams)
        result["dice_per_structure"] = {n: v["dice"]["mean"] for n, v in summary["structures"].items()}
        logged = [
            json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        last = [entry for entry in logged if "overlap" in entry][-5:]
        result |= {key: statistics.fmean(entry[key] for entry in last) for key in ("folds", "overlap")}
        if self.phantom:
            result |= phantom_truth(model, self.base.phantom, exams[0], baseline=False, cohort=self.drawn)
        return result

    def _trained(self, setting: Setting) -> Path:
        """The run folder of a setting; the run is trained, or resumed, if it is not finished."""
        folder = self.work / setting.name.replace(" ", "_")
        if not (folder / "config.json").exists():
            start = self._start()
            request = json.loads((start / "config.json").read_text(encoding="utf-8"))["request"] | {
                "out": str(folder)
            }
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
        """The folder of the run that all others start from: the shared phases, and levels without steps."""
        folder = self.work / "shared"
        # The autoencoder is trained even if the default does not use it, for the runs that compare features.
        steps = f"train.steps={[0] * len(self.base.train.steps)}"
        config = self.base.override([steps, "loss.similarity=features"])
        if (folder / "config.json").exists():
            saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
            if Config.from_dict(saved) != config:
                raise DeepAtlasError(f"{folder}: holds the start of other runs; choose another --work")
            if not (folder / "result.json").exists():
                _train("--resume", str(folder))
            return folder
        # A store contains no exams to test on, so this run ends with its model.
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
        saved = json.loads(self.out.read_text(encoding="utf-8"))
        if Config.from_dict(saved["base"]) != self.base:
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
    """A cohort that computes every phantom once, since all runs are scored on the same phantoms."""

    exam = functools.cache(PhantomCohort.exam)


def _train(*arguments: str) -> None:
    """Run ``deepatlas train``, which prints its own error.

    Raises:
        DeepAtlasError: the run failed.
    """
    print("train", *arguments[:2], flush=True)
    if train([*arguments, "--device", "cpu", "--quiet"]) != 0:
        raise DeepAtlasError("a run failed; repeat the command to continue from its last checkpoint")


def _differences(config: Config) -> list[str]:
    """The settings in which ``config`` differs from its preset, as ``section.key=value``."""
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
    """Run the chosen settings and print the table; returns the exit status."""
    study = Study(arguments)
    known = settings(study.base)
    if unknown := set(arguments.only or ()) - {s.name for s in known}:
        raise DeepAtlasError(
            f"--only {sorted(unknown)[0]!r} is not one of {', '.join(s.name for s in known)}"
        )
    study.run([s for s in known if not arguments.only or s.name in arguments.only])
    print(table(study.results, DEFAULT))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; errors are one line on standard error."""
    lenient_output()
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
