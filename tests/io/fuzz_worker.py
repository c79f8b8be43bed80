"""A process that runs cases of the fuzz test, so that a crash or hang of a C library is the failure of that case alone.

``python tests/io/fuzz_worker.py nii 17`` repeats one case and prints its result.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# Limit of the address space in bytes. A header that asks for more must be refused.
_MEMORY = 6 << 30


class Bench:
    """The undamaged files of each format, and the arrays and warnings that are read from them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, tuple[dict[str, bytes], Any, list[str]]] = {}

    def undamaged(self, name: str) -> tuple[dict[str, bytes], Any, list[str]]:
        from fuzz_formats import FORMATS

        if name not in self.known:
            folder = self.root / name / "undamaged"
            folder.mkdir(parents=True)
            FORMATS[name].make(folder)
            files = {
                p.relative_to(folder).as_posix(): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
            self.known[name] = (files, *FORMATS[name].read(folder))
        return self.known[name]

    def case(self, name: str, number: int, product_done=lambda: None) -> dict[str, str]:
        from fuzz_damage import damage, judge
        from fuzz_formats import FORMATS

        files, original, usual = self.undamaged(name)
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        damaged, what = damage(FORMATS[name], files, rng)
        folder = self.root / name / "case"
        shutil.rmtree(folder, ignore_errors=True)
        for file, data in damaged.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        outcome, complaint = judge(FORMATS[name], folder, what, original, usual, product_done)
        return {"what": what, "outcome": outcome, "complaint": complaint}


def serve() -> None:
    """Answer each line ``[format, case]`` with a line of JSON. Output that C libraries print is a complaint."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    noise = tempfile.TemporaryFile()
    os.dup2(noise.fileno(), 1)
    os.dup2(noise.fileno(), 2)

    def output() -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        noise.seek(0)
        text = noise.read().decode(errors="replace")
        noise.seek(0)
        noise.truncate()
        return text

    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        for line in sys.stdin:
            name, number = json.loads(line)
            printed: list[str] = []
            bench.undamaged(name)
            output()
            result = bench.case(name, number, lambda printed=printed: printed.append(output()))
            output()
            if printed and printed[0].strip() and not result["complaint"]:
                result["complaint"] = f"printed: {printed[0].strip()[:300]}"
            print(json.dumps(result), file=answers, flush=True)


class Worker:
    """A process that runs :func:`serve`. It is started again after a crash or hang."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, name: str, number: int, timeout: float = 120) -> dict[str, str]:
        """The result of a case. A process that dies, or does not answer in ``timeout`` seconds, is a complaint."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            )
            # The imports of the new process take time.
            timeout += 300
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, number]) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            ready = selector.select(timeout)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.process.kill()
        status = self.process.wait()
        self.process = None
        return {
            "what": "",
            "outcome": "dead",
            "complaint": f"died with status {status}" if ready else "hangs",
        }

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as place:
            print(Bench(Path(place)).case(sys.argv[1], int(sys.argv[2])))
    else:
        serve()
