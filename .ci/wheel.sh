#!/usr/bin/env bash
# Builds an sdist, and a wheel out of it, and tries the wheel in an empty environment from a directory
# where nothing of the repository lies: without extras, then with `train`.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
# shellcheck source=.ci/python.sh
source .ci/python.sh
# Another Python than the tests': 3.12, where there is one.
python=$(python_of 12) || python=$(command -v python3)

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory="$place" --
cd "$place"
"$python" -m venv environment
export PATH=$place/environment/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH
install() { python -m pip install --quiet --constraint "$repository/launch/constraints-cpu.txt" "$@"; }
megabytes() { du -sm --exclude="pip*" "$place"/environment/lib/python3*/site-packages | cut -f1; }
# What comes of a command that must fail: its status, and its one line.
fails() {
  local status=0 said
  said=$("${@:3}" 2>&1) || status=$?
  if [ "$status" != "$1" ] || [[ $said != *"$2"* ]] || [[ $said == *$'\n'* ]]; then
    echo "error: ${*:3}: status $status, not $1 with '$2': $said" >&2
    exit 1
  fi
  echo "$said"
}

python -m pip install --quiet --target=tools "setuptools>=77"
mkdir dist
PYTHONPATH=tools python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null
python -m pip wheel --quiet --no-deps --wheel-dir=dist dist/ftbnn_jax-*.tar.gz
wheel=$(echo "$place"/dist/ftbnn_jax-*.whl)
mkdir "$place/away from home"
cd "$place/away from home"

echo "--- $(python --version), without extras"
install "$wheel"
echo "installed: $(megabytes) MB"
(($(megabytes) < 700)) || {
  echo "error: 700 MB are too much" >&2
  exit 1
}
python - <<'PYTHON'
import time

started = time.process_time()
import ftbnn_jax

seconds = time.process_time() - started
print(f"import ftbnn_jax {ftbnn_jax.__version__}: {seconds:.3f} s of processor time")
assert seconds < 0.3, "too slow"
PYTHON
ftbnn --version
ftbnn >help.txt
fails 2 "the nearest is \`ftbnn train\`" ftbnn tarin
for command in "train --config=quickstart --workdir=run" "budget derived44_g5" "prepare mnist" \
  "sweep quickstart --workdir=run"; do
  # shellcheck disable=SC2086 # The words are arguments.
  fails 2 "needs the extra: pip install 'ftbnn-jax[train]'" ftbnn $command
done
python "$repository/.ci/lean.py"
ftbnn predict net.safetensors "pictures é" --top=1 --csv | tee found.csv
grep -q "bright.png,.*bright" found.csv
grep -q "dark.jpg,.*dark" found.csv

echo "--- with the extra train"
install "${wheel}[train]"
echo "installed: $(megabytes) MB"
ftbnn budget derived44_g5 configs/derived34_g5.py:90
run=(--config=quickstart --workdir "runs/quick start" --num_images=0)
ftbnn train "${run[@]}" --config.num_steps 421 >log.txt
ftbnn export "${run[@]}" --config.num_steps=421 --verify
python - <<'PYTHON'
from PIL import Image
from sklearn import datasets

digits = datasets.load_digits()
Image.fromarray((digits.images[0] * 15).astype("uint8")).save("zero.png")
PYTHON
ftbnn predict "runs/quick start" zero.png --top=1 | tee zero.txt
grep -q "^zero.png: 0 " zero.txt
