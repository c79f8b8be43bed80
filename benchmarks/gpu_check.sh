#!/usr/bin/env bash
# On a machine with a GPU, from the source tree: builds the kernels, checks every op on CUDA against float64, runs
# compute-sanitizer over the float32 cases where it is installed, measures, trains on phantoms, and writes one JSON.
#
#   benchmarks/gpu_check.sh [--dry] [--parts parity,sanitizer,speed,training] [FOLDER]
#
#   --parts  only these; the build is always checked. Each part is written as soon as it has ended.
#   --dry    the same flow on the CPU with few cases, so that no mistake in it waits for a GPU. It proves nothing about
#            the CUDA kernels.
#   FOLDER   for the JSON (benchmarks/results)
#
# Needs torch with CUDA, nvcc, numpy, scipy, hypothesis, pytest and pytest-xdist; installs nothing. Exits with 1 if a
# part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
usage() { sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2; }

device=cuda
parts=parity,sanitizer,speed,training
cases=cuda
float32="cuda and float32"
benchmarks=benchmarks/
rows=cuda
settings=()
sanitizer=(compute-sanitizer --tool memcheck --error-exitcode 9)
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --dry)
      device=cpu cases="cpu and smoothness" float32="cpu and float32 and smoothness" sanitizer=(env)
      benchmarks=benchmarks/bench_jacobian.py rows="cpu and folds"
      settings=(phantom.train=3 phantom.test=1 phantom.spacing=8 network.size=16 network.fold=1 network.finest_level=0
        'network.channels=[8,16]' network.atlas_size=32 loss.size=16 coarse.steps=3 coarse.batch=2 'train.steps=[2,2]'
        train.batch=2 train.head_steps=2 refine.steps=0 --structures heart liver brain)
      ;;
    --parts) parts="${2:-}"; shift ;;
    *) usage ;;
  esac
  shift
done
(($# <= 1)) && [[ -n "$parts" && -z "$(tr ',' '\n' <<< "$parts" | grep -vxE 'parity|sanitizer|speed|training')" ]] || usage
out="${1:-benchmarks/results}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python benchmarks/gpu_report.py build "$work/build.json" "$device" || exit 1

failed=0
# Runs a command and notes its exit status and seconds for the report, which is written anew.
part() { # NAME COMMAND...
  local name=$1 start=$SECONDS status
  shift
  [[ ",$parts," == *",$name,"* ]] || return 0
  "$@"
  status=$?
  echo "{\"exit\": $status, \"seconds\": $((SECONDS - start))}" > "$work/$name.json"
  [[ $status == 0 ]] || { failed=1; echo "$name failed with exit status $status" >&2; }
  python benchmarks/gpu_report.py write "$work" "$out" || failed=1
}

part parity python -m pytest tests/ops/test_devices.py -q -k "$cases" --junitxml="$work/parity.xml"
if command -v "${sanitizer[0]}" > /dev/null; then
  part sanitizer "${sanitizer[@]}" python -m pytest tests/ops/test_devices.py -q -k "$float32"
fi
part speed python -m pytest "$benchmarks" --benchmark -q -k "$rows" --results "$work"
part training python -m deepatlas.train --device "$device" --quiet --out "$work/run" "${settings[@]}"
exit $failed
