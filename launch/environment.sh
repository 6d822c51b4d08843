# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the repository's root, with the pinned packages and this
# project in it, unless it is there already and up to date; then puts it first on PATH.
#
# PYTHON names the interpreter to use (3.11 or later); by default the first fitting one found.
# EXTRAS names the optional packages beside those of training (setup.cfg): `EXTRAS=cuda bash
# launch/environment.sh` is for GPUs.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$repository/.venv
pins=$repository/launch/constraints-cpu.txt
extras=train,${EXTRAS:-dev,figures}

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: needs Python 3.11 or later; name one with PYTHON=..., as in PYTHON=python3.12" >&2
  return 1
}

# What was installed is known by the files that decide it.
wanted="$(cat "$repository/setup.cfg" "$repository/pyproject.toml" "$pins" | cksum) $extras"
if [ "$(cat "$environment/installed" 2>/dev/null)" != "$wanted" ]; then
  python=$(find_python) || exit 1
  echo "setting up $environment with $("$python" --version)"
  "$python" -m venv "$environment" || exit 1
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$pins" --editable "${repository}[$extras]" || exit 1
  echo "$wanted" >"$environment/installed"
fi
export PATH=$environment/bin:$PATH
