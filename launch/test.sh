#!/usr/bin/env bash
# Sets up .venv and runs the tests. Arguments go to pytest: bash launch/test.sh -k checkpoint
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
cd "$repository"
exec python -m pytest "$@"
