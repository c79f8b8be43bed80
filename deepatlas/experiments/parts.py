"""The parts of a plan: commands, what each of them needs, and where it writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepatlas.experiments.plan import (
    Cohort,
    Evaluation,
    Plan,
    Template,
    needs_template,
    settings_of,
    slug,
)
from deepatlas.files import write_text

SPLIT_FILE = "splits.json"


@dataclass(frozen=True)
class Part:
    """A command of a plan.

    ``arguments`` are those of ``deepatlas``, and ``out`` is what the command writes. The ``key`` depends on everything
    that the part and those that it needs are made of, and is in the name of ``out``: a part that was changed is another
    part, beside the old one.
    """

    name: str
    key: str
    arguments: tuple[str, ...]
    out: Path
    needs: tuple[str, ...] = ()
    # A run that was stopped continues.
    resumable: bool = False

    @property
    def file_name(self) -> str:
        """The name of the files of its state and its output."""
        return f"{slug(self.name)}-{self.key}"


@dataclass(frozen=True)
class Parts:
    """All parts of a plan by their names, each after those that it needs.

    ``evaluated`` are, for each experiment, the parts that evaluate it.
    """

    all: dict[str, Part]
    evaluated: dict[str, list[str]]

    def stages(self) -> list[list[Part]]:
        """The parts in stages: those of a stage need only parts of earlier ones, and may run at once."""
        depth: dict[str, int] = {}
        for name, part in self.all.items():
            depth[name] = 1 + max((depth[need] for need in part.needs), default=-1)
        return [
            [part for name, part in self.all.items() if depth[name] == level]
            for level in range(max(depth.values()) + 1)
        ]

    def behind(self, part: Part) -> list[Part]:
        """The parts that a part needs, and those that these need."""
        found: dict[str, Part] = {}
        for name in part.needs:
            found |= {p.name: p for p in self.behind(self.all[name])} | {name: self.all[name]}
        return list(found.values())


def parts_of(plan: Plan, out: Path) -> Parts:
    """The parts of a plan that writes into ``out``."""
    builder = _Builder(plan, out)
    for name in plan.experiments:
        builder.run(name)
    evaluated = {
        name: [builder.evaluation(name, evaluation) for evaluation in plan.evaluations]
        for name in plan.experiments
    }
    return Parts(builder.parts, evaluated)


def write_splits(plan: Plan, out: Path) -> None:
    """Write the split files of a plan."""
    for path, content in _splits(plan, out).values():
        if not path.exists():
            write_text(path, content)


class _Builder:
    def __init__(self, plan: Plan, out: Path):
        self.plan, self.out = plan, out
        self.parts: dict[str, Part] = {}
        self.splits = _splits(plan, out)

    def run(self, name: str) -> Part:
        """The part that trains or fine-tunes an experiment."""
        experiment = self.plan.experiments[name]
        done = self.parts.get(title := f"{experiment.command} {name}")
        if done:
            return done
        needs: list[str] = []
        arguments: list[str] = [experiment.command]
        for cohort in experiment.cohorts:
            path, part = self.cohort(cohort)
            arguments += ["--data", path]
            needs += part
        if experiment.split is not None:
            arguments += ["--split", str(self.splits[experiment.split][0])]
        if experiment.model is not None:
            path, part = self._model(experiment.model)
            arguments += ["--model" if experiment.command == "finetune" else "--init", path]
            needs += part
        arguments += ["--from-scratch"] if experiment.from_scratch else []
        if (preset := experiment.preset or self.plan.preset) and experiment.command == "train":
            arguments += ["--preset", preset]
        arguments += [*experiment.options, "--quiet", *settings_of(self.plan, experiment)]
        return self._add(title, arguments, "runs", name, needs, resumable=True)

    def evaluation(self, name: str, evaluation: str) -> str:
        """The part that evaluates an experiment; returns its name."""
        run, what = self.run(name), self.plan.evaluations[evaluation]
        path, needs = self.cohort(what.cohort)
        arguments = ["evaluate", "--model", str(run.out)]
        needs = [run.name, *needs]
        if needs_template(self.plan.experiments[name]) and what.template:
            template = self._template(name, evaluation, what.template, run)
            arguments += ["--template", str(template.out)]
            needs.append(template.name)
        arguments += ["--data", path, *_exams(what), *what.options, "--quiet"]
        return self._add(
            f"evaluate {name} on {evaluation}", arguments, "evaluations", f"{name} {evaluation}", needs
        ).name

    def cohort(self, name: str) -> tuple[str, list[str]]:
        """The path of a cohort, and the part that makes it, if it is made."""
        cohort = self.plan.cohorts[name]
        if cohort.path is not None:
            return cohort.path, []
        part = self.parts.get(title := f"phantom {name}") or self._phantoms(title, name, cohort)
        return str(part.out), [part.name]

    def _phantoms(self, title: str, name: str, cohort: Cohort) -> Part:
        arguments = ["phantom", "--exams", str(cohort.phantoms), "--seed", str(cohort.seed)]
        arguments += ["--first", str(cohort.first)]
        if cohort.structures != "large":
            arguments += ["--structures", cohort.structures]
        if cohort.spacing is not None:
            arguments += ["--spacing", f"{cohort.spacing:g}"]
        if cohort.anatomy:
            arguments += ["--anatomy", str(cohort.anatomy)]
        arguments.append("--quiet")
        return self._add(title, arguments, "cohorts", name, [], positional=True)

    def _template(self, name: str, evaluation: str, template: Template, run: Part) -> Part:
        experiment = self.plan.experiments[name]
        path, needs = self.cohort(template.cohort)
        if experiment.template_exams is not None:
            template = dataclasses.replace(template, exams=experiment.template_exams)
        arguments = ["template", "--model", str(run.out), "--data", path, *_exams(template)]
        if experiment.split is not None and template.cohort in experiment.cohorts and not template.exams:
            arguments += ["--split", str(self.splits[experiment.split][0])]
        arguments += [*template.options, "--quiet"]
        title = f"template {name} for {evaluation}"
        return self._add(
            title, arguments, "templates", f"{name} {evaluation}", [run.name, *needs], suffix=".h5"
        )

    def _model(self, model: str) -> tuple[str, list[str]]:
        if model not in self.plan.experiments:
            return model, []
        run = self.run(model)
        return str(run.out), [run.name]

    def _add(
        self,
        title: str,
        arguments: Sequence[str],
        folder: str,
        name: str,
        needs: Sequence[str],
        *,
        suffix: str = "",
        positional: bool = False,
        resumable: bool = False,
    ) -> Part:
        needs = tuple(dict.fromkeys(needs))
        # Where a part lies is no part of it: a folder of runs may be moved as a whole.
        inside = [self._inside(text) for text in arguments]
        content = json.dumps([inside, [self.parts[need].key for need in needs]])
        key = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:8]
        # The name of a cohort's folder is what a comparison calls the cohort.
        end = Path(key) / slug(name) if folder == "cohorts" else Path(f"{slug(name)}-{key}{suffix}")
        out = self.out / folder / end
        full = [arguments[0], str(out), *arguments[1:]] if positional else None
        part = Part(
            title,
            key,
            tuple(full or [arguments[0], "--out", str(out), *arguments[1:]]),
            out,
            needs,
            resumable,
        )
        self.parts[title] = part
        return part

    def _inside(self, text: str) -> str:
        """An argument of a part; of a path in the folder of the plan, what follows that folder.

        The name of the folder may be a part of any other argument. Where a plan runs in its own folder, that is ".",
        with which no path begins.
        """
        if text.startswith(f"{self.out}{os.sep}"):
            return text.removeprefix(str(self.out))
        made = [*(part.out for part in self.parts.values()), *(path for path, _ in self.splits.values())]
        return os.sep + text if Path(text) in made else text


def _exams(of: Evaluation | Template) -> list[str]:
    return ["--exams", *of.exams] if of.exams else []


def _splits(plan: Plan, out: Path) -> dict[str, tuple[Path, str]]:
    """The path and the content of the split files of a plan. Another content is another file."""
    found = {}
    for name, split in plan.splits.items():
        content = (
            json.dumps({k: v for k, v in dataclasses.asdict(split).items() if v is not None}, indent=1) + "\n"
        )
        key = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:8]
        found[name] = out / "splits" / f"{slug(name)}-{key}" / SPLIT_FILE, content
    return found
