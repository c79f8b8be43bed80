"""One pass over a cohort: exams that are new are described, changed ones again, and those that left are dropped."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.engines import Died, default_workers, open_engine
from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.joined import find_cohort
from deepatlas.files import atomic_path
from deepatlas.index import work
from deepatlas.index.columns import check_structures
from deepatlas.index.facts import described
from deepatlas.index.file import About, Entry, IndexFile, locked
from deepatlas.index.work import IndexJob, Tools, content_key, describe
from deepatlas.localize.template.file import Template
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine

# Seconds that an exam may take before it is given up.
_TIMEOUT = 900.0


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made.

    Attributes:
        trust: also the trust of every structure.
        strict: stop at the first exam that cannot be used.
        jobs: processes; None takes one a core.
        shard: ``(i, n)``: only every n-th exam, so that n machines can share the work; no exam is dropped.
        engine: ``"processes"``, ``"dask"``, or ``"here"`` for this process.
        address: the scheduler of the dask cluster.
    """

    trust: bool = False
    strict: bool = False
    jobs: int | None = None
    shard: tuple[int, int] | None = None
    engine: str = "processes"
    address: str | None = None


@dataclass
class Pass:
    """What a pass did: numbers of exams, and why some could not be used."""

    exams: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def build_index(
    out: Path,
    data: list[Path],
    model: Engine,
    template: Template,
    tools: Tools,
    options: IndexOptions,
    progress: Callable[[str], None] | None = None,
) -> Pass:
    """Bring the index ``out`` up to date with data directories or datasets.

    Args:
        out: the file; it is made, or continued if it is of the same model, template and settings.
        data: the data directories.
        model: the model, for its facts; every process loads its own by ``tools``.
        template: the template, with the structures that the index shall have.
        tools: what a process loads.
        options: how the work is done.
        progress: receives a line per exam.

    Raises:
        DataError: the index is of another model, template or data, cannot be written, or another program writes it; the
            data cannot be used; or with ``strict`` an exam cannot be used.

    Warns:
        DataWarning: the data have label images whose structures nobody names.
    """
    check_structures(described(template))
    # Whether an exam has labels is all that the index holds of them.
    cohort = find_cohort(data, drawn=False)
    unnamed = next((exam.seg for exam in cohort.exams if exam.seg and exam.seg.is_file()), None)
    if unnamed and not cohort.labels_path:
        warnings.warn(
            f"{unnamed}: no labels.json names its structures; the index needs none, but training and evaluation do",
            DataWarning,
            stacklevel=2,
        )
    if options.strict and cohort.skipped:
        raise DataError(next(iter(cohort.skipped.values())))
    about = About(
        model.fingerprint, tools.digest, described(template), tools.refine, options.trust,
        tools.model, tools.template, tuple(str(root.absolute()) for root in data),
        tuple(answering(model.regions, model.depth)),
    )  # fmt: skip
    result = Pass(skipped=dict(cohort.skipped))
    # The lock first, so that no other program makes the file meanwhile.
    with locked(out), IndexFile.create(out, about) as index:
        known = index.keys()
        jobs, ids = [], set()
        for exam in cohort.exams:
            ids.add(exam.id)
            job = _job(exam, tools, result)
            if job is None or not _mine(exam.id, options.shard):
                continue
            if known.get(exam.id) != (str(job.path), job.key):
                jobs.append(job)
        if options.shard is None:
            # An exam whose folder is there but cannot be used has not left.
            gone = sorted(known.keys() - ids - cohort.skipped.keys())
            if gone and len(gone) == len(known):
                raise DataError(
                    f"{out}: none of its {len(known)} exams is in these data, so that all would be dropped; give the "
                    "data of the index, or another --out"
                )
            index.drop(gone)
            result.removed = len(gone)
        before = set(known)
        try:
            for count, found in enumerate(_described(jobs, options), 1):
                name = found.id
                if isinstance(found, Entry):
                    # At once, so that nothing that was described is lost even if this process is killed. It takes some
                    # 20 ms of the half second that an exam needs.
                    index.put([found])
                    result.changed += name in before
                    result.added += name not in before
                else:
                    if options.strict:
                        raise DataError(f"{name}: {found.reason}")
                    result.refused[name] = found.reason
                if progress is not None:
                    progress(f"index {count}/{len(jobs)} {name}")
        finally:
            # Also after Ctrl-C. What is known of them stays, and does not pass as current.
            index.outdate(sorted(known.keys() & (result.refused.keys() | cohort.skipped.keys())))
        result.exams = len(index)
    return result


def merge_indexes(
    out: Path,
    shards: list[Path],
    model: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Join the indexes of shards into ``out``, and return the number of exams that it holds.

    All of them are looked at before anything is written, and ``out`` is left as it was after an error.

    Args:
        out: the index; one that is there is added to.
        shards: the indexes.
        model: the fingerprint of the model that they must be of; None takes that of the first.
        progress: receives a line per shard.

    Raises:
        DataError: they, or ``out``, were made with different models, templates or settings.
    """
    with locked(out):
        about = _common(shards, model)
        if out.exists():
            # Whether it can be added to.
            IndexFile.create(out, about).close()
        with atomic_path(out) as temporary:
            if out.exists():
                shutil.copyfile(out, temporary)
            with IndexFile.create(temporary, about) as index:
                for path in shards:
                    with IndexFile(path) as shard:
                        entries = list(shard.entries())
                    index.put(entries)
                    if progress is not None:
                        progress(f"merge {path}: {len(entries)} exams")
                return len(index)


def _common(shards: list[Path], model: str | None) -> About:
    """What all shards were made with."""
    about = None
    for path in shards:
        with IndexFile(path) as shard:
            if model is not None and shard.about.model != model:
                raise DataError(
                    f"{path}: of another model, {shard.about.model}; give that one, or leave --model out"
                )
            about = about or shard.about
            if shard.about != about:
                raise DataError(
                    f"{path}: not of the same model, template and settings as {shards[0]}; merge those that are, or "
                    "make it again"
                )
    assert about is not None
    return about


def _job(exam: ExamFiles, tools: Tools, result: Pass) -> IndexJob | None:
    try:
        key = content_key(exam.ct)
    except OSError as error:
        result.refused[exam.id] = f"{exam.ct}: vanished while the cohort was listed ({error.strerror})"
        return None
    labelled = exam.seg is not None
    return IndexJob(
        exam.id, exam.ct.absolute(), exam.kind, labelled, f"{key}{'+' if labelled else ''}", tools
    )


def _mine(exam: str, shard: tuple[int, int] | None) -> bool:
    if shard is None:
        return True
    return int(hashlib.sha256(exam.encode(errors="surrogateescape")).hexdigest(), 16) % shard[1] == shard[0]


def _described(jobs: list[IndexJob], options: IndexOptions) -> Iterator[Entry | work.Refused]:
    if not jobs:
        return
    if options.engine == "here":
        yield from map(describe, jobs)
        return
    workers = min(options.jobs or default_workers(), len(jobs))
    with open_engine(
        options.engine, workers=workers, address=options.address, timeout=_TIMEOUT, preload=work.__name__
    ) as engine:
        for job, found in engine.run(describe, iter(jobs)):
            if isinstance(found, Died):
                yield work.Refused(job.id, f"{job.path}: {found.reason} while it was read")
            else:
                yield found
