#!/usr/bin/env bash
# Runs a fast part of the tests, and a training from a directory of its own, with the newest Python that is
# here and the newest JAX, flax and all else that the registries give for it, beside the pins of the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=.ci/python.sh
source .ci/python.sh
for minor in 16 15 14 13 12 11; do
  python=$(python_of "$minor") && break
done
usual=$(python -c 'import sys; print(sys.version_info.minor)')
[ "$minor" != "$usual" ] || echo "there is no newer Python here than the tests'"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv "$place/environment"
export PATH=$place/environment/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
# setup.cfg leaves TensorFlow out where it has no release for a Python.
python -m pip install --quiet --editable ".[train]" pytest hypothesis equinox
python --version
python -m pip list --format=freeze | grep -E '^(jax|jaxlib|flax|optax|orbax-checkpoint|numpy)='
tensorflow=$(python -m pip list --format=freeze | grep -E '^tensorflow') || tensorflow="without TensorFlow"
echo "$tensorflow"

python -m pytest --quiet tests/{public,config,command,nearest}_test.py \
  tests/ops/{binary,quantizers,batch_norm}_test.py tests/graph/{values,lower}_test.py \
  tests/nn/blocks_test.py tests/budget/budget_count_test.py tests/train/{optimizer,checkpoint}_test.py
cd "$place"
run=(--config=quickstart --workdir=run --config.num_steps=200)
ftbnn train "${run[@]}" >log.txt
ftbnn export "${run[@]}" --verify
