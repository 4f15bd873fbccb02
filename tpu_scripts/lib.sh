# shellcheck shell=bash
# Shared functions: flags, errors, and `run`. Sourced; works with bash 3.2 (macOS).
set -euo pipefail

dry_run=''
rest=()

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints the comment at the top of the script.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

# parse "flag flag ..." ARGUMENTS: sets a variable (hyphens become underscores) for each allowed --flag=value,
# `dry_run`, and the array `rest` to the words after --.
parse() {
  local allowed=" $1" flag
  shift
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --dry-run) dry_run=1 ;;
      --)
        shift
        rest=("$@")
        [[ " $* " != *' --dry-run '* ]] || die '--dry-run comes before --: what follows belongs to the command'
        return
        ;;
      --*=*)
        flag=${1%%=*} && flag=${flag#--}
        [[ $flag =~ ^[a-z-]+$ && "$allowed " == *" $flag "* ]] ||
          die "there is no flag --$flag, only:${allowed// / --} --dry-run (see --help)"
        printf -v "${flag//-/_}" '%s' "${1#*=}"
        case $flag in
          name | cluster | zone | worker | slice | storage) check_name "$flag" "${1#*=}" ;;
        esac
        ;;
      *) die "unexpected '$1': flags are written --flag=value, a command comes after -- (see --help)" ;;
    esac
    shift
  done
}

# need FLAG...: fails unless each flag has a value.
need() {
  local flag variable
  for flag in "$@"; do
    variable=${flag//-/_}
    [[ -n ${!variable} ]] || die "--$flag=... is missing (see --help)"
  done
}

# check_name FLAG NAME: fails unless Google accepts the name. A leading - would be read as a flag, a / as a path.
check_name() {
  [[ $2 =~ ^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$ ]] ||
    die "--$1=$(quoted "$2"): write lower-case letters, digits and hyphens, 63 at most, no hyphen at the ends"
}

# quoted WORD...: prints the words quoted for a shell.
quoted() {
  local word text=''
  for word in "$@"; do
    printf -v word '%q' "$word"
    text+="$word "
  done
  printf '%s\n' "${text% }"
}

# run COMMAND...: runs a command, or with --dry-run prints it, ready to paste.
run() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# chips SHAPE: prints the number of chips of a shape such as 4x8 or 4x4x4.
chips() { printf '%s\n' "$((${1//x/*}))"; }
