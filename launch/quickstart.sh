#!/usr/bin/env bash
# From nothing to a verified packed net: sets up .venv, trains a small 1-bit net on scikit-learn's digits
# (no download), packs it, and proves that the packed integers equal the training graph's.
#
#   bash launch/quickstart.sh [WORKDIR]       WORKDIR is runs/quickstart unless given
set -euo pipefail
workdir=$(realpath -m "${1:-$(dirname "$0")/../runs/quickstart}")
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
for mode in train export verify; do
  python -m ftbnn_jax.main --config="$repository/configs/quickstart.py" --workdir="$workdir" \
    --mode=$mode --num_images=0
done
cat <<END

To see it in a browser (needs clang and lld), as docs/how_to/browser.md says:
  ftbnn export --config=quickstart --workdir=$(printf %q "$workdir") --format=web
END
