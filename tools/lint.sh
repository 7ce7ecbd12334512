#!/usr/bin/env bash
# lint.sh [deep]: every static check of the sources; needs build/compile_commands.json. Prints what is
# wrong, exits 1 if anything is. `deep` adds clang's path-sensitive analyzer, two thirds of the time.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
jobs=$(nproc)
failed=0
if [ "${1:-}" = deep ]; then analyzer=; else analyzer='-clang-analyzer-*'; fi

# check NAME COMMAND...: runs one check and says how it went and how long it took.
check() {
  local name=$1 start=$SECONDS
  shift
  if "$@"; then
    echo "lint: $name: ok ($((SECONDS - start)) s)"
  else
    echo "lint: $name: FAILED ($((SECONDS - start)) s)"
    failed=1
  fi
}

sources() { git ls-files -z --cached --others --exclude-standard -- "$@"; }

clang_format() { sources '*.h' '*.inl' '*.cc' '*.cpp' '*.cu' '*.cuh' | xargs -0 -P "$jobs" -n 16 clang-format --dry-run -Werror; }

# Every translation unit of the build but tests, whose GoogleTest macros would double the time, and
# kernels; headers are checked through the units that include them. Benchmarks are never analyzed: the
# library's loop would be a dead store, its registration a leak.
clang_tidy() {
  sed -n 's/^ *"file": "\(.*\)".*/\1/p' build/compile_commands.json | grep -vE '_test\.cc$|/test_|\.cu$|/site-packages/' | sort -u |
    xargs -P "$jobs" -I '{}' sh -c 'checks=$2
      case "$1" in *_bench.cc) checks=-clang-analyzer-*,-performance-inefficient-vector-operation ;; esac
      clang-tidy --quiet -p build --checks="$checks" "$1" 2>/dev/null' sh '{}' "$analyzer"
}

shell_scripts() { sources '*.sh' .ci/run | xargs -0 shellcheck --severity=warning; }

# A path of one machine has no place in the tree.
no_machine_paths() {
  ! git grep --untracked -nIE '(^|[^[:alnum:]_.~/-])/(home|root|work|opt|mnt|Users)/' -- ':!*.jsonl' ':!models'
}

check clang-format clang_format
check includes tools/check_includes.py
check shellcheck shell_scripts
check "machine paths" no_machine_paths
check clang-tidy clang_tidy
exit "$failed"
