#!/usr/bin/env bash
# One of several machines that train together: `deploy/node.sh INDEX STAGE`, with torchrun's settings in the environment
# (PET_NNODES and so on, docs/parallel.md). DVC runs on machine 0, which keeps the outputs.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$1" != 0 ] || exec deploy/run.sh dvc repro "$2"
PYTHONPATH="src:.:${PYTHONPATH-}" exec python3 -m "stages.$2"
