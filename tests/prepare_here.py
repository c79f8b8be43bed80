"""``deepatlas prepare`` in this process: starting others takes longer than the work of most tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from deepatlas.intake.dataset import quality
from deepatlas.intake.run import pipeline
from deepatlas.intake.run.options import Options, Summary


class Here:
    """Does in this process what the engines of ``deepatlas.engines`` do in others."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, jobs):
        return ((job, function(job)) for job in jobs)


@contextmanager
def in_this_process(histograms: bool = False) -> Iterator[None]:
    """Every engine that is opened in the block does its work here.

    The histograms of the report take half the time of a run of few exams, so most tests leave them out.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(pipeline, "open_engine", lambda *_, **__: Here()))
        if not histograms:
            stack.enter_context(mock.patch.object(quality, "_histograms", lambda exams: b""))
        yield


def fix_salt(dst: Path) -> None:
    """Give a dataset that does not exist yet a salt, so that its ids, and its shards, are always the same."""
    private = dst.with_name(f"{dst.name}.private")
    private.mkdir(mode=0o700, parents=True)
    (private / "salt").write_text("01" * 32)


def prepare_here(src: Path, dst: Path, *, histograms: bool = False, **options) -> Summary:
    """:func:`~deepatlas.intake.run.pipeline.prepare` without other processes and without progress."""
    with in_this_process(histograms):
        return pipeline.prepare(src, dst, Options(progress=False, **{"workers": 1, **options}))


def main(arguments: Sequence[str]) -> int:
    """``deepatlas``, for forked.Forked."""
    from deepatlas.cli.main import main as command

    with in_this_process(histograms=True):
        return command(list(arguments))
