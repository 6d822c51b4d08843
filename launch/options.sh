# shellcheck shell=bash
# Sourced by the other scripts: reads their command lines, and prints their mistakes on one line.

# The caller reads these, indexed by name with underscores: `${option[data_dir]:-}`.
declare -A option=()
# Arguments that are no options, and all that comes after `--`.
words=()
rest=()

die() {
  echo "error: $*" >&2
  exit 2
}

# Prints the comment at the head of the script that was started.
usage() { sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"; }

# parse NAMES SWITCHES ARGUMENT...: NAMES are options with a value, --name=VALUE or --name VALUE.
parse() {
  local names=" $1 " switches=" $2 " name
  shift 2
  while (($#)); do
    name=${1%%=*}
    name=${name#--}
    case $1 in
      --)
        rest=("${@:2}")
        return
        ;;
      --help | -h)
        usage
        exit
        ;;
      -*)
        if [[ $1 != --* || $names$switches != *" $name "* ]]; then
          # shellcheck disable=SC2086 # The names are words.
          die "${1%%=*}: no such option; there are $(printf -- '--%s ' $names $switches)--help"
        elif [[ $switches == *" $name "* ]]; then
          [[ $1 != *=* ]] || die "$1: --$name takes no value"
          option[$name]=1
        elif [[ $1 == *=* ]]; then
          option[$name]=${1#*=}
        else
          [[ ${2:-} != --* ]] || die "--$name: needs a value, has ${2@Q}"
          option[$name]=${2:-}
          shift $(($# > 1))
        fi
        [[ -n ${option[$name]} ]] || die "--$name: needs a value"
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done
}

# Runs a command, or with --dry_run prints it as a shell would read it.
execute() {
  if [[ -n ${option[dry_run]:-} ]]; then
    printf '%q ' "${@:1:$#-1}"
    printf '%q\n' "${@: -1}"
  else
    "$@"
  fi
}
