#!/bin/sh
# install_cuda.sh: prints the path of a CUDA compiler. That is $CUDACXX or the nvcc of PATH or of
# /usr/local/cuda; where there is none, NVIDIA's compiler of these versions is installed from PyPI
# into build/cuda-toolkit (about 1 GB, no driver and no device needed).
set -eu
cd "$(dirname "$0")/.."

for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
  if [ -x "$nvcc" ]; then
    echo "$nvcc"
    exit 0
  fi
done

tools/install_packages.sh cuda >&2
environment=build/cuda-toolkit
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.0.2.14 >&2
for root in "$PWD/$environment"/lib/python3*/site-packages/nvidia/cu13; do
  # The names that CMake and the linker look for.
  ln -sfn lib "$root/lib64"
  for library in cudart cublasLt; do
    ln -sf "lib$library.so.13" "$root/lib/lib$library.so"
  done
  echo "$root/bin/nvcc"
done
