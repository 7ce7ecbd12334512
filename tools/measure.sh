#!/usr/bin/env bash
# measure.sh [NAME...]: takes the measurements behind the tables of README.md and docs/ (all of them,
# or those named), stores them in docs/results/ and rewrites the tables. Wants a quiet machine; about
# an hour on two cores, most of it for `plans`. Needs build/kvq; `wiki` also needs KVQ_SHARED, a folder with
# data/text/wiki-heldout.txt; `peers` needs Python packages (tools/peers), `gpu` a CUDA device, `vllm` what
# tools/test_vllm.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
kvq=build/kvq
threads=2

wanted() { [ "${#names[@]}" -eq 0 ] || [[ " ${names[*]} " == *" $1 "* ]]; }
names=("$@")

formats() { for spec in "$@"; do printf -- '--kv\n%s\n' "$spec"; done; }
mapfile -t widths < <(formats k16v16 k8v8 k6v6 k8v4 k5v4 k4v4 k4v3 k4v2 k3v3 k3v2 k2v4 k2v2 k1.58v1.58 k1v1)
mapfile -t options < <(formats \
  k4v2 k4:g32,v2:g32 k4:affine,v2:affine k4:channel:affine:none,v2:affine:none \
  k4:none,v2:none k4:minmax,v2:minmax \
  k2v2 k2:g32,v2:g32 k2:affine,v2:affine k2:channel:affine:none,v2:affine:none \
  k2:none,v2:none k2:minmax,v2:minmax)
# Every fit of affine parameters: per token without rotation, with it, and on KIVI's axes and groups.
mapfile -t fits < <(
  for format in k4:affine:none:FIT,v4:affine:none:FIT k2:affine:none:FIT,v2:affine:none:FIT \
    k2:affine:FIT,v2:affine:FIT k2:g32:channel:affine:none:FIT,v2:g32:affine:none:FIT; do
    formats "${format//FIT/minmax}" "${format//FIT/mse}" "${format//FIT/hqq}"
  done)
# KIVI at 4 and 2 bits, beside what takes as much room.
mapfile -t kivi < <(formats k4:g32:channel:affine:minmax:none,v4:g32:affine:minmax:none k4v4 \
  k2:g32:channel:affine:minmax:none,v2:g32:affine:minmax:none k3v2 k2:g32:affine,v2:g32:affine k2v2)
mapfile -t kernel_formats < <(formats k16v16 k8v8 k6v6 k5v5 k4v4 k4v2 k3v3 k2v2 k1.58v1.58 k1v1 \
  k4:affine,v2:affine k4:channel:affine:none,v2:affine:none k4:g32,v2:g32 k4:g16,v2:g16 \
  k4:g32:channel:none,v2:none k4:none,v4:channel:none)
mapfile -t speed_formats < <(formats k16v16 k8v8 k8v4 k4v4 k4v2 k3v3 k2v2)

tasks=(--tasks models/demo-llama/tasks/recall.jsonl --tasks models/demo-llama/tasks/arith.jsonl
  --limit 100)

if wanted accuracy; then
  tools/record.py accuracy $kvq eval --windows 16 "${tasks[@]}" "${widths[@]}" --threads $threads
fi
if wanted options; then
  tools/record.py options $kvq eval --windows 16 "${tasks[@]}" "${options[@]}" --threads $threads
fi
if wanted fits; then
  tools/record.py fits $kvq eval --windows 16 "${tasks[@]}" "${fits[@]}" --threads $threads
fi
if wanted kivi; then
  tools/record.py kivi $kvq eval --windows 16 "${tasks[@]}" "${kivi[@]}" --window 64 --sinks 0 \
    --threads $threads
fi
if wanted wiki && [ -n "${KVQ_SHARED:-}" ]; then
  tools/record.py wiki $kvq eval --text "$KVQ_SHARED/data/text/wiki-heldout.txt" --windows 64 \
    "${widths[@]}" --threads $threads
fi
if wanted plans && [ -n "${KVQ_SHARED:-}" ]; then
  # Stored bits a number; the published method counts codes alone, its format adds 0.25.
  sensitivity=() norm=()
  mkdir -p build/plans
  for bits in 1.75 2.0 2.25 2.5 3.0 3.5; do
    $kvq plan --budget $bits --calibration "$KVQ_SHARED/data/text/wikitext2-raw-test.txt" \
      --threads $threads -o build/plans/sensitivity_$bits.json
    $kvq plan --method norm --budget "$(awk "BEGIN { print $bits - 0.25 }")" -o build/plans/norm_$bits.json
    sensitivity+=(--plan "build/plans/sensitivity_$bits.json")
    norm+=(--plan "build/plans/norm_$bits.json")
  done
  plan_eval=("$kvq" eval --text "$KVQ_SHARED/data/text/wiki-heldout.txt" --windows 64
    --tasks models/demo-llama/tasks/recall.jsonl --tasks models/demo-llama/tasks/arith.jsonl)
  mapfile -t uniform < <(formats k2v2 k3v2 k4v2)
  tools/record.py plans "${plan_eval[@]}" "${uniform[@]}" "${sensitivity[@]}" --threads $threads
  mapfile -t uniform < <(formats k2v1 k1.58v1.58 k3v3 k4:affine,v2:affine)
  tools/record.py plans_norm "${plan_eval[@]}" "${uniform[@]}" "${norm[@]}" --threads $threads
fi
if wanted generate; then
  tools/record.py generate $kvq bench generate --prompt-tokens 1500 --new-tokens 256 --rounds 7 \
    "${speed_formats[@]}" --threads $threads
fi
if wanted attention; then
  tools/record.py attention $kvq bench attention "${speed_formats[@]}" --threads $threads
fi
if wanted append; then
  tools/record.py append $kvq bench append "${speed_formats[@]}"
fi
if wanted support; then
  for isa in portable avx2 avx512; do
    tools/record.py "support_$isa" $kvq bench attention --isa $isa --tokens 512 --rounds 1 \
      "${kernel_formats[@]}" --threads $threads
  done
fi
if wanted peers; then
  tools/record.py peers python3 tools/peers/llama_cpp.py --threads $threads
fi
if wanted vllm && [ -x .venv-vllm/bin/python ]; then  # made by tools/test_vllm.sh
  vllm=.venv-vllm/bin/python
  build/kvq plan --budget 3 -o build/plan3.json
  tools/record.py vllm_capacity "$vllm" bench/vllm/capacity.py --plan build/plan3.json
  tools/record.py vllm_throughput "$vllm" bench/vllm/throughput.py --kv k4v2
  tools/record.py vllm_throughput_tight "$vllm" bench/vllm/throughput.py --kv k4v2 --hold 4
fi
if wanted gpu && command -v nvidia-smi > /dev/null; then  # needs torch
  tools/record.py gpu_attention python3 bench/gpu/compare.py build/bench/gpu/decode_bench_cuda
  tools/record.py gpu_prefill python3 bench/gpu/compare_prefill.py build/bench/gpu/prefill_bench_cuda
  tools/record.py gpu_pack python3 bench/gpu/pack.py build/bench/gpu/pack_bench_cuda
  mapfile -t gpu_formats < <(formats k16v16 k8v8 k4v4 k4v2 k2v2)
  generate=("$kvq" bench generate --device cuda --random-model llama-8b --rounds 3 "${gpu_formats[@]}")
  tools/record.py gpu_generate_128k "${generate[@]}" --fill --prompt-tokens 131072 --new-tokens 64
  tools/record.py gpu_generate_16k "${generate[@]}" --fill --prompt-tokens 16384 --new-tokens 64 --batch 16
  tools/record.py gpu_generate_32k "${generate[@]}" --fill --prompt-tokens 32768 --new-tokens 64 --largest-batch
  tools/record.py gpu_prompt "${generate[@]}" --prompt-tokens 8192 --new-tokens 2
fi
tools/update_tables.py
