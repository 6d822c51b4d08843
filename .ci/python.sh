# shellcheck shell=bash
# Sourced: finds interpreters, of pyenv's as well, which has most of them switched off.

# python_of MINOR: prints the path of a Python 3.MINOR, or fails.
python_of() {
  local candidate
  for candidate in "python3.$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (3, $1))" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}
