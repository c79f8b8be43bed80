#!/usr/bin/env bash
# On a machine with a GPU, from the source tree: builds the kernels, checks every op on CUDA against float64, runs
# compute-sanitizer over the float32 cases where it is installed, measures, and writes one JSON to benchmarks/results/
# (or to the folder given). Needs torch with CUDA, nvcc, numpy, scipy, hypothesis and pytest; installs nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out="${1:-benchmarks/results}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python -c "
import json, sys, torch, deepatlas_ops as ops
with ops.use_backend('native'):
    ops.resize(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2))
info = ops.build_info()
json.dump(info, open('$work/build.json', 'w'), default=str)
sys.exit(0 if info['cuda'] else f\"no CUDA kernels: {info['cuda_reason']}\")" || exit 1

python -m pytest tests/ops/test_devices.py -q -k cuda --junitxml="$work/parity.xml"
parity=$?
sanitizer="not installed"
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --tool memcheck --error-exitcode 9 \
    python -m pytest tests/ops/test_devices.py -q -k "cuda and float32"
  sanitizer=$?
fi
python -m pytest benchmarks/ --benchmark -q -k cuda --results "$work"
measured=$?

python - "$work" "$out" "$parity" "$sanitizer" <<'PYTHON'
import json, pathlib, sys
from xml.etree import ElementTree

work, out, parity, sanitizer = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:]
report = json.loads(next(work.glob("2*.json")).read_text()) if list(work.glob("2*.json")) else {"rows": []}
suite = ElementTree.parse(work / "parity.xml").getroot().find("testsuite")
report["build"] = json.loads((work / "build.json").read_text())
report["parity"] = {"exit": int(parity)} | {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
report["compute_sanitizer"] = sanitizer if sanitizer == "not installed" else {"exit": int(sanitizer)}
out.mkdir(parents=True, exist_ok=True)
target = out / f"{report.get('date', 'undated')[:10]}-gpu-check.json"
target.write_text(json.dumps(report, indent=1) + "\n")
print(f"written to {target}")
PYTHON
[ "$parity" = 0 ] && [ "$measured" = 0 ] && { [ "$sanitizer" = 0 ] || [ "$sanitizer" = "not installed" ]; }
