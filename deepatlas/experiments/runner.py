"""Run the parts of a plan in processes of their own, and remember what is done."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepatlas.errors import PROGRAM, DataError
from deepatlas.experiments.parts import Part, Parts
from deepatlas.files import write_error, write_text

# What runs the arguments of a part.
DEEPATLAS = (sys.executable, "-m", "deepatlas")
# Seconds between two looks at the processes.
_POLL = 0.2


@dataclass
class State:
    """What is known about the parts of a plan, in ``OUT/state``: one JSON file for each part that has run."""

    out: Path

    def done(self, part: Part) -> bool:
        """Whether a part has run to its end, and what it wrote is still there."""
        return bool(self._read(part).get("done")) and part.out.exists()

    def failure(self, part: Part) -> str | None:
        """Why a part failed when it ran last, or None."""
        return self._read(part).get("failed")

    def log(self, part: Part) -> Path:
        """The file with the output of a part."""
        return self.out / "logs" / f"{part.file_name}.log"

    def write(self, part: Part, **facts: Any) -> None:
        """Remember how a part ended."""
        about = {"part": part.name, "key": part.key, "command": command_line(part.arguments), **facts}
        write_text(self._path(part), json.dumps(about, indent=1) + "\n")

    def _path(self, part: Part) -> Path:
        return self.out / "state" / f"{part.file_name}.json"

    def _read(self, part: Part) -> dict[str, Any]:
        """What a file says; one that was damaged says nothing, and its part runs again."""
        try:
            found = json.loads(self._path(part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def command_line(arguments: Sequence[str]) -> str:
    """A command of ``deepatlas`` as a line for a shell."""
    return shlex.join(["deepatlas", *arguments])


def run_parts(
    parts: Sequence[Part], state: State, jobs: int = 1, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Run the parts that are not done, each when what it needs is done, and ``jobs`` of them at once.

    A part that fails lets the others go on, except those that need it. Ctrl-C ends the processes; what was done stays
    done, and runs continue when the plan runs again.

    Args:
        parts: the parts, each after those that it needs.
        state: where it is written what is done.
        jobs: how many processes run at once.
        say: receives a line when a part begins or ends.

    Returns:
        Why parts failed or could not run, by their names.

    Raises:
        DataError: a file of the state cannot be written.
    """
    failed: dict[str, str] = {}
    done = {p.name for p in parts if state.done(p)}
    waiting = [p for p in parts if p.name not in done]
    running: dict[str, tuple[Part, subprocess.Popen, float]] = {}
    say(f"{len(done)} of {len(parts)} parts are done")
    try:
        while waiting or running:
            for part in list(waiting):
                if broken := [need for need in part.needs if need in failed]:
                    failed[part.name] = f"needs {broken[0]}, which failed"
                    waiting.remove(part)
                elif len(running) < jobs and done.issuperset(part.needs):
                    waiting.remove(part)
                    say(f"begins: {part.name}")
                    running[part.name] = part, _start(part, state), time.monotonic()
            for name, (part, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                seconds = round(time.monotonic() - began, 1)
                if process.returncode == 0 and part.out.exists():
                    state.write(part, done=True, seconds=seconds)
                    done.add(name)
                    say(f"done: {name}, {seconds:.0f} s")
                else:
                    failed[name] = _reason(state.log(part), process.returncode)
                    state.write(part, failed=failed[name], seconds=seconds)
                    say(f"failed: {name}: {failed[name]}")
            if running:
                time.sleep(_POLL)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    return failed


def run_one(name: str, parts: Parts, state: State, say: Callable[[str], None] = print) -> bool:
    """Run a single part, for example as a job of an array; returns whether it is done.

    Raises :class:`~deepatlas.errors.DataError` if a part that it needs is not done.
    """
    part = parts.all[name]
    missing = [need for need in part.needs if not state.done(parts.all[need])]
    if missing:
        raise DataError(f"{name}: needs {missing[0]}, which is not done; run it first")
    return not run_parts([*parts.behind(part), part], state, say=say)


def _start(part: Part, state: State) -> subprocess.Popen:
    arguments = list(part.arguments)
    if part.resumable and (part.out / "config.json").exists():
        arguments = [part.arguments[0], "--resume", str(part.out), "--quiet"]
    log = state.log(part)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {command_line(arguments)}\n".encode(errors="backslashreplace"))
            file.flush()
            return subprocess.Popen(
                [*DEEPATLAS, *arguments],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
    except OSError as error:
        raise write_error(log, error) from error


def _reason(log: Path, status: int) -> str:
    """The last line of a log in which a command says why it failed, and where the log is."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    marked = [line for line in lines if line.startswith(f"{PROGRAM}: error: ")]
    last = (marked or lines or [""])[-1].removeprefix(f"{PROGRAM}: error: ")
    how = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
    return f"{last} ({how}; {log})" if not last.startswith("$ ") else f"{how}; {log}"
