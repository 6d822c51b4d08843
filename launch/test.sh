#!/usr/bin/env bash
# Sets up .venv and runs the tests. Arguments go to pytest: bash launch/test.sh -k checkpoint, or -m slow
# for those that CI alone runs.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
cd "$repository"
# Every core runs whole modules: what a module trains for its tests is trained once. A worker that dies
# fails the run: with another in its place it would wait for ever.
exec python -m pytest --numprocesses=auto --maxprocesses=8 --max-worker-restart=0 \
  --dist=loadscope --no-loadscope-reorder -m 'not slow' "$@"
