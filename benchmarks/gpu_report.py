"""The steps of gpu_check.sh in Python: is the library what the check needs, and the JSON of what was found."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from xml.etree import ElementTree


def build(target: Path, device: str) -> str | None:
    """Build the library and keep its facts; what is missing in it, or None."""
    import torch

    import deepatlas_ops as ops

    with ops.use_backend("native"):
        ops.resize(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2))
    info = ops.build_info() | {"torch": torch.__version__, "python": sys.version.split()[0]}
    if device == "cuda" and torch.cuda.is_available():
        info["device"] = torch.cuda.get_device_name()
    target.write_text(json.dumps(info, default=str))
    if device == "cuda" and not (info["cuda"] and torch.cuda.is_available()):
        return f"no CUDA: {info['cuda_reason'] or 'PyTorch sees no GPU'}"
    return None


def write(work: Path, folder: Path) -> Path:
    """Put together what the parts left in ``work`` so far, in one JSON in ``folder``."""
    info = json.loads((work / "build.json").read_text())
    found = sorted(work.glob("20*.json"))  # of the benchmarks
    report = json.loads(found[-1].read_text()) if found else {"date": datetime.datetime.now().isoformat()}
    report["build"] = info
    report["parts"] = {
        name: json.loads((work / f"{name}.json").read_text())
        for name in ("parity", "sanitizer", "speed", "training")
        if (work / f"{name}.json").exists()
    }
    if (work / "parity.xml").exists():
        suite = ElementTree.parse(work / "parity.xml").getroot().find("testsuite")
        counts = ("tests", "failures", "errors", "skipped")
        report["parts"]["parity"] |= {k: int(suite.get(k, 0)) for k in counts} if suite is not None else {}
    if (work / "run" / "result.json").exists():
        report["parts"]["training"]["result"] = json.loads((work / "run" / "result.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{report['date'][:10]}-{'gpu' if 'device' in info else 'dry'}-check.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    return partial.replace(target)


if __name__ == "__main__":
    task, first, second = sys.argv[1:]
    if task == "build":
        sys.exit(build(Path(first), second))
    print(f"written to {write(Path(first), Path(second))}")
