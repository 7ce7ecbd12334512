#!/bin/sh
# demo.sh: shows the command with the model that is included. A minute on two cores.
set -eu
cd "$(dirname "$0")/.."
kvq=build/kvq
model=models/demo-llama

# show ARGUMENTS...: prints a kvq command line and runs it.
show() {
  printf '\n\033[1m$ kvq %s\033[0m\n' "$*"
  "$kvq" "$@"
}

# ask NAME TOKENS: the end of a prompt, and how the model goes on.
ask() {
  printf '\n... %s' "$(tail -n 2 "$model/prompts/$1.txt")"
  show generate -f "$model/prompts/$1.txt" -n "$2" --kv k4v2
}

echo "== Generate with 4-bit keys and 2-bit values"
ask recall 4
ask arith 30
ask story 100

echo
echo "== What each format saves, and what it costs"
show eval --windows 4 --tasks "$model/tasks/recall.jsonl" --tasks "$model/tasks/arith.jsonl" \
  --limit 40 --kv k16v16 --kv k8v4 --kv k4v4 --kv k4v2 --kv k3v2 --kv k2v4 --kv k2v2
