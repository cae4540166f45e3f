#!/usr/bin/env bash
# Measure everything that docs/BENCHMARKS.md and README.md show above "Results", and write it there: about 18 minutes on
# 2 cores. Do not use the machine meanwhile.
# Usage: benchmarks/publish.sh throughput scale pretended cache peers=FOLDER   (any of them; install_peers.sh: FOLDER)
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
for step; do
    case $step in
    throughput) "$python" benchmarks/throughput.py --seconds 4 --write ;;
    scale) "$python" benchmarks/scale.py --seconds 3 --write --json scale.json ;;
    pretended) "$python" benchmarks/scale.py --tiny --pretend-cores 8 --seconds 3 --write --json pretended.json ;;
    cache) "$python" benchmarks/result_cache.py --write ;;
    peers=*) "$python" benchmarks/known_peers.py "${step#peers=}" --seconds 2 --write ;;
    *) echo "$step: not known" >&2 && exit 2 ;;
    esac
done
