#!/usr/bin/env bash
# Measure sae-agent on one GPU in less than 9 minutes, and write one table: see docs/gpu.md.
#
#     benchmarks/gpu.sh [TABLE.md]     the table, by default gpu.md in $OUT or here, and the parts' logs beside it
#     benchmarks/gpu.sh --rehearse     the same code at small sizes, on the CPU too
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
