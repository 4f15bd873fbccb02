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

# check_topology TOPOLOGY CHIP...: fails unless it is CHIP:SHAPE, of these chips, in a shape that Google has.
check_topology() {
  local topology=$1 chip=${1%%:*} shape=${1#*:} shapes='' others=''
  shift
  [[ $topology == *:* && " $* " == *" $chip "* ]] ||
    die "--topology=$topology: write CHIP:SHAPE, as v5e:4x4 or v4:4x4x8, with one of the chips $*"
  case $chip in
    v5e | v6e) shapes='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' ;;
    *)
      shapes='2x2x1 2x2x2 2x2x4 2x4x4' others=', or three multiples of 4 in ascending order'
      if [[ $shape =~ ^([1-9][0-9]?)x([1-9][0-9]?)x([1-9][0-9]?)$ ]]; then
        local a=${BASH_REMATCH[1]} b=${BASH_REMATCH[2]} c=${BASH_REMATCH[3]}
        if ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c)); then return; fi
      fi
      ;;
  esac
  [[ " $shapes " == *" $shape "* ]] || die "--topology=$topology: the shapes of $chip are $shapes$others"
}

# accelerator_type TOPOLOGY: prints Google's name of a slice. Chips of two cores are counted by cores.
accelerator_type() {
  local chip=${1%%:*} shape=${1#*:} count
  count=$((${shape//x/*}))
  case $chip in
    v5e) printf '%s\n' "v5litepod-$count" ;;
    v6e) printf '%s\n' "v6e-$count" ;;
    *) printf '%s\n' "$chip-$((2 * count))" ;;
  esac
}
