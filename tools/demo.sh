#!/bin/sh
# demo.sh: shows what build/kvq does, with the model that is included. Less than a minute on two
# idle cores.
set -eu
cd "$(dirname "$0")/.."
model=models/demo-llama

# run ARGUMENTS...: prints a kvq command line and runs it.
run() {
  printf '\n$ kvq %s\n' "$*"
  build/kvq "$@"
}

# ask NAME ARGUMENTS...: the end of a prompt, and how the model goes on.
ask() {
  prompt=$model/prompts/$1.txt
  shift
  printf '\n... %s' "$(tail -n 2 "$prompt")"
  run generate -f "$prompt" --kv k4v2 "$@"
}

echo "== Text on a cache of 4-bit keys and 2-bit values"
ask recall -n 4
ask arith -n 39
ask story -n 150 --temperature 0.8 --top-p 0.9 --seed 6

printf '\n== What each format saves, and what it costs\n'
run eval --windows 4 --tasks $model/tasks/recall.jsonl --tasks $model/tasks/arith.jsonl \
  --limit 40 --kv k16v16 --kv k8v4 --kv k4v4 --kv k4v2 --kv k3v2 --kv k2v4 --kv k2v2
cat <<'END'

Keys need more bits than values: k4v2 and k2v4 take the same memory, k2v4 answers less.
  kvq generate -p "Once upon a time" -n 200     continues any text
  kvq eval --text FILE                          measures on your text
  kvq --help                                    lists everything
END
