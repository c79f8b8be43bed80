"""A plan: cohorts, experiments and evaluations in a TOML file, checked before anything runs.

The tables of a plan are the dataclasses of this module, and their keys are the fields. Relative paths are relative to
the folder in which the command is given.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from deepatlas.config import Config
from deepatlas.errors import DataError, DeepAtlasError, did_you_mean
from deepatlas.presets import preset
from deepatlas.pretrained import shipped as shipped_models
from deepatlas.settings import check, leaves

# The options by which a plan tells its commands where to read and to write.
_OWN_OPTIONS = ("--out", "--data", "--model", "--template", "--split", "--resume")


@dataclass(frozen=True)
class Cohort:
    """Exams: a data directory or dataset (``path``, or ``--data NAME=DIR``), or ``phantoms``, so many of them.

    ``first`` is the number of the first phantom, and ``seed`` that of the patients. ``structures`` ("large" or "all"),
    ``spacing`` (mm) and ``anatomy`` (the number of a population) are those of ``deepatlas phantom``.
    """

    path: str | None = None
    phantoms: int | None = None
    first: int = 0
    seed: int = 0
    structures: Literal["large", "all"] = "large"
    spacing: float | None = None
    anatomy: int = 0


@dataclass(frozen=True)
class Split:
    """The content of a split file (``splits.json``): exams by their ids."""

    train: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    labelled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Template:
    """The labelled exams of which masks in coordinate space are made; no ``exams`` means all labelled ones."""

    cohort: str
    exams: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What every experiment is scored on. ``options`` are further arguments of ``deepatlas evaluate``."""

    cohort: str
    exams: tuple[str, ...] = ()
    template: Template | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One run. ``settings`` come after those of the plan, and ``options`` are further arguments of the command.

    ``model`` is another experiment of the plan, or a model: what ``finetune`` continues, and where ``train`` takes its
    first weights. ``template = false`` evaluates without one, which is the default for ``finetune``. ``template_exams``
    take the place of those of the evaluation; an empty list means all labelled ones, of the ``split`` if there is one.
    """

    cohorts: tuple[str, ...]
    command: Literal["train", "finetune"] = "train"
    preset: str | None = None
    settings: tuple[str, ...] = ()
    model: str | None = None
    from_scratch: bool = False
    split: str | None = None
    template: bool | None = None
    template_exams: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything. ``show`` are the structures of the summary table, ``baseline`` an experiment (the first)."""

    experiments: dict[str, Experiment]
    evaluations: dict[str, Evaluation]
    cohorts: dict[str, Cohort]
    splits: dict[str, Split] = field(default_factory=dict)
    title: str = ""
    baseline: str | None = None
    show: tuple[str, ...] = ()
    preset: str | None = None
    settings: tuple[str, ...] = ()


def shipped() -> list[str]:
    """The names of the plans that come with the package."""
    folder = resources.files("deepatlas.experiments").joinpath("plans")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def read_plan(name: str, data: Mapping[str, str] | None = None) -> Plan:
    """Read a plan.

    Args:
        name: a TOML file, or the name of a shipped plan.
        data: the paths of cohorts by their names, which take the place of those in the plan.

    Raises:
        DataError: the file cannot be read or is not TOML, a key is unknown, a value has another type, a name is that of
            nothing in the plan, or a cohort has no exams.
    """
    if name in shipped():
        where, text = (
            name,
            resources.files("deepatlas.experiments").joinpath("plans", f"{name}.toml").read_text("utf-8"),
        )
    else:
        where = name
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(
                f"{name}: cannot be read ({error.strerror}); give a TOML file, or one of {', '.join(shipped())}"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not UTF-8 text ({error.reason})") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: not TOML: {error}") from error
    plan = _table(Plan, content, where, "")
    cohorts = dict(plan.cohorts)
    for cohort, path in (data or {}).items():
        _known(cohort, cohorts, f"--data {cohort}", "cohort")
        cohorts[cohort] = Cohort(path=path)
    plan = dataclasses.replace(plan, cohorts=cohorts)
    _check(plan, where)
    return plan


def settings_of(plan: Plan, experiment: Experiment) -> list[str]:
    """The settings of the plan and of the experiment; a later one takes the place of an earlier one of its key."""
    found = {text.partition("=")[0]: text for text in (*plan.settings, *experiment.settings)}
    return list(found.values())


def check_settings(plan: Plan, where: str) -> None:
    """Refuse settings that a run would refuse, before the first one runs. ``where`` is the file of the plan.

    Raises :class:`~deepatlas.errors.DataError` with the experiment, the setting, and the nearest known one.
    """
    known = [key for key, *_ in leaves(Config())]
    for name, experiment in plan.experiments.items():
        settings, at = settings_of(plan, experiment), f"{where}: experiments.{name}"
        for text in settings:
            key = text.partition("=")[0]
            if key not in known:
                raise DataError(f"{at}: unknown setting {key}; {did_you_mean(key, known)}")
        base = _base(plan, experiment)
        if base is None:
            continue
        try:
            chosen = preset(base.preset or plan.preset or "paper").override(settings_of(plan, base))
            chosen = chosen.override(settings)
            if base.preset or plan.preset:
                chosen.validate()
        except DeepAtlasError as error:
            raise DataError(f"{at}: {error}") from error


def _base(plan: Plan, experiment: Experiment) -> Experiment | None:
    """The experiment of the plan whose preset and settings another one starts from; None where it is none of it."""
    if experiment.command == "train":
        return experiment
    return plan.experiments.get(experiment.model or "")


def _check(plan: Plan, where: str) -> None:
    """Refuse names of nothing, and parts that cannot be run."""
    for key in ("experiments", "evaluations"):
        if not getattr(plan, key):
            raise DataError(f"{where}: {key} has no entry; add [{key}.NAME]")
    for key in ("cohorts", "experiments", "evaluations", "splits"):
        folders: dict[str, str] = {}
        for name in getattr(plan, key):
            if not name.strip():
                raise DataError(f'{where}: {key}."{name}" has an empty name; give it one')
            # A file system may not tell large letters from small ones.
            other = folders.setdefault(slug(name).casefold(), name)
            if other != name:
                raise DataError(
                    f"{where}: {key}.{name} and {key}.{other} would have one folder; give one of them another name"
                )
    for name, cohort in plan.cohorts.items():
        if (cohort.path is None) == (cohort.phantoms is None):
            raise DataError(
                f"{where}: cohorts.{name} needs either path or phantoms; give the path here, or with --data {name}=DIR"
            )
        if cohort.phantoms is not None and (cohort.phantoms < 1 or cohort.first < 0):
            raise DataError(f"{where}: cohorts.{name}: phantoms must be 1 or more, and first 0 or more")
        _check_phantoms(cohort, f"{where}: cohorts.{name}")
    if plan.baseline is not None:
        _known(plan.baseline, plan.experiments, f"{where}: baseline", "experiment")
    for name, evaluation in plan.evaluations.items():
        at = f"{where}: evaluations.{name}"
        _known(evaluation.cohort, plan.cohorts, f"{at}.cohort", "cohort")
        _check_options(evaluation.options, f"{at}.options")
        if evaluation.template:
            _known(evaluation.template.cohort, plan.cohorts, f"{at}.template.cohort", "cohort")
            _check_options(evaluation.template.options, f"{at}.template.options")
    for name, experiment in plan.experiments.items():
        at = f"{where}: experiments.{name}"
        if not experiment.cohorts:
            raise DataError(f"{at}.cohorts is empty; name the cohorts that it learns from")
        for learnt in experiment.cohorts:
            _known(learnt, plan.cohorts, f"{at}.cohorts", "cohort")
        if len(set(experiment.cohorts)) < len(experiment.cohorts):
            raise DataError(f"{at}.cohorts names a cohort twice; name each once")
        _check_options(experiment.options, f"{at}.options")
        if experiment.split is not None:
            _known(experiment.split, plan.splits, f"{at}.split", "split")
        if experiment.command == "train" and experiment.from_scratch:
            raise DataError(f"{at}.from_scratch is of finetune alone; every train starts from scratch")
        if experiment.command == "finetune" and experiment.model is None:
            raise DataError(f"{at} has no model; finetune continues an experiment of the plan, or a model")
        if experiment.command == "finetune" and experiment.preset is not None:
            raise DataError(f"{at}.preset is of train alone; finetune has the settings of its model")
        if experiment.model not in (None, *plan.experiments, *shipped_models()):
            if not Path(experiment.model or "").exists():
                known = [*plan.experiments, *shipped_models()]
                raise DataError(
                    f"{at}.model: no experiment, shipped model or file {experiment.model!r}; "
                    f"{did_you_mean(experiment.model or '', known)}"
                )
        for other, evaluation in plan.evaluations.items():
            if needs_template(experiment) and evaluation.template is None:
                raise DataError(
                    f"{at} is scored with a template, and evaluations.{other} has none; add template"
                )
        _refuse_circle(plan, name, at)


def slug(name: str) -> str:
    """A name as a name of files: what is not plain becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._=+]+", "-", name).strip("-.") or "part"


def _check_phantoms(cohort: Cohort, at: str) -> None:
    """Hold the settings of phantoms against the rules of those of a run."""
    settings = dataclasses.replace(
        Config().phantom,
        **{key: getattr(cohort, key) for key in ("seed", "structures", "spacing", "anatomy")},
    )
    try:
        check(settings)
    except DeepAtlasError as error:
        raise DataError(f"{at}: {error}") from error


def needs_template(experiment: Experiment) -> bool:
    """Whether an experiment is evaluated with masks in coordinate space."""
    return experiment.command == "train" if experiment.template is None else experiment.template


def _refuse_circle(plan: Plan, name: str, at: str) -> None:
    seen: list[str] = []
    next_one: str | None = name
    while next_one in plan.experiments:
        if next_one in seen:
            raise DataError(f"{at}.model leads back to itself: {' from '.join([*seen, next_one])}")
        seen.append(next_one)
        next_one = plan.experiments[next_one].model


def _check_options(options: Iterable[str], at: str) -> None:
    """Refuse what the plan itself gives to its commands."""
    for text in options:
        if text.partition("=")[0] in _OWN_OPTIONS:
            raise DataError(f"{at}: {text} is given by the plan itself; leave it out")


def _known(name: str, names: Iterable[str], at: str, what: str) -> None:
    if name not in (found := list(names)):
        raise DataError(f"{at}: no {what} {name!r}; {did_you_mean(name, found)}")


def _table(kind: type, content: Any, where: str, path: str) -> Any:
    """A dataclass from a table of a plan."""
    if not isinstance(content, dict):
        raise DataError(f"{where}: {path} must be a table, got {content!r}")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise DataError(f"{where}: unknown key {_join(path, key)}; {did_you_mean(key, list(hints))}")
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for key in required:
        if key not in content:
            raise DataError(f"{where}: {path or 'the plan'} has no {key}, which it needs")
    return kind(**{key: _value(hints[key], v, where, _join(path, key)) for key, v in content.items()})


def _value(kind: Any, value: Any, where: str, path: str) -> Any:
    """A value of the type that a field declares."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (part for part in parts if part is not types.NoneType)
        return _value(kind, value, where, path)
    if kind is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(kind):
        return _table(typing.cast(type, kind), value, where, path)
    if origin is dict and isinstance(value, dict):
        return {key: _value(parts[1], v, where, _join(path, key)) for key, v in value.items()}
    if origin is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if origin is Literal:
        if value in parts:
            return value
        raise DataError(f"{where}: {path} must be {' or '.join(parts)}, got {value!r}")
    if isinstance(kind, type) and type(value) is kind:
        return value
    words = {
        dict: "a table",
        tuple: "a list of texts",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    raise DataError(f"{where}: {path} must be {words[origin or kind]}, got {value!r}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
